"""`trimtab eval families --split`: counting and bars in closed forms, the probes themselves, and a small real run."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.agent.testing import ReplayEngine
from trimtab.cli import main
from trimtab.evals import families
from trimtab.evals.arms import Side
from trimtab.evals.families_bars import Abstention, Bar, Share, abstention, mean, share_bar, task_bars
from trimtab.evals.families_behaviour import Prompts, prompts, seen, shown_side
from trimtab.evals.families_calls import Watched, call_fits, fits, same
from trimtab.evals.families_report import chart, held_to
from trimtab.evals.families_tasks import family_suite, kind_of, tally
from trimtab.evals.families_unseen import OFFERED, abstention_probes, exact, missed, unseen_probes
from trimtab.evals.records import Record
from trimtab.evals.score import missing_from_answer
from trimtab.evals.stats import wilson
from trimtab.models.chat import ChatRequest, Message, Reply, ToolCall, Usage, user
from trimtab.models.embedded import SMALL
from trimtab.models.embedded.answers import AXES, PLAIN, draw_style, word_answer
from trimtab.models.embedded.corpus import open_world
from trimtab.models.embedded.families import phrasings, play, refuse
from trimtab.models.embedded.intents import INTENTS
from trimtab.models.embedded.intents.common import Facts
from trimtab.models.embedded.tasks import EACH
from trimtab.models.embedded.words import HELD_OUT, TRAIN
from trimtab.tools.builtin import FAMILIES


def said(text: str | None = None, *calls: tuple[str, Any]) -> Message:
    return Message("assistant", text, tuple(ToolCall(str(i), n, json.dumps(a)) for i, (n, a) in enumerate(calls)))


# --- shares and bars ---


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 50))
def test_a_share_is_k_of_n_with_wilsons_interval(k: int, more: int) -> None:
    share = Share(k, k + more)
    if share.n == 0:
        assert share.value is None
        assert share.interval is None
        assert share.to_json() == {"value": None, "low": None, "high": None, "k": 0, "n": 0}
    else:
        assert share.value == k / (k + more)
        assert share.interval == wilson(k, k + more)
    assert Share.of([True] * k + [False] * more) == share


@pytest.mark.parametrize(
    ("value", "bar", "met"),
    [
        (0.95, 0.95, True), (0.949, 0.95, False), (None, 0.95, False), (None, (0.4, 0.6), False),
        (0.4, (0.4, 0.6), True), (0.6, (0.4, 0.6), True), (0.61, (0.4, 0.6), False), (0.39, (0.4, 0.6), False),
    ],
)  # fmt: skip
def test_a_bar_is_met_within_its_bounds_and_never_by_the_unknown(value: Any, bar: Any, met: bool) -> None:
    row = Bar("x", value, bar).to_json()
    assert row == {"name": "x", "value": value, "bar": list(bar) if isinstance(bar, tuple) else bar, "met": met}


def test_the_gain_is_the_difference_of_means_over_families() -> None:
    adapters, bare = {"a": Share(9, 10), "b": Share(4, 4)}, {"a": Share(5, 10), "b": Share(2, 4)}
    rows = {bar.name: bar for bar in task_bars(adapters, bare)}
    assert list(rows) == ["success.a", "success.b", "adapters.gain"]
    assert rows["adapters.gain"].value == pytest.approx((0.9 + 1.0) / 2 - 0.5)
    assert (rows["success.a"].met, rows["success.b"].met, rows["adapters.gain"].met) == (False, True, True)
    unknown = {bar.name: bar for bar in task_bars({**adapters, "b": None}, bare)}
    assert (unknown["success.b"].value, unknown["adapters.gain"].value) == (None, None)
    assert mean([]) is None
    assert mean([Share(0, 0), Share(1, 1)]) is None


def test_precision_and_recall_of_making_no_call() -> None:
    # 3 silent where nothing fits, 1 silent where something does, 2 calls where nothing fits, 4 where something does.
    outcomes = [(True, True)] * 3 + [(False, True)] + [(True, False)] * 2 + [(False, False)] * 4
    assert abstention(outcomes) == Abstention(Share(3, 4), Share(3, 5))
    assert abstention([(False, False)]).precision.value is None


def test_the_chart_draws_known_and_unknown() -> None:
    bars = [share_bar("a.b", Share(3, 4), 0.95), Bar("c", None, (0.4, 0.6)), Bar("gain", -0.1, 0.15)]
    assert chart(bars, "title")[:8] == b"\x89PNG\r\n\x1a\n"
    assert [held_to(bar) for bar in bars] == ["at least 95 %", "40 to 60 %", "at least 15 %"]


# --- calls ---

SPEC = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "s": {"type": "string"}, "i": {"type": "integer"}, "e": {"type": "string", "enum": ["p", "q"]},
                "l": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["s"], "additionalProperties": False,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "good"),
    [
        ("f", '{"s": "x"}', True), ("f", '{"s": "x", "i": 3, "e": "q", "l": ["a"]}', True),
        ("f", '{"s": "x", "i": 3.0}', True), ("g", '{"s": "x"}', False), ("f", "{}", False), ("f", '{"s": 1}', False),
        ("f", '{"s": "x", "i": 3.5}', False), ("f", '{"s": "x", "i": true}', False),
        ("f", '{"s": "x", "e": "r"}', False), ("f", '{"s": "x", "l": [1]}', False),
        ("f", '{"s": "x", "z": 1}', False), ("f", '{"s": "x"', False),
        ("f", '["x"]', False), ("f", '{"s": "x", "i": NaN}', False), ("f", '{"s": "x", "i": 1e999}', False),
    ],
)  # fmt: skip
def test_which_calls_fit(name: str, arguments: str, good: bool) -> None:
    assert call_fits(name, arguments, [SPEC]) is good


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(deadline=None)
@given(JSON, JSON)
def test_equality_is_that_of_json(left: Any, right: Any) -> None:
    assert same(left, json.loads(json.dumps(left)))
    assert same(left, right) == (json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True))
    assert same(5, 5.0)
    assert not same([1], [True])
    assert fits(left, {})


async def test_calls_are_counted_as_they_are_written() -> None:
    class Scripted:
        name = model = "scripted"

        def __init__(self, *messages: Message) -> None:
            self.left = list(messages)

        async def chat(self, request: ChatRequest) -> Reply:
            return Reply(self.left.pop(0), "stop", Usage(), 0.0)

    engine: Any = Scripted(
        said(None, ("f", {"s": "x"}), ("f", {})), said("No."), said('Well. <tool_call>\n{"name": "f", "arg')
    )
    watched = Watched(engine)
    for _ in range(3):
        await watched.chat(ChatRequest((user("x"),), (SPEC,)))
    assert watched.valid == Share(1, 3)
    assert len(watched.misfits) == 2


@pytest.mark.parametrize(
    ("reply", "calls", "abstained"),
    [
        (said("I have no tool for that."), 0, True),
        (said(None), 0, False),
        (said(" "), 0, False),
        (said('<tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call>'), 1, False),
        (said(None, ("f", {})), 1, False),
    ],
)
async def test_a_broken_call_and_an_empty_reply_are_no_abstention(
    reply: Message, calls: int, abstained: bool, tmp_path: Path
) -> None:
    def script(request: ChatRequest) -> Message:
        fits_none = any(request == probe.request() for probe in abstention_probes(2) if probe.wanted is None)
        return reply if fits_none else said("Well.")

    asked = families.Asked("test", ("calc",), 1, 1)
    found = await families.measure(asked, Side(SMALL, "vllm"), ReplayEngine(script), tmp_path)
    assert found.abstention.recall == Share(int(abstained), 1)
    assert found.calls == Share(0, calls)  # what is called where nothing fits counts, too


# --- tasks ---


def record(task: str, success: bool | None, code: str | None = None) -> Record:
    return Record(task, task.partition("-")[0], 0, "ask", success, code, None, "answer")


def test_runs_are_counted_by_kind_and_code() -> None:
    single = next(name for name, intent in INTENTS["calc"].items() if intent.group == "single" and not intent.units)
    rows = [
        record(f"calc-000-{single}", True),
        record(f"calc-001-{single}", False, "wrong_answer"),
        record("calc-002-repair", True),
        record("calc-003-no-tool", False, "wrong_tool"),
        record("calc-004-no-tool", None, "engine_error"),
    ]
    found = tally(rows)
    assert found.share == Share(2, 4)
    assert found.kinds == {"single": Share(1, 2), "repair": Share(1, 1), "no-tool": Share(0, 1)}
    assert found.codes == {"wrong_answer": 1, "wrong_tool": 1, "engine_error": 1}
    assert found.broken == 1
    assert tally(rows[-1:]).share.value is None


def test_a_familys_suite_has_a_task_for_every_test_phrasing() -> None:
    phrased = {name: phrasings("test")["calc"][name] for name, intent in INTENTS["calc"].items() if not intent.units}
    suite = family_suite("calc", "test")
    counts = Counter(task.id.split("-", 2)[2] for task in suite.tasks)
    assert counts == {**{name: len(texts) for name, texts in phrased.items()}, "repair": EACH, "no-tool": EACH}
    assert {task.family for task in suite.tasks} == {"calc"}
    asks = {task.ask for task in suite.tasks}
    for text in itertools.chain(*phrased.values()):
        shape = re.compile(".+".join(map(re.escape, re.split(r"\{\w+\}", text))))
        assert any(shape.fullmatch(ask) for ask in asks), text
    assert family_suite("calc", "test", 2).tasks == suite.tasks[:2]
    assert len({kind_of(task.id) for task in suite.tasks[: len(counts)]}) == 5  # the kinds take turns
    assert Counter(task.id.split("-", 2)[2] for task in family_suite("calc", "train").tasks) == counts


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_of_the_embedded_models_has_what_is_looked_for(family: str) -> None:
    rng = random.Random(3)
    with open_world() as world:
        for intent, spec in INTENTS[family].items():
            for _ in range(12):
                for ask_back in (True, False) if spec.question else (True,):
                    world.reset(rng)
                    style = draw_style(rng)
                    played = play("test", family, intent, rng, style, world.run, ask_back=ask_back)
                    answer = played.turns[-1]["content"]
                    assert missing_from_answer(played.facts.needles, answer) == [], (intent, answer)
    refused = refuse("test", "other", rng, draw_style(rng))
    assert missing_from_answer(refused.facts.needles, refused.turns[-1]["content"]) == []


def looked_for(family: str, kind: str) -> tuple[str | tuple[str, ...], ...]:
    """What is looked for in the answers to a kind of tasks, where that may be worded in several ways."""
    answers = (t.expect.answer for t in family_suite(family, "test").tasks if t.id.endswith(f"-{kind}"))
    return next(answer for answer in answers if any(isinstance(one, tuple) for one in answer))


@pytest.mark.parametrize(
    ("family", "kind", "right", "wrong"),
    [
        (
            "mail",
            "no-tool",
            ["No tool for that.", "Sorry, I can't make phone calls.", "Dafür habe ich kein Tool.", "I’m unable to."],
            ["Sure, I used the tool and called your mum.", "It is 42.", "Certainly. Done. Nothing more to report."],
        ),
        (
            "dates",
            "missing.days",
            ["Until which day?", "Please provide the end date.", "Let me know the second date."],
            ["It is 7 days.", "Done. Let me know if you need more.", "Certainly. 7. That is all."],
        ),
        (
            "mail",
            "list_mails",
            ["0 mails", "You have no mails.", "Your inbox is empty.", "There aren't any emails."],
            ["no problem, there are 3 mails", "Error. Nothing more to report.", "I have no tool for mails", "10 mails"],
        ),
        (
            "todos",
            "list_todos",
            ["Your list is empty.", "0 open items", "No tasks."],
            ["No worries! milk. That is all."],
        ),
        ("orders", "list_orders", ["She has no orders.", "0 orders"], ["No worries! 1203: 2 lamp (open)"]),
        ("tables", "list_tables", ["There are no tables.", "0 tables"], ["No worries! cities"]),
    ],
)
def test_other_models_may_word_it_otherwise(family: str, kind: str, right: list[str], wrong: list[str]) -> None:
    (needle,) = looked_for(family, kind)
    assert [text for text in right if missing_from_answer([needle], text)] == []
    assert [text for text in wrong if not missing_from_answer([needle], text)] == []


def test_a_day_without_events_and_a_contact_without_number_are_told_in_words() -> None:
    none, day = looked_for("calendar", "list_events")
    assert missing_from_answer([none, day], f"You have no events on {day}.") == []
    assert missing_from_answer([none, day], f"0 events on {day}") == []
    assert missing_from_answer([none, day], f"On {day} you have 09:00 dentist") != []
    name, number = looked_for("mail", "contact_phone")
    for text in ("There is no phone number for {}.", "{} doesn’t have a phone number.", "Keine Telefonnummer für {}."):
        assert missing_from_answer([name, number], text.format(name)) == []
    for text in ("The phone number of {} is 555 0100.", "Certainly. {}. That is all.", "{} has a phone number."):
        assert missing_from_answer([name, number], text.format(name)) != []


# --- tools never seen ---


def test_unseen_tools_are_unseen_and_each_request_has_one_answer() -> None:
    probes = unseen_probes(60)
    assert unseen_probes(60) == probes
    for probe in probes:
        assert len(probe.tools) == OFFERED
        assert probe.wanted is not None
        assert call_fits(probe.wanted[0], json.dumps(probe.wanted[1]), probe.tools)
    names = {tool["function"]["name"].lower() for probe in probes for tool in probe.tools}
    assert any(verb in name for name in names for verb in HELD_OUT.verbs)
    assert not set(HELD_OUT.verbs) & set(TRAIN.verbs)
    assert not set(HELD_OUT.nouns) & set(TRAIN.nouns)


def test_half_of_the_abstention_asks_for_what_is_not_there() -> None:
    halves, whole = abstention_probes(20), unseen_probes(20)
    assert [probe.wanted is None for probe in halves] == [True, False] * 10
    assert [probe.tools for probe in halves] == [probe.tools for probe in whole]
    assert halves[1::2] == whole[1::2]


def test_exact_is_the_one_right_call() -> None:
    probe = unseen_probes(1)[0]
    assert probe.wanted is not None
    name, arguments = probe.wanted
    right = said("Well.", (name, dict(arguments)))
    assert exact(probe, right)
    wrong = [said("x"), said(None, ("x", dict(arguments))), said(None, (name, {**arguments, "zz": 1}))]
    wrong.append(said(None, (name, dict(arguments)), (name, dict(arguments))))
    assert not any(exact(probe, reply) for reply in wrong)
    assert len(missed([probe] * 5, [right, *wrong])) == 4


# --- behaviours ---


def test_the_side_that_a_reply_shows() -> None:
    from dataclasses import replace

    facts = Facts("5", "it is 5", "5", "es ist 5", ())
    for axis in ("detail", "register", "explain", "language", "tone"):
        for side in (True, False):
            text = word_answer(replace(PLAIN, **{axis: side}), facts, ("calculate",), random.Random(1))
            assert shown_side(axis, said(text)) is side
        assert shown_side(axis, said("hm")) is None
        assert shown_side(axis, said(None, ("calculate", {}))) is None
    call = said(None, ("delete_event", {"title": "x"}))
    assert (shown_side("confirm", said("Shall I delete x?")), shown_side("confirm", call)) == (True, False)
    assert shown_side("confirm", said("Deleted.")) is None
    answer = said(word_answer(PLAIN, facts, (), random.Random(1)))
    assert (shown_side("verify", call), shown_side("verify", answer), shown_side("verify", said())) == (
        True,
        False,
        None,
    )

    def converted(unit: str) -> Message:
        return said(None, ("calculate", {}), ("convert_units", {"to_unit": unit}), ("convert_units", {"to_unit": "?"}))

    assert [shown_side("units", converted(u)) for u in ("kilometres", "miles", "parsecs")] == [True, False, None]
    assert shown_side("units", said("12 miles")) is None


def test_shares_of_sides_with_and_without_a_tag() -> None:
    replies = [said("Shall I go?")] * 3 + [said(None, ("x", {}))] * 1 + [said("?")] * 2
    shares = {side: seen(Prompts("confirm", side, ()), replies).bar for side in (True, False, None)}
    assert [(bar.name, bar.share) for bar in shares.values()] == [
        ("behaviour.confirm.confirm", Share(3, 6)),
        ("behaviour.confirm.act", Share(1, 6)),
        ("behaviour.confirm.untagged", Share(3, 4)),
    ]
    assert shares[None].bar == (0.4, 0.6)


@pytest.mark.parametrize("axis", AXES)
def test_prompts_are_tagged_or_sampled(axis: str) -> None:
    tagged, untagged = (prompts(axis, side, tuple(FAMILIES), "test", 4) for side in (False, None))
    assert len(tagged.requests) == len(untagged.requests) == 4
    for request in tagged.requests:
        assert request.messages[0].content == f"Style: {AXES[axis][1]}."
        assert request.sampling is not None
        assert request.sampling.temperature == 0
    assert all(request.messages[0].role == "user" for request in untagged.requests)
    seeds = {request.sampling.seed for request in untagged.requests}
    assert len(seeds - {None}) == 4
    assert prompts(axis, None, tuple(FAMILIES), "test", 4) == untagged
    assert {request.sampling.temperature for request in untagged.requests} == {1.0}


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "small", "--split", "test"], "has no splits"),
        (["eval", "families", "--split", "test", "--families", "calc,cooking"], "unknown family 'cooking'"),
        (["eval", "families", "--split", "test", "--profile", "calc"], "--profile"),
        (["eval", "families", "--split", "test", "--trials", "2"], "--trials"),
        (["eval", "families", "--plot", "x.png"], "--plot"),
        (["eval", "families", "--families", "calc"], "--families"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_what_was_found_is_shown_though_the_chart_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Engine:
        model, dtype = "m", "bfloat16"

    @asynccontextmanager
    async def open_sides(sides: Any) -> AsyncIterator[list[Engine]]:
        yield [Engine()]

    async def measured(*_: Any) -> families.Found:
        none: Any = {"calc": None}
        nothing: Any = (Share(0, 0), [])
        return families.Found(none, none, nothing, nothing, abstention([]), [], Share(0, 0), [])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name, stand_in in (("open_sides", open_sides), ("measure", measured), ("write_atomic", full)):
        monkeypatch.setattr(families, name, stand_in)
    assert main(["eval", "families", "--split", "test", "--json", "--plot", str(tmp_path / "x.png")]) == 1
    caught = capsys.readouterr()
    assert json.loads(caught.out)["dtype"] == "bfloat16"
    assert "No space left" in caught.err


@pytest.mark.server
@pytest.mark.timeout(1800)
def test_a_small_run_on_the_real_server(server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from trimtab.models.embedded import default_store

    if server.model != SMALL:
        pytest.skip("the embedded model is being trained anew")
    arguments = ["eval", "families", "--split", "test", "--engine", server.url, "--model", SMALL, "--limit", "1"]
    chosen = ["--families", "calc", "--json", "--plot", str(tmp_path / "bars.png")]
    assert main([*arguments, *chosen]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["suite"], document["split"], document["families"]) == ("families", "test", ["calc"])
    rows = {row["name"]: row for row in document["bars"]}
    assert set(rows) >= {"success.calc", "adapters.gain", "unseen.exact_constrained", "abstention.precision"}
    assert set(rows) >= {"abstention.recall", "behaviour.detail.brief", "behaviour.units.untagged", "calls.valid"}
    assert all(row["met"] is False for row in rows.values() if row["value"] is None)
    # A family whose profile is not there, or not of this model, stays unknown.
    if "calc" in default_store().names():
        assert rows["success.calc"]["value"] in (None, 0.0, 1.0)
    assert document["success"]["families"]["calc"]["bare"]["n"] == 1
    assert document["unseen"]["exact_constrained"]["n"] == document["unseen"]["exact_free"]["n"] == 2
    assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG"
    assert "unseen tools, constrained: 2 of 2 done" in printed.err
    reader = [sys.executable, "-c", READER, "success.calc", "calls.valid"]
    assert subprocess.run(reader, input=printed.out, text=True, check=False, capture_output=True).stderr == ""


READER = """
import json, sys
rows = json.loads(sys.stdin.read())["bars"]
assert not set(sys.argv[1:]) - {r["name"] for r in rows}
assert all(set(r) == {"name", "value", "bar", "met"} for r in rows)
"""
