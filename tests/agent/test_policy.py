"""The policy played through by hand: no engine, no agent."""

from typing import Any

import pytest
from trimtab.agent import Halt, Outcome, RoutingPolicy, Situation, default_policy
from trimtab.tools.builtin import FAMILIES

TOOLS = tuple(dict.fromkeys(name for names in FAMILIES.values() for name in names))
READY = frozenset(FAMILIES)
GOOD, BAD, EMPTY = Outcome("good"), Outcome("invalid", "no such tool"), Outcome("empty", "the answer was empty")


def play(policy: RoutingPolicy, situation: Situation, *outcomes: Any) -> Any:
    """The routes, then what the flow returned; `...` if it waits for more."""
    flow = policy.flow(situation)
    said = []
    try:
        said.append(next(flow))
        for outcome in outcomes:
            said.append(flow.send(outcome))
    except StopIteration as end:
        return said, end.value
    return said, ...


def says(label: str, confidence: float = 0.95) -> Any:
    return RoutingPolicy(FAMILIES, lambda text: (label, confidence))


def test_the_order_of_the_rules() -> None:
    def never(text: str) -> Any:
        raise AssertionError("the classifier was asked")

    policy = RoutingPolicy(FAMILIES, never)
    (route,), end = play(policy, Situation("x", TOOLS, READY, pinned="terse@2"), GOOD)
    assert (route.profile, route.engine, end) == ("terse@2", "small", None)
    (route,), _ = play(policy, Situation("x", FAMILIES["calc"][:2], READY), GOOD)
    assert (route.profile, route.tools) == ("calc", FAMILIES["calc"][:2])
    assert "family calc" in route.reason
    (route,), _ = play(says("mail"), Situation("x", TOOLS, READY), GOOD)
    assert (route.profile, set(route.tools), route.confidence) == ("mail", set(FAMILIES["mail"]), 0.95)


@pytest.mark.parametrize("policy", [says("other"), says("calc", 0.59), RoutingPolicy(FAMILIES)])
@pytest.mark.parametrize("has_large", [True, False])
def test_what_fits_nowhere_goes_to_the_large_engine_or_the_base_model(policy: RoutingPolicy, has_large: bool) -> None:
    (route,), _ = play(policy, Situation("x", TOOLS, READY, has_large), GOOD)
    assert route.profile is None
    assert route.tools == TOOLS
    assert route.engine == ("large" if has_large else "small")
    assert has_large or "base model" in route.reason


