"""Did a task succeed, and if not, what went wrong first: one code per failed task.

    no_call          no tool was called
    malformed_call   arguments that are not JSON or do not fit the schema, and never mended
    wrong_tool       an unknown tool, or other tools than the reference path
    wrong_arguments  the right tools with other arguments than the reference path
    tool_error       the last call failed in the tool
    loop             a budget ran out, or the same call was made three times
    empty, cut, ...  the agent stopped the run without an answer: the stop's own kind, where no code above says it
    wrong_answer     the answer lacks something it must contain
    wrong_state      the world afterwards is not the expected one
    engine_error     the engine or the machinery failed: counted and shown, and no failure of the model

Success asks only for the answer and the final state, however they were reached.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .suite import Task

ORDERED_BY: dict[str, tuple[str, ...]] = {
    "events": ("date", "time", "title"),
    "contacts": ("name",),
    "done": (),
    "orders": ("order",),
    "stock": ("item",),
}
"""What a snapshot sorts, and by which fields; none: by the texts themselves."""
LOOP = 3
"""So many equal calls are a loop."""


@dataclass(frozen=True)
class Called:
    """One call as it went. `fault` is what kept it from running, or None; `ok` is the tool's own verdict."""

    name: str
    arguments: str
    ok: bool
    fault: Literal["malformed", "unknown_tool"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        limit: the message of a spent budget.
        stopped: kind and reason of any other stop, such as an empty reply; a run that was stopped has no answer.
        broken: the message of an infrastructure error.
    """

    answer: str | None
    calls: tuple[Called, ...] = ()
    limit: str | None = None
    stopped: tuple[str, str] | None = None
    broken: str | None = None


@dataclass(frozen=True)
class Score:
    """`success` is None where the infrastructure failed; `code` and `reason` are None on success."""

    success: bool | None
    code: str | None = None
    reason: str | None = None


def score(task: Task, outcome: Outcome, before: Mapping[str, Any], after: Mapping[str, Any]) -> Score:
    """Judge one run by its answer and the state it left.

    Args:
        before, after: snapshots of the state.
    """
    if outcome.broken is not None:
        return Score(None, "engine_error", outcome.broken)
    missing = missing_from_answer(task.expect.answer, outcome.answer)
    touched = state_differences(task.expect.state, before, after)
    if outcome.limit is None and outcome.stopped is None and not missing and not touched:
        return Score(True)
    code, reason = _diagnose(task, outcome)
    if code is not None:
        return Score(False, code, reason)
    if touched:
        return Score(False, "wrong_state", touched[0])
    lacks = repr(missing[0]) if isinstance(missing[0], str) else f"any of {', '.join(map(repr, missing[0]))}"
    return Score(False, "wrong_answer", f"the answer lacks {lacks}")


Needle = str | tuple[str, ...]


def missing_from_answer(expected: Sequence[Needle], answer: str | None) -> list[Needle]:
    """Those of `expected` that do not occur in `answer`; case, runs of white space and curly apostrophes do not count.

    A number is a whole number: neither 17, 7.5 nor -7 contains 7. A hyphen after a letter, a digit or what closes
    something is no sign but a range's, a date's or a difference's: 3-7, 2026-05-7 and 10%-7% contain 7. Commas between
    thousands do not count: 1,432 and 1432 are the same, and neither contains 432.

    Of several strings one must occur, as whole words: neither `nonetheless` nor `no mailbox` has `none` or `no mail`.
    """
    text = _wording(answer or "")
    return [needle for needle in expected if not _holds(text, needle)]


def _holds(text: str, needle: Needle) -> bool:
    if isinstance(needle, str):
        return _occurs(_wording(needle), text)
    return any(_occurs(_wording(one), text, words=True) for one in needle)


def _plain(text: str) -> str:
    return " ".join(text.replace("−", "-").split()).casefold()


# Not in 1,234,5 or 2026,143, which are lists, nor behind a decimal point.
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")


def _wording(text: str) -> str:
    return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), _plain(text).replace("’", "'"))


# A minus at the beginning, after `_` or after what is neither a word nor closes something, perhaps before a currency.
_NO_MINUS = "".join(
    rf"(?<!{before}-{unit})" for unit in ("", "[$€£]") for before in ("^", "_", r"[^\w)\]}%°$€£-]", r"(?<!\d)[$€£]")
)


def _occurs(needle: str, text: str, *, words: bool = False) -> bool:
    before = r"(?<!\d)(?<!\d[.,])" + _NO_MINUS if needle[:1].isdigit() else ""
    after = r"(?![.,]?\d)" if needle[-1:].isdigit() else ""
    if words:
        before += r"(?<!\w)" if needle[:1].isalnum() else ""
        after += r"(?!\w)" if needle[-1:].isalnum() else ""
    return re.search(before + re.escape(needle) + after, text) is not None


def state_differences(
    expected: Mapping[str, Any] | None, before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[str]:
    """What is wrong with the final state, one line per key: not as expected, or changed though nothing said so."""
    wanted = {**before, **{key: _sorted(key, value) for key, value in (expected or {}).items()}}
    lines = []
    for key in sorted({*wanted, *after}):
        want, got = wanted.get(key), after.get(key)
        if want != got and (want or got):
            lines.append(f"{key} is {_short(got)}, expected {_short(want)}")
    return lines


def _sorted(key: str, value: Any) -> Any:
    # A snapshot lists these in an order of its own, which says nothing; a suite may list them in any. To-dos and mails
    # are in the order in which they came, and so are the rows of a table.
    fields = ORDERED_BY.get(key)
    if fields is None:
        return value
    return sorted(value, key=lambda one: tuple(one[field] for field in fields) if fields else one)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _diagnose(task: Task, outcome: Outcome) -> tuple[str | None, str | None]:
    """The first thing that went wrong on the way, if any step of the way tells."""
    calls = outcome.calls
    if outcome.limit is not None:
        return "loop", outcome.limit
    if outcome.stopped is not None:
        return _stopped(*outcome.stopped, calls)
    repeated = Counter((c.name, c.arguments) for c in calls).most_common(1)
    if repeated and repeated[0][1] >= LOOP:
        return "loop", f"{repeated[0][0][0]} was called {repeated[0][1]} times with the same arguments"
    reference = task.expect.calls
    if not calls and reference != ():
        return "no_call", "no tool was called"
    ran = [c for c in calls if c.fault is None]
    if calls and calls[-1].fault == "malformed":
        return "malformed_call", f"{calls[-1].name}: {calls[-1].arguments[:120]}"
    if calls and calls[-1].fault == "unknown_tool":
        return "wrong_tool", f"there is no tool {calls[-1].name!r}"
    if reference is not None:
        wanted, got = Counter(name for name, _ in reference), Counter(c.name for c in ran)
        if wanted != got:
            return "wrong_tool", f"called {_listed(got)} instead of {_listed(wanted)}"
        if Counter(_key(name, arguments) for name, arguments in reference) != Counter(
            _key(c.name, _parsed(c.arguments)) for c in ran
        ):
            return "wrong_arguments", "; ".join(f"{c.name} {c.arguments}" for c in ran)[:200]
    if calls and not calls[-1].ok:
        return "tool_error", f"{calls[-1].name} {calls[-1].arguments}"[:200]
    return None, None


def _stopped(kind: str, reason: str, calls: Sequence[Called]) -> tuple[str, str]:
    if kind != "invalid":
        return kind, reason
    return "wrong_tool" if calls and calls[-1].fault == "unknown_tool" else "malformed_call", reason


def _listed(names: Counter[str]) -> str:
    return ", ".join(sorted(names.elements())) or "nothing"


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _key(name: str, arguments: Any) -> str:
    return json.dumps([name, _canonical(arguments)], sort_keys=True, ensure_ascii=False)


def _canonical(value: Any) -> Any:
    """Arguments up to what no tool cares about: case and spaces of text, 5 and 5.0, an optional left out or null."""
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
