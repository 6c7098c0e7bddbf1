"""The task families of the embedded models: requests played through on the real tools.

An intent (`intents.py`) has phrasings with slots (in `phrasings/`, written by two authors: one for training, one for
test). Playing a request fills the slots, makes the right calls on the real tools, and words the answer from what the
tools returned. The same play makes training documents and test tasks, so both stand on one truth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .answers import Style, word_answer
from .intents import COMMUTATIVE, INTENTS, Facts, Recorder, Run, Slots
from .random_tools import NO_TOOL


@dataclass(frozen=True)
class Dialogue:
    """One request played through on the real tools.

    Attributes:
        turns: OpenAI messages from the user's request to the final answer.
        calls: the calls made, in order: (tool, arguments).
        facts: what the answer says.
    """

    turns: tuple[dict[str, Any], ...]
    calls: tuple[tuple[str, dict[str, Any]], ...]
    facts: Facts


@cache
def phrasings(split: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Phrasings of a split (`train` or `test`): family -> intent -> texts with slots.

    What the two authors happen to have both written counts as training: the test side has no such phrasing.
    """
    folder = Path(__file__).parent / "phrasings" / split
    found = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml"))}
    if split == "train":
        return {family: {i: tuple(texts) for i, texts in intents.items()} for family, intents in found.items()}
    trained = phrasings("train")
    return {
        family: {
            intent: tuple(t for t in texts if plain(t) not in {plain(known) for known in trained[family][intent]})
            for intent, texts in intents.items()
        }
        for family, intents in found.items()
    }


def plain(text: str) -> str:
    """A phrasing without case, spaces and marks: what makes two of them the same."""
    return "".join(c for c in text.lower() if c.isalnum() or c in "{}")


def _fill(text: str, slots: Mapping[str, Any]) -> str:
    for name, value in slots.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def ask_for(split: str, family: str, intent: str, rng: random.Random) -> tuple[str, Slots]:
    """One request of an intent: its text and the slots it was filled with."""
    text = rng.choice(phrasings(split)[family][intent])
    slots = INTENTS[family][intent].slots(rng)
    if intent in COMMUTATIVE and text.find("{b}") < text.find("{a}"):
        # The expression follows the order of the request: what is said first stands first.
        return _fill(text, slots), {"a": slots["b"], "b": slots["a"]}
    return _fill(text, slots), slots


def play(
    split: str,
    family: str,
    intent: str,
    rng: random.Random,
    style: Style,
    run: Run,
    *,
    ask_back: bool = True,
    ready: Callable[[], None] | None = None,
) -> Dialogue:
    """Play one request of an intent through on the real tools.

    Args:
        run: makes calls on the real tools; it prepares the world, too.
        ask_back: for intents with something missing, also play what follows the question.
        ready: called when the world is prepared and nothing has been asked yet.
    """
    spec = INTENTS[family][intent]
    text, slots = ask_for(split, family, intent, rng)
    if spec.prepare is not None:
        spec.prepare(rng, slots, run)
    if ready is not None:
        ready()
    recorder = Recorder(run)
    recorder.messages.append({"role": "user", "content": text})
    if spec.question is not None:
        brief, detailed, slot = spec.question
        question = brief if style.brief else _fill(detailed, slots)
        recorder.messages.append({"role": "assistant", "content": question})
        if not ask_back:
            return Dialogue(tuple(recorder.messages), (), Facts(question, question, ("?",)))
        recorder.messages.append({"role": "user", "content": str(slots[slot])})
    facts = spec.script(slots, recorder)
    answer = word_answer(style, facts.short, facts.long, tuple(name for name, _ in recorder.calls), rng)
    recorder.messages.append({"role": "assistant", "content": answer})
    return Dialogue(tuple(recorder.messages), tuple(recorder.calls), facts)


def refuse(split: str, intent: str, rng: random.Random, style: Style, texts: Iterable[str] | None = None) -> Dialogue:
    """A request that no tool serves (`other`), or small talk (`chat`)."""
    text = rng.choice(tuple(texts) if texts is not None else phrasings(split)["other"][intent])
    if intent == "chat":
        facts = Facts("Hello, I am here to help", "I am a small assistant and I work with tools", ())
    else:
        facts = Facts("No tool for that", f"I am sorry, {NO_TOOL}", ("tool",))
    answer = word_answer(style, facts.short, facts.long, (), rng)
    return Dialogue(({"role": "user", "content": text}, {"role": "assistant", "content": answer}), (), facts)
