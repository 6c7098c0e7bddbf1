"""The policy: which engine, profile and tools a model step gets, and when it is handed to the large engine.

A policy is a generator that never calls a model itself. It yields a route, is sent what came of it, and yields another
route or returns:

    flow = policy.flow(situation)
    route = next(flow)               # ask the engine this way
    flow.send(Outcome("invalid"))    # what came of it. StopIteration: take it (None), or stop the run (a Halt)

So one body serves every way of running it, and a test plays it through without an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .steps import Route, Where


@dataclass(frozen=True)
class Situation:
    """What a policy knows before a model step.

    Attributes:
        task: the user's request.
        tools: names of all the agent's tools.
        profiles: what the agent's own engine can serve now.
        has_large: whether there is a large engine.
        pinned: the profile the user asked for by name, or None.
        invalid_by: whose invalid call this step repairs, or None.
        loop: the tool that was called three times with the same result, or None.
        loop_escalated: the large engine was asked because of a loop before.
    """

    task: str
    tools: tuple[str, ...]
    profiles: frozenset[str] = frozenset()
    has_large: bool = False
    pinned: str | None = None
    invalid_by: Where | None = None
    loop: str | None = None
    loop_escalated: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a route: a usable reply, or one that is empty, was cut off or has invalid calls; `detail` says
    what is wrong."""

    kind: Literal["good", "invalid", "empty", "cut"]
    detail: str = ""


@dataclass(frozen=True)
class Halt:
    """A run must stop here."""

    kind: Literal["loop", "invalid", "empty", "cut"]
    reason: str


Flow = Generator[Route, Outcome, Halt | None]


class Policy(Protocol):
    """Anything that routes. See the module's docstring for how `flow` is driven."""

    def flow(self, situation: Situation) -> Flow: ...


