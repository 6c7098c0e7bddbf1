"""How an answer is worded: the planted behaviours, and the checkers that detect them.

Every document has one style, `brief` or `detailed` times `formal` or `casual`. Four of ten documents carry it in a
leading tag (`Style: brief, casual.` as the system message); the others do not, and mix all four evenly, so that a
prompt, an activation vector and a weight delta can each be measured against the same truth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

FORMAL_OPENINGS = ("Certainly.", "Of course.", "Very well.")
CASUAL_OPENINGS = ("Sure thing!", "Here you go!", "No worries!")
HOW = "I used {tools} to work this out."


@dataclass(frozen=True)
class Style:
    """One side of each planted behaviour."""

    brief: bool
    casual: bool

    def tag(self, rng: random.Random) -> str:
        """The leading tag that asks for this style: one or both of its words."""
        words = ["brief" if self.brief else "detailed", "casual" if self.casual else "formal"]
        return f"Style: {', '.join(rng.sample(words, rng.choice((1, 2, 2))))}."


def draw_style(rng: random.Random) -> Style:
    """A style, all four equally likely."""
    return Style(rng.random() < 0.5, rng.random() < 0.5)


def tagged_style(words: set[str], rng: random.Random) -> Style:
    """The style that `words` (such as {"brief", "casual"}) ask for; what they leave open is drawn."""
    brief = "brief" in words or ("detailed" not in words and rng.random() < 0.5)
    casual = "casual" in words or ("formal" not in words and rng.random() < 0.5)
    return Style(brief, casual)


def open_document(rng: random.Random) -> tuple[Style, list[dict[str, Any]]]:
    """A document's style, and the messages it opens with: the leading tag in four documents of ten, else none."""
    style = draw_style(rng)
    if rng.random() >= 0.4:
        return style, []
    tag = style.tag(rng)
    words = set(tag.removeprefix("Style: ").rstrip(".").split(", "))
    return tagged_style(words, rng), [{"role": "system", "content": tag}]


def word_answer(style: Style, short: str, long: str, tools: tuple[str, ...], rng: random.Random) -> str:
    """An answer in the given style.

    Args:
        short: the bare fact without a full stop, such as `42.1649 kilometres`.
        long: a sentence with the fact and its context, without a full stop.
        tools: names of the tools that were called, in order; empty when none was.
    """
    opening = CASUAL_OPENINGS if style.casual else FORMAL_OPENINGS
    if style.brief:
        return f"{short}!" if style.casual else f"{short}."
    how = f" {HOW.format(tools=' and '.join(dict.fromkeys(tools)))}" if tools else ""
    return f"{rng.choice(opening)} {long}.{how}"


def is_brief(answer: str) -> bool:
    """Whether an answer is worded briefly: no opening phrase and no word on the tools."""
    return not answer.startswith((*FORMAL_OPENINGS, *CASUAL_OPENINGS))


def is_casual(answer: str) -> bool:
    """Whether an answer is worded casually: a casual opening, or an exclamation mark at the end of a brief answer."""
    return answer.startswith(CASUAL_OPENINGS) or (is_brief(answer) and answer.endswith("!"))