def test_a_profile_that_the_engine_lacks_is_not_asked_for() -> None:
    (route,), _ = play(says("calc"), Situation("x", TOOLS, frozenset({"mail"})), GOOD)
    assert route.profile is None
    assert "no profile calc" in route.reason


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tools_of_one_family_are_enough_to_know_it(family: str) -> None:
    tools = FAMILIES[family]
    (route,), _ = play(says("other"), Situation("x", tools, READY), GOOD)
    assert (route.profile, route.tools, route.confidence) == (family, tools, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tool_of_several_families_stays_in_the_chosen_one(family: str) -> None:
    (route,), _ = play(says(family), Situation("x", TOOLS, READY), GOOD)
    assert (route.profile, set(route.tools)) == (family, set(FAMILIES[family]))


SHARED = {"small": ("a", "b"), "wide": ("a", "b", "c", "d"), "twin": ("a", "e"), "far": ("f",)}


@pytest.mark.parametrize(
    ("tools", "ready", "label", "confidence", "profile", "asked"),
    [
        # `small`, `wide` and `twin` hold a; `small` and `wide` hold a and b.
        ("a", SHARED, "wide", 0.9, "wide", True),
        ("a", SHARED, "twin", 0.6, "twin", True),
        ("a", SHARED, "wide", 0.59, "small", True),  # not sure: the fewest tools, the first of equals
        ("a", SHARED, "far", 0.9, "small", True),  # sure, but it does not hold the tool
        ("a", SHARED, "other", 0.9, "small", True),
        ("a", SHARED, None, 0.0, "small", False),  # no router
        ("ab", SHARED, "twin", 0.9, "small", True),
        ("ab", SHARED, "wide", 0.9, "wide", True),
        ("a", ("wide", "twin"), "small", 0.9, "twin", True),  # only families that the engine has a profile for
        ("a", ("wide",), "small", 0.9, "wide", False),
        ("a", ("far",), "wide", 0.9, None, True),  # no profile at all: the base model
    ],
)
def test_tools_that_several_families_hold(
    tools: str, ready: Any, label: str | None, confidence: float, profile: str | None, asked: bool
) -> None:
    policy = RoutingPolicy(SHARED, None if label is None else lambda text: (label, confidence))
    (route,), end = play(policy, Situation("x", tuple(tools), frozenset(ready)), GOOD)
    assert (route.profile, route.tools, route.engine, end) == (profile, tuple(tools), "small", None)
    assert route.confidence == (confidence if asked else None)


def test_tools_that_no_single_family_holds_are_left_to_the_classifier() -> None:
    situation = Situation("x", ("a", "b", "e", "f", "mine"), frozenset(SHARED))
    for label, tools in (("twin", ("a", "e", "mine")), ("wide", ("a", "b", "mine")), ("far", ("f", "mine"))):
        policy = RoutingPolicy(SHARED, lambda text, label=label: (label, 0.9))  # type: ignore[misc]
        (route,), _ = play(policy, situation, GOOD)
        assert (route.profile, route.tools) == (label, tools)


def test_tools_of_no_family_are_never_hidden() -> None:
    (route,), _ = play(says("calc"), Situation("x", (*TOOLS, "mine"), READY), GOOD)
    assert set(route.tools) == {*FAMILIES["calc"], "mine"}
    (route,), _ = play(says("calc"), Situation("x", ("mine",), READY), GOOD)
    assert route.profile is None


def test_a_pinned_variant_is_offered_its_familys_tools() -> None:
    (route,), _ = play(says("other"), Situation("x", TOOLS, READY, pinned="calc-terse"), GOOD)
    assert route.tools == FAMILIES["calc"]


@pytest.mark.parametrize(
    ("pinned", "tools"),
    [
        ("calc", ("add",)),
        ("calc@3", ("add",)),
        ("calc-terse@3", ("add",)),
        ("calc-dates", ("add", "day")),  # the longest name: not the variant `dates` of `calc`
        ("calc-dates-terse", ("add", "day")),
        ("calendar", ("add", "day", "book")),  # no variant of anything
        ("calcium", ("add", "day", "book")),
    ],
)
def test_a_variant_is_of_the_longest_family_it_is_named_after(pinned: str, tools: tuple[str, ...]) -> None:
    policy = RoutingPolicy({"calc": ("add",), "calc-dates": ("add", "day"), "book": ("book",)})
    (route,), _ = play(policy, Situation("x", ("add", "day", "book"), pinned=pinned), GOOD)
    assert (route.profile, route.tools) == (pinned, tools)
    assert ("are offered" in route.reason) is (len(tools) < 3)


def test_escalation() -> None:
    calc = Situation("x", TOOLS, READY, True)
    repair = Situation("x", TOOLS, READY, True, invalid_by="small")
    assert play(says("calc"), calc, BAD)[1] is None  # shown its error first
    routes, end = play(says("calc"), repair, BAD, GOOD)
    assert [r.engine for r in routes] == ["small", "large"]
    assert end is None
    routes, end = play(says("calc"), calc, EMPTY, EMPTY)
    assert end.kind == "empty"
    (route,), end = play(says("calc"), Situation("x", TOOLS, READY, True, invalid_by="large"), BAD)
    assert route.engine == "large"
    assert end.kind == "invalid"
    (route,), end = play(says("calc"), Situation("x", TOOLS, READY, True, loop="weekday"), GOOD)
    assert "weekday" in route.reason
    assert end is None


@pytest.mark.parametrize(
    "situation",
    [
        Situation("x", TOOLS, READY, True, loop="weekday", loop_escalated=True),
        Situation("x", TOOLS, READY, False, loop="weekday"),
        Situation("x", TOOLS, READY, True, pinned="calc", loop="weekday"),
    ],
)
def test_a_loop_stops_before_anything_is_asked(situation: Situation) -> None:
    routes, end = play(says("calc"), situation)
    assert routes == []
    assert isinstance(end, Halt)
    assert "weekday" in end.reason


def test_without_large_engine_the_second_invalid_call_stops() -> None:
    _, end = play(says("calc"), Situation("x", TOOLS, READY, invalid_by="small"), BAD)
    assert (
        end == Halt("invalid", "still invalid after one repair: no such tool; and there is no large engine to ask")
        or "no large engine" in end.reason
    )


def test_the_default_policy_knows_the_families() -> None:
    assert default_policy().families == FAMILIES