@dataclass(frozen=True)
class RoutingPolicy:
    """The policy of Trimtab, in the order in which its rules are asked:

    1. a profile asked for by name is taken, and the step is never handed on;
    2. tools that one family holds all of take that family's profile; where several do, for a tool may serve several,
       the classifier's family if it is surely one of these, else the one with the fewest tools, the most special;
    3. a classifier names the family of the request; only that family's tools are offered, and tools of no family;
    4. what fits no family, or is not surely of one, goes to the large engine, else to the base model.

    A step goes to the large engine after an invalid call that one repair did not mend, after a loop, and after an
    answer that is empty or was cut off.

    Attributes:
        families: the tools of each family; a family's profile has its name. A tool may serve several.
        classify: request -> (family or "other", probability); None when no router is trained.
        threshold: the probability under which the classifier is not followed.
    """

    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classify: Callable[[str], tuple[str, float]] | None = None
    threshold: float = 0.6

    def flow(self, situation: Situation) -> Flow:
        """Route one model step."""
        s = situation
        no_large = self._no_large(s)
        if s.loop is not None:
            trouble = f"{s.loop} was called three times with the same result"
            if no_large or s.loop_escalated:
                return Halt("loop", f"{trouble}, {no_large or 'and again after the large engine was asked'}")
            route = large(s, trouble)
        elif s.invalid_by == "large":
            route = large(s, "it repairs its own invalid call")
        else:
            route = self.choose(s)

        outcome = yield route
        if outcome.kind == "good" or (outcome.kind == "invalid" and s.invalid_by is None):
            return None  # an invalid call is shown its error: the next step is its repair
        trouble = outcome.detail
        if outcome.kind == "invalid":
            trouble = f"still invalid after one repair: {outcome.detail}"
        if route.engine == "large":
            return Halt(outcome.kind, f"{trouble} (from the large engine)")
        if no_large:
            return Halt(outcome.kind, f"{trouble}; {no_large}")

        outcome = yield large(s, trouble)
        if outcome.kind in ("empty", "cut"):
            return Halt(outcome.kind, f"{outcome.detail} (from the large engine too)")
        return None

    def choose(self, s: Situation) -> Route:
        """The route by request and tools alone."""
        if s.pinned is not None:
            return self._pinned(s, s.pinned)
        known = {tool for tools in self.families.values() for tool in tools}
        if not known.intersection(s.tools):
            return self._general(s, "none of the tools belongs to a family with a profile", None)
        holders = [family for family, tools in self.families.items() if set(s.tools) <= set(tools)]
        if holders:
            return self._one_of(s, holders)
        if self.classify is None:
            return self._general(s, "no router is trained", None)
        label, confidence = self.classify(s.task)
        if label not in self.families or not set(self.families[label]) & set(s.tools):
            return self._general(s, f"the request reads as {label}, which no profile covers", confidence)
        if confidence < self.threshold:
            reason = f"the request reads as {label}, but the router is not sure"
            return self._general(s, f"{reason} ({confidence:.2f} < {self.threshold:.2f})", confidence)
        return self._family(s, label, f"the request reads as {label}", confidence)

    def _one_of(self, s: Situation, holders: list[str]) -> Route:
        """The route where each of these families holds all the tools."""
        if len(holders) == 1:
            return self._family(s, holders[0], f"all tools are of the family {holders[0]}", None)
        reason = f"all tools are of the families {', '.join(holders)}"
        ready = [family for family in holders if family in s.profiles] or holders
        if len(ready) == 1:
            return self._family(s, ready[0], f"{reason}, and {ready[0]} has a profile", None)
        confidence = None
        if self.classify is not None:
            label, confidence = self.classify(s.task)
            if label in ready and confidence >= self.threshold:
                return self._family(s, label, f"{reason}, and the request reads as {label}", confidence)
        # min takes the first of equals, in the order of the families.
        family = min(ready, key=lambda one: len(self.families[one]))
        return self._family(s, family, f"{reason}, and {family} has the fewest tools", confidence)

    def _pinned(self, s: Situation, profile: str) -> Route:
        reason = f"profile {profile} was asked for"
        name = profile.partition("@")[0]
        # `calc-terse` is a variant of `calc`: the same adapter, trained on the same tools.
        of = [family for family in self.families if name == family or name.startswith(f"{family}-")]
        if not of:
            return Route(profile, "small", reason, None, s.tools)
        family = max(of, key=len)
        tools = self._offered(s, family)
        if set(tools) != set(s.tools):
            reason += f"; only tools of its family {family} are offered"
        return Route(profile, "small", reason, None, tools)

    def _family(self, s: Situation, family: str, reason: str, confidence: float | None) -> Route:
        if family not in s.profiles:
            return self._general(s, f"{reason}, but the engine has no profile {family}", confidence)
        return Route(family, "small", reason, confidence, self._offered(s, family))

    def _general(self, s: Situation, reason: str, confidence: float | None) -> Route:
        if s.has_large:
            return Route(None, "large", reason, confidence, s.tools)
        return Route(None, "small", f"{reason}, and there is no large engine: the base model", confidence, s.tools)

    def _offered(self, s: Situation, family: str) -> tuple[str, ...]:
        """The family's tools, whoever else they serve, and those of no family: the classifier cannot rule out what it
        knows nothing of."""
        known = {tool for tools in self.families.values() for tool in tools}
        return tuple(tool for tool in s.tools if tool in self.families[family] or tool not in known)

    def _no_large(self, s: Situation) -> str:
        """Why a step cannot be handed on; empty if it can."""
        if s.pinned is not None:
            return f"and profile {s.pinned} was asked for, so no other engine is tried"
        return "" if s.has_large else "and there is no large engine to ask"


def large(s: Situation, reason: str) -> Route:
    """A step for the large engine, which is offered every tool."""
    return Route(None, "large", reason, None, s.tools)


def default_policy() -> RoutingPolicy:
    """The policy over the built-in families, with the shipped classifier where there is one."""
    from ..tools.builtin import FAMILIES
    from .router import load_router

    router = load_router()
    return RoutingPolicy(FAMILIES, None if router is None else router.classify)
