"""Checkers and failure codes."""

from datetime import date
from typing import Any

import pytest
from trimtab.evals.score import Called, Outcome, missing_from_answer, score, state_differences
from trimtab.evals.suite import Expect, Task

EMPTY: dict[str, Any] = {"events": [], "contacts": [], "todos": [], "done": [], "files": {}}


def task(**expect: object) -> Task:
    return Task("t", "calc", "?", date(2026, 5, 12), {}, None, Expect(**expect))  # type: ignore[arg-type]


def ran(name: str, arguments: str = "{}", ok: bool = True) -> Called:
    return Called(name, arguments, ok)


@pytest.mark.parametrize(
    ("needle", "answer", "found"),
    [
        ("42.1648", "That is 42.1648 km.", True),
        ("42.1648", "42.16481", False),
        ("7", "7 days", True),
        ("7", "It is 7.", True),
        ("7", "17 days", False),
        ("7", "7.5 days", False),
        ("7", "it is -7", False),
        ("7", "-7", False),
        ("-7", "It is -7 degrees", True),
        ("-7", "It is −7 degrees", True),
        ("5", "3-5 May", True),
        ("143", "1,143", False),
        ("19 June 2026", "Friday, 19  june\n2026", True),
        ("Friday", "friday!", True),
        ("ann@x.org", "Ann: ann@x.org.", True),
        ("(", "a ( b", True),
    ],
)
def test_what_an_answer_contains(needle: str, answer: str, found: bool) -> None:
    assert (missing_from_answer([needle], answer) == []) is found


def test_no_answer_contains_nothing() -> None:
    assert missing_from_answer(["7"], None) == ["7"]


def test_state_must_be_as_expected_and_otherwise_untouched() -> None:
    before = {**EMPTY, "todos": ["milk"]}
    after = {**EMPTY, "todos": ["milk", "bread"]}
    assert state_differences({"todos": ["milk", "bread"]}, before, after) == []
    assert "todos" in state_differences(None, before, after)[0]
    assert len(state_differences({"todos": ["milk", "bread"]}, before, {**after, "files": {"a": "b"}})) == 1
    events = [
        {"title": "b", "date": "2026-05-13", "time": "09:00"},
        {"title": "a", "date": "2026-05-12", "time": "10:00"},
    ]
    assert state_differences({"events": events}, EMPTY, {**EMPTY, "events": events[::-1]}) == []


REFERENCE = (("convert_units", {"value": 5, "from_unit": "miles"}),)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome("8", (ran("convert_units"),)), None),
        (Outcome("9"), "no_call"),
        (Outcome("9", (Called("convert_units", "{oops", False, "malformed"),)), "malformed_call"),
        (Outcome("9", (Called("frobnicate", "{}", False, "unknown_tool"),)), "wrong_tool"),
        (Outcome("9", (ran("calculate"),)), "wrong_tool"),
        (Outcome("9", (ran("convert_units", '{"value": 6, "from_unit": "miles"}'),)), "wrong_arguments"),
        (Outcome("9", (ran("convert_units", '{"value": 5.0, "from_unit": "Miles"}', ok=False),)), "tool_error"),
        (Outcome("9", (ran("convert_units", '{"value": 5.0, "from_unit": "Miles"}'),)), "wrong_answer"),
        (Outcome("9", (ran("convert_units"),) * 3), "loop"),
        (Outcome("8", (ran("convert_units"),), limit="8 steps are spent"), "loop"),
        (Outcome(None, broken="the server went away"), "engine_error"),
    ],
)
def test_one_code_per_failure(outcome: Outcome, code: str | None) -> None:
    got = score(task(answer=("8",), calls=REFERENCE), outcome, EMPTY, EMPTY)
    assert got.code == code
    assert got.success is (None if code == "engine_error" else code is None)
    assert (got.reason is None) is (code is None)


def test_a_mended_call_is_no_malformed_one() -> None:
    calls = (
        Called("convert_units", "{", False, "malformed"),
        ran("convert_units", '{"value": 5, "from_unit": "miles"}'),
    )
    assert score(task(answer=("8",), calls=REFERENCE), Outcome("9", calls), EMPTY, EMPTY).code == "wrong_answer"
    assert score(task(answer=("8",), calls=REFERENCE), Outcome("8", calls), EMPTY, EMPTY).success


def test_a_wrong_state_is_named() -> None:
    got = score(
        task(state={"todos": ["milk"]}), Outcome("Done", (ran("add_todo"),)), EMPTY, {**EMPTY, "todos": ["silk"]}
    )
    assert got.code == "wrong_state"
    assert "silk" in str(got.reason)


def test_any_path_to_the_right_end_is_a_success() -> None:
    assert score(task(answer=("8",), calls=REFERENCE), Outcome("8", (ran("calculate"),)), EMPTY, EMPTY).success
    assert score(task(answer=("cannot",), calls=()), Outcome("I cannot"), EMPTY, EMPTY).success
