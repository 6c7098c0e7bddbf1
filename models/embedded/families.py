"""The task families of the embedded models: requests played through on the real tools.

An intent (`intents/`) has phrasings with slots (in `phrasings/`, written by two authors: one for training, one for
test). Playing a request fills the slots, makes the right calls on the real tools, and words the answer from what the
tools returned. The same play makes training documents and test tasks, so both stand on one truth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...yaml_text import load_yaml
from .answers import CONFIRM, Style, word_answer
from .intents import INTENTS
from .intents.common import ASKING, Facts, Recorder, Run, Slots, fill
from .random_tools import NO_TOOL

COMMUTATIVE = {"calculate.add", "calculate.multiply"}
YES = ("yes", "Yes.", "yes please", "sure", "go ahead", "ok", "Yes, do it.", "please do", "yep", "fine", "do it")
GREETINGS = (
    *("hi, ", "Hello! ", "hey ", "Please: ", "ok, ", "Quick one: ", "so, ", "Good morning. ", "Next: ", "Right, "),
    *("Sorry to bother you. ", "um, ", "One more thing: ", "Hey there, ", "alright: ", "Hi! ", "Just a second - "),
)
THANKS = (" thanks", " Thanks!", " please", " Thank you.", " asap", " - thanks a lot", ", if you can", " now", " ok?")
CHAT = Facts(
    "I am here to help",
    "I am a small assistant that works with tools",
    "Ich helfe gern",
    "ich bin ein kleiner Assistent mit Werkzeugen",
    (),
)


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
    found = {file.stem: load_yaml(file.read_text(), str(file)) for file in sorted(folder.glob("*.yaml"))}
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


def misspelt(rng: random.Random, text: str) -> str:
    """`text` with one slip of the finger: two letters swapped, one left out, or one doubled."""
    at = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha() and text[i] != text[i + 1]]
    if len(text) < 5 or not at:
        return text
    i = rng.choice(at)
    swapped, dropped, doubled = text[i + 1] + text[i] + text[i + 2 :], text[i + 1 :], text[i] + text[i:]
    return text[:i] + rng.choice((swapped, dropped, doubled))


def _spoken(rng: random.Random, text: str) -> str:
    """Now and then as people type who are in a hurry, or polite."""
    roll = rng.random()
    if roll < 0.06:
        return text.lower() if "{" not in text else text[:1].lower() + text[1:]
    if roll < 0.1:
        return text.rstrip(".?!")
    if roll < 0.15:
        return rng.choice(GREETINGS) + text
    if roll < 0.19:
        return text + rng.choice(THANKS)
    return text


def ask_for(split: str, family: str, intent: str, rng: random.Random, text: str | None = None) -> tuple[str, Slots]:
    """One request of an intent: its phrasing (`text`, or a drawn one), slots unfilled, and the values to fill in."""
    if text is None:
        text = rng.choice(phrasings(split)[family][intent])
    if split == "train":
        text = _spoken(rng, text)
    slots = INTENTS[family][intent].slots(rng)
    if intent in COMMUTATIVE and text.find("{b}") < text.find("{a}"):
        # The expression follows the order of the request: what is said first stands first.
        return text, slots | {"a": slots["a"], "b": slots["b"], "_first": "b"}
    return text, slots


def request(split: str, family: str, intent: str, rng: random.Random) -> str:
    """The text of one request."""
    return fill(*ask_for(split, family, intent, rng))


def play(
    split: str,
    family: str,
    intent: str,
    rng: random.Random,
    style: Style,
    run: Run,
    *,
    text: str | None = None,
    ask_back: bool = True,
    slip: bool = False,
    ready: Callable[[], None] | None = None,
) -> Dialogue:
    """Play one request of an intent through on the real tools.

    Args:
        run: makes calls on the real tools; it prepares the world, too.
        text: the phrasing, slots unfilled; drawn by default.
        ask_back: for intents with something missing, also play what follows the question.
        slip: misspell the value that a tool can mend (`Intent.typo`).
        ready: called when the world is prepared and nothing has been asked yet.
    """
    spec = INTENTS[family][intent]
    text, slots = ask_for(split, family, intent, rng, text)
    slots = slots | ({"metric": style.units} if spec.units else {})
    if spec.prepare is not None:
        spec.prepare(rng, slots, run)
    if slip and spec.typo is not None:
        slots = slots | {spec.typo: misspelt(rng, str(slots[spec.typo]))}
    if ready is not None:
        ready()
    if slots.pop("_first", None) == "b":
        slots = slots | {"a": slots["b"], "b": slots["a"]}
        spoken = slots | {"a": slots["b"], "b": slots["a"]}
    else:
        spoken = slots
    recorder = Recorder(run)
    recorder.messages.append({"role": "user", "content": fill(text, spoken)})
    if spec.question is not None:
        english, german, slot = spec.question
        question = fill(german if style.language else english, slots)
        recorder.messages.append({"role": "assistant", "content": question})
        if not ask_back:
            return Dialogue(tuple(recorder.messages), (), Facts(english, english, german, german, (ASKING,)))
        recorder.messages.append({"role": "user", "content": str(slots[slot])})
    if spec.confirm is not None and style.confirm:
        question = f"{CONFIRM[style.language]} {fill(spec.confirm[1 if style.language else 0], slots)}"
        recorder.messages.append({"role": "assistant", "content": question})
        recorder.messages.append({"role": "user", "content": rng.choice(YES)})
    facts = spec.script(slots, recorder)
    if spec.verify is not None and style.verify and not facts.short.startswith("Error"):
        name, arguments = spec.verify(slots)
        recorder.one(name, **arguments)
    answer = word_answer(style, facts, tuple(name for name, _ in recorder.calls), rng)
    recorder.messages.append({"role": "assistant", "content": answer})
    return Dialogue(tuple(recorder.messages), tuple(recorder.calls), facts)


def refuse(split: str, intent: str, rng: random.Random, style: Style, texts: Iterable[str] | None = None) -> Dialogue:
    """A request that no tool serves (`other`), or small talk (`chat`)."""
    text = rng.choice(tuple(texts) if texts is not None else phrasings(split)["other"][intent])
    facts = CHAT if intent == "chat" else NO_TOOL
    answer = word_answer(style, facts, (), rng)
    return Dialogue(({"role": "user", "content": text}, {"role": "assistant", "content": answer}), (), facts)
