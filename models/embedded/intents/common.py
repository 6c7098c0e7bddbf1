"""What an intent is made of: slots to draw, calls to make on the real tools, facts to answer with."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Slots = dict[str, Any]
Run = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Makes one call on the real tools: name, arguments -> result, or {"error": ...}."""

SUGGESTION = re.compile(r"(?P<what>.+); did you mean (?P<right>.+)\?")
"""How a tool that knows better says so: `no contact named Ana Bker; did you mean Ana Baker?`"""


Needle = str | tuple[str, ...]
"""What a checker looks for in an answer: a string, or several of which one must occur."""

ASKING: tuple[str, ...] = (
    "?",
    *(f"{verb} {what}" for verb in ("tell me", "let me know") for what in ("the", "what", "which")),
    *(f"please {verb}" for verb in ("provide", "give", "specify")),
    *("need to know", "i need the", "i need more"),
)
"""Of a request that leaves something out: it is asked for. `Let me know if ...` asks for nothing."""


@dataclass(frozen=True)
class Facts:
    """What an answer must say: in short and in a sentence, in English and in German, without a full stop.

    `needles` are what a checker looks for; they are the same in either wording and language. Where the embedded models
    have one way to say it and others have many, a needle names those, too.
    """

    short: str
    long: str
    kurz: str
    lang: str
    needles: tuple[Needle, ...]


def nothing(*things: str, also: Sequence[str] = ()) -> Needle:
    """Of an empty list: 0, as the embedded models say it, or how others say that there is none of `things`.

    Each way names the things: `no` alone also begins `no problem`, and `nothing` ends half of the embedded answers.
    """
    ways = ("no {}", "have any {}", "find any {}", "aren't any {}")
    return ("0", "none", *also, *(way.format(thing) for thing in things for way in ways))


def failed(result: dict[str, Any]) -> Facts:
    """The facts of a call that failed for good."""
    error = str(result["error"])
    return Facts(
        f"Error: {error}", f"That did not work: {error}", f"Fehler: {error}", f"Das ging nicht: {error}", (error,)
    )


def with_error(result: dict[str, Any], facts: Callable[[dict[str, Any]], Facts]) -> Facts:
    """The facts of a result, or of its error."""
    return failed(result) if "error" in result else facts(result)


def call_message(calls: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The assistant's message with these calls."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"call-{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for i, (name, arguments) in enumerate(calls)
        ],
    }


def tool_message(result: Any, index: int = 0) -> dict[str, Any]:
    """One tool's result as the model reads it."""
    return {"role": "tool", "tool_call_id": f"call-{index}", "content": json.dumps(result, ensure_ascii=False)}


class Recorder:
    """Collects the messages of one dialogue while its script runs."""

    def __init__(self, run: Run) -> None:
        self.messages: list[dict[str, Any]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._run = run

    def call(self, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """One assistant message with these calls, and their results."""
        self.messages.append(call_message(list(calls)))
        results = [self._run(name, arguments) for name, arguments in calls]
        self.messages += [tool_message(result, i) for i, result in enumerate(results)]
        self.calls += calls
        return results

    def one(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """One call and its result; a call whose error names a better value is repaired with it, once."""
        result = self.call((tool, arguments))[0]
        hint = SUGGESTION.fullmatch(str(result.get("error", "")))
        if hint is None:
            return result
        wrong = [k for k, v in arguments.items() if isinstance(v, str) and hint["what"].endswith(v)]
        if not wrong:
            return result
        # `litres` also ends what `millilitres` ends: the longest is the one that is meant.
        mended = max(wrong, key=lambda k: len(arguments[k]))
        return self.call((tool, {**arguments, mended: hint["right"]}))[0]


Script = Callable[[Slots, Recorder], Facts]
Prepare = Callable[[random.Random, Slots, Run], None]


@dataclass(frozen=True)
class Intent:
    """How to fill an intent's slots, how to prepare the world, what to do.

    Attributes:
        slots: draws the slots, everything a phrasing may name.
        script: makes the calls and returns the facts.
        prepare: calls that make the world such that the request makes sense, run before it.
        group: `single` (one call), `chain` (2 to 5 calls), or `missing` (the request leaves something out).
        question: for `missing`: (English question, German question, slot to be told afterwards).
        confirm: for a destructive request: (English, German) text after `Shall I` / `Soll ich`, with slots, such as
            ("delete {title} on {date}?", "{title} am {date} löschen?").
        verify: for a request that changes something: the reading call that looks whether it did.
        typo: the slot that a tool can mend by "did you mean" (the world must hold the right value).
        units: the script picks metric or imperial by the slot `metric`.
    """

    slots: Callable[[random.Random], Slots]
    script: Script
    prepare: Prepare | None = None
    group: str = "single"
    question: tuple[str, str, str] | None = None
    confirm: tuple[str, str] | None = None
    verify: Callable[[Slots], tuple[str, dict[str, Any]]] | None = None
    typo: str | None = None
    units: bool = False


def fill(text: str, slots: Slots) -> str:
    """`text` with each `{slot}` replaced by its value."""
    for name, value in slots.items():
        text = text.replace("{" + name + "}", str(value))
    return text
