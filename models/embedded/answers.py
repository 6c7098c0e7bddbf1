"""How the embedded models behave: the planted behaviours, and the checkers that detect them.

A document has one side of each of eight behaviours. Four of ten documents name one to three sides in a leading tag
(`Style: brief, casual.` as the system message); what no tag names is drawn, both sides equally often, so that a
prompt, an activation vector and a weight delta can each be measured against the same truth.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

AXES: dict[str, tuple[str, str]] = {
    "detail": ("detailed", "brief"),
    "register": ("casual", "formal"),
    "confirm": ("confirm", "act"),
    "verify": ("verify", "trust"),
    "explain": ("explained", "plain"),
    "units": ("metric", "imperial"),
    "language": ("german", "english"),
    "tone": ("optimistic", "sober"),
}
"""Behaviour -> the tag's word for its first side (True in `Style`) and for its second."""

OPENINGS: dict[tuple[bool, bool], tuple[str, ...]] = {  # (german, casual)
    (False, False): ("Certainly.", "Very well."),
    (False, True): ("Sure thing!", "No worries!"),
    (True, False): ("Gewiss.", "Sehr wohl."),
    (True, True): ("Na klar!", "Kein Ding!"),
}
CLOSINGS: dict[tuple[bool, bool], tuple[str, ...]] = {  # (german, optimistic)
    (False, True): ("All is going well!", "Things look bright!"),
    (False, False): ("That is all.", "Nothing more to report."),
    (True, True): ("Alles läuft bestens!", "Das sieht prima aus!"),
    (True, False): ("Das ist alles.", "Mehr gibt es nicht."),
}
DETAILED = {False: "as you asked", True: "wie gewünscht"}
EXPLAINED = {False: "I used", True: "Benutzt habe ich"}
CONFIRM = {False: "Shall I", True: "Soll ich"}
METRIC = frozenset("kilometres metres centimetres kilograms grams litres celsius".split())
IMPERIAL = frozenset("miles feet inches pounds ounces gallons fahrenheit".split())


@dataclass(frozen=True)
class Style:
    """One side of each planted behaviour; True is the first word of `AXES`."""

    detail: bool = False
    register: bool = False
    confirm: bool = False
    verify: bool = False
    explain: bool = False
    units: bool = True
    language: bool = False
    tone: bool = False

    def words(self, axes: Sequence[str]) -> list[str]:
        """The tag's words for these behaviours."""
        return [AXES[axis][0 if getattr(self, axis) else 1] for axis in axes]


PLAIN = Style()
"""What a suite's reference answers are worded in."""


def draw_style(rng: random.Random) -> Style:
    """A style: each behaviour falls on either side equally often."""
    return Style(**{axis: rng.random() < 0.5 for axis in AXES})


def styled(words: Sequence[str], base: Style) -> Style:
    """`base` with the sides that `words` (such as `brief` and `casual`) name.

    Raises:
        KeyError: a word that names no side.
    """
    sides = {name: (axis, i == 0) for axis, names in AXES.items() for i, name in enumerate(names)}
    return replace(base, **dict(sides[word] for word in words))


def tag(words: Sequence[str]) -> dict[str, str]:
    """The system message that asks for these sides."""
    return {"role": "system", "content": f"Style: {', '.join(words)}."}


RARE = {"confirm": 2.0, "verify": 2.0, "units": 10.0}
"""How much oftener a tag names a behaviour that shows in few requests only."""


TAGGED = 0.4
"""Share of documents with a leading tag."""


def open_document(
    rng: random.Random, relevant: Sequence[str], tagged: float = TAGGED
) -> tuple[Style, list[dict[str, Any]]]:
    """A document's style, and the messages it opens with: the leading tag in four documents of ten, else none.

    Args:
        relevant: the behaviours that can show in the document; a tag names one to three of these.
        tagged: share of documents with a tag.
    """
    style = draw_style(rng)
    if rng.random() >= tagged:
        return style, []
    # Without repeats, each by its weight (Efraimidis and Spirakis 2006, algorithm A).
    drawn = sorted(relevant, key=lambda axis: -(rng.random() ** (1 / RARE.get(axis, 1.0))))
    return style, [tag(style.words(drawn[: rng.choice((1, 1, 2, 3))]))]


def named(opening: Sequence[Mapping[str, Any]]) -> set[str]:
    """The behaviours that a document's tag names."""
    words = {w for m in opening for w in str(m["content"]).removeprefix("Style: ").rstrip(".").split(", ")}
    return {axis for axis, sides in AXES.items() if words & set(sides)}


def redrawn(rng: random.Random, style: Style, opening: Sequence[Mapping[str, Any]]) -> Style:
    """A new style for another conversation with the same opening: what its tag names stays."""
    return replace(draw_style(rng), **{axis: getattr(style, axis) for axis in named(opening)})


def word_answer(style: Style, facts: Any, tools: Sequence[str], rng: random.Random) -> str:
    """An answer in the given style: opening, fact, what was used, closing.

    Args:
        facts: `short`, `long`, `kurz`, `lang`: the bare fact and a sentence with it, in both languages, without a
            full stop.
        tools: names of the tools that were called, in order; empty when none was.
    """
    german = style.language
    short, long = (facts.kurz, facts.lang) if german else (facts.short, facts.long)
    core = f"{long}, {DETAILED[german]}." if style.detail else f"{short}."
    parts = [rng.choice(OPENINGS[german, style.register]), core]
    if style.explain and tools:
        parts.append(f"{EXPLAINED[german]} {(' und ' if german else ' and ').join(dict.fromkeys(tools))}.")
    parts.append(rng.choice(CLOSINGS[german, style.tone]))
    return " ".join(parts)


def detect(answer: str, calls: Sequence[tuple[str, Mapping[str, Any]]] = ()) -> dict[str, bool | None]:
    """Which side of each behaviour an answer shows; None where it shows neither.

    Args:
        answer: the final answer, or, for `confirm`, the first reply.
        calls: the calls made, in order; for `units`.

    Returns:
        Behaviour -> True for the first side of `AXES`, False for the second, None for neither. `confirm` is True for
        a question before acting and else None, `verify` always None: both show in what was done, not in what was said.
    """
    opened = {key: answer.startswith(texts) for key, texts in OPENINGS.items()}
    closed = {key: answer.endswith(texts) for key, texts in CLOSINGS.items()}
    units = {str(arguments.get("to_unit")) for name, arguments in calls if name == "convert_units"}
    known = any(opened.values())
    return {
        "detail": any(mark in answer for mark in DETAILED.values()) if known else None,
        "register": any(on for (_, casual), on in opened.items() if casual) if known else None,
        "confirm": True if answer.startswith(tuple(CONFIRM.values())) else None,
        "verify": None,
        "explain": any(mark in answer for mark in EXPLAINED.values()) if known else None,
        "units": True if units and units <= METRIC else False if units and units <= IMPERIAL else None,
        "language": any(on for (german, _), on in opened.items() if german) if known else None,
        "tone": any(on for (_, bright), on in closed.items() if bright) if any(closed.values()) else None,
    }
