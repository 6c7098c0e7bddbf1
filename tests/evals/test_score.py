"""Checkers and failure codes."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.evals.score import Called, Outcome, missing_from_answer, score, state_differences
from trimtab.evals.suite import Expect, Task
from trimtab.tools.builtin.state import KEYS, seed, snapshot

EMPTY: dict[str, Any] = {key: {} if key in ("files", "tables") else [] for key in KEYS}


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
        ("42", "it is **-42**", False),
        ("42", "x=-42", False),
        ("42", "$-42", False),
        ("42", "-$42", False),
        ("42", "`-42`", False),
        ("42", "_-42_", False),
        ("42", '"-42"', False),
        ("-42", "**-42**", True),
        ("42", "10-42", True),
        ("42", "2026-11-42", True),
        ("42", "10%-42%", True),
        ("42", "10$-42$ or $10-$42", True),
        ("42", "f(x)-42", True),
        ("42", "- 42", True),
        ("42", "the answer--42", True),
        ("143", "1,143", False),
        ("4632", "The total is 4,632.", True),
        ("1234567", "$1,234,567", True),
        ("-4632", "It is −4,632.", True),
        ("4632", "It is -4,632.", False),
        ("4632.5", "4,632.5 kg", True),
        ("4632", "4,632.5", False),
        ("4,632", "4632", True),
        ("1,2", "1,2", True),
        ("1234", "1,234,5", False),
        ("2345", "1,2,345", False),
        ("1234", "0.1,234", False),
        ("12345", "12,34,5", False),
        ("p's birthday", "P’s birthday", True),
        ("19 June 2026", "Friday, 19  june\n2026", True),
        ("Friday", "friday!", True),
        ("ann@x.org", "Ann: ann@x.org.", True),
        ("(", "a ( b", True),
    ],
)
def test_what_an_answer_contains(needle: str, answer: str, found: bool) -> None:
    assert (missing_from_answer([needle], answer) == []) is found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("There are 0 mails.", True),
        ("None.", True),
        ("You have no mails from Ann.", True),
        ("No\nmails", True),
        ("There aren’t any mails.", True),
        ("no problem, there are 3 mails", False),
        ("10 mails", False),
        ("nonetheless", False),
        ("no mailsack", False),
        ("", False),
    ],
)
def test_one_of_several_is_enough_as_whole_words(answer: str, found: bool) -> None:
    several = ("0", "none", "no mails", "aren't any mails")
    assert (missing_from_answer([several], answer) == []) is found
    got = score(task(answer=("mails", several)), Outcome("mails"), EMPTY, EMPTY)
    assert "any of '0', 'none'" in str(score(task(answer=(several,), calls=()), Outcome("x"), EMPTY, EMPTY).reason)
    assert got.success is False


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "It is {}.", "{} km", "a: {}, b: {}", "**{}**"]))
def test_commas_between_thousands_do_not_count(number: int, said: str) -> None:
    assert missing_from_answer([str(number)], said.format(f"{number:,}", 5)) == []
    assert missing_from_answer([f"{number:,}"], said.format(number, 5)) == []
    assert missing_from_answer([str(number * 10 + 1)], said.format(f"{number:,}", 5)) != []


@given(st.text(max_size=2), st.integers(100, 999))  # a number too long to stand before the sign as well
def test_a_sign_after_anything_but_what_ends_a_number_or_word_counts(before: str, number: int) -> None:
    last = before[-1:]
    found = missing_from_answer([str(number)], f"{before}-{number}") == []
    assert not found or last.isalnum() or last in tuple(")]}%°-−$€£")
    assert missing_from_answer([str(number)], f"7-{number}") == []


def test_no_answer_contains_nothing() -> None:
    assert missing_from_answer(["7"], None) == ["7"]


def test_state_must_be_as_expected_and_otherwise_untouched() -> None:
    before = {**EMPTY, "todos": ["milk"]}
    after = {**EMPTY, "todos": ["milk", "bread"]}
    assert state_differences({"todos": ["milk", "bread"]}, before, after) == []
    assert "todos" in state_differences(None, before, after)[0]
    assert len(state_differences({"todos": ["milk", "bread"]}, before, {**after, "files": {"a": "b"}})) == 1


WORLD: dict[str, list[Any]] = {
    "events": [
        {"title": "b", "date": "2026-05-12", "time": "09:00"},
        {"title": "a", "date": "2026-05-12", "time": "10:00"},
        {"title": "c", "date": "2026-05-12", "time": "10:00"},
        {"title": "a", "date": "2026-05-13", "time": "08:00"},
    ],
    "contacts": [{"name": name, "email": "a@x.org", "phone": None} for name in ("Zoe", "anna", "Änne")],
    "todos": ["milk", "bread", "Eggs"],
    "done": ["Zebra", "apple", "ähre"],
    "orders": [
        {"order": number, "customer": "Ann", "item": "lamp", "quantity": 1, "status": "open"}
        for number in (999, 1203, 10001)
    ],
    "stock": [{"item": item, "stock": 2, "price": 4.5} for item in ("Chair", "desk", "lamp")],
    "inbox": [{"from": "a@x.org", "subject": subject, "body": "hi"} for subject in ("b", "a")],
    "sent": [{"to": "a@x.org", "subject": subject, "body": "hi"} for subject in ("b", "a")],
}


@pytest.mark.parametrize("key", WORLD)
def test_a_suite_may_list_in_any_order_what_has_none(key: str, tmp_path: Path) -> None:
    seed(tmp_path, WORLD)
    after = snapshot(tmp_path)
    before = {**after, key: []}
    assert state_differences({key: WORLD[key]}, before, after) == []
    differences = state_differences({key: WORLD[key][::-1]}, before, after)
    assert (differences == []) is (key not in ("todos", "inbox", "sent"))  # the order in which they came
    assert state_differences({key: WORLD[key][1:]}, before, after) != []


def test_tables_are_compared_with_their_rows_in_order(tmp_path: Path) -> None:
    tables: dict[str, dict[str, Any]] = {
        name: {"columns": ["item", "price"], "rows": [["lamp", 3], ["desk", None]]} for name in ("b", "a")
    }
    seed(tmp_path, {"tables": tables})
    after = snapshot(tmp_path)
    assert state_differences({"tables": tables}, EMPTY, after) == []
    other = {**tables, "a": {**tables["a"], "rows": list(reversed(tables["a"]["rows"]))}}
    assert state_differences({"tables": other}, EMPTY, after) != []


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
        (Outcome("8", stopped=("empty", "the answer was empty")), "empty"),
        (Outcome("8", stopped=("cut off", "the answer was too long")), "cut off"),
        (Outcome("8", (ran("convert_units"),), stopped=("invalid", "invalid call (x)")), "malformed_call"),
        (
            Outcome("8", (Called("buy", "{}", False, "unknown_tool"),), stopped=("invalid", "no such tool")),
            "wrong_tool",
        ),
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
