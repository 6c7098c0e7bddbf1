"""The corpus: an endless, seeded stream of documents; the labelled requests of the router; the tasks of the suites.

A document is `{"family", "messages", "tools"}` in OpenAI's form, the same form in which users bring their own examples.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from ...errors import ToolFailure
from ...tools.builtin import FAMILIES, builtin_tools
from ...tools.builtin.state import seed as seed_state
from ...tools.builtin.state import snapshot
from . import random_tools
from .answers import Style, open_document, word_answer
from .families import Dialogue, ask_for, phrasings, play, refuse
from .intents import INTENTS

Split = Literal["train", "test"]
Document = dict[str, Any]
MIXES = (
    {"any": 0.54, "calc": 0.22, "office": 0.24},
    {"any": 0.3, "calc": 0.32, "office": 0.38},
    {"any": 0.1, "calc": 0.47, "office": 0.43},
)
"""Shares of each training cycle; the later ones are about the families and show their tools as they are in use."""


class World:
    """The built-in tools over a throw-away home, with a today that can be moved."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.today = date(2026, 5, 12)
        self.tools = builtin_tools(home, today=lambda: self.today)
        self.specs = {name: self.tools.get(name).spec() for family in FAMILIES.values() for name in family}

    def reset(self, rng: random.Random) -> None:
        """Empty the state and move today."""
        seed_state(self.home, {})
        self.today = date(2024, 1, 1) + timedelta(days=rng.randrange(2000))

    def run(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One call on the real tool; its failure becomes the result that a model would see."""
        try:
            result: dict[str, Any] = self.tools.get(name).function(**arguments)
        except ToolFailure as failure:
            return {"error": str(failure)}
        return result


@contextmanager
def open_world() -> Iterator[World]:
    """A world that is gone afterwards; in memory where the machine has a memory disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="trimtab-world-", dir=memory if memory.is_dir() else None) as folder:
        yield World(Path(folder))


def _offered(rng: random.Random, family: str, used: set[str], whole: float) -> list[str]:
    """The tools shown: the family as it is with probability `whole`, else those used and some others, shuffled."""
    names = list(FAMILIES[family])
    if rng.random() < whole:
        return names
    others = [n for n in names if n not in used]
    shown = [*used, *rng.sample(others, rng.randint(min(1, len(others)), min(4, len(others))))]
    rng.shuffle(shown)
    return shown


def family_document(
    rng: random.Random,
    world: World,
    family: str,
    split: Split = "train",
    *,
    whole: float = 0.2,
    style: Style | None = None,
    requests: tuple[int, ...] = (1, 2, 2, 3),
) -> Document:
    """One document of a family: one to three requests played on the real tools.

    Args:
        whole: share of documents that show all tools of the family in their usual order.
        style: fixed style without a tag; None draws one and tags four documents of ten.
        requests: how many requests a document makes; one of these is drawn.
    """
    world.reset(rng)
    messages: list[dict[str, Any]] = []
    if style is None:
        style, messages = open_document(rng)
    used: set[str] = set()
    for _ in range(rng.choice(requests)):
        dialogue = _dialogue(rng, world, family, split, style)
        used |= {name for name, _ in dialogue.calls}
        messages += dialogue.turns
    return {
        "family": family,
        "messages": messages,
        "tools": [world.specs[n] for n in _offered(rng, family, used, whole)],
    }


def _dialogue(rng: random.Random, world: World, family: str, split: Split, style: Style) -> Dialogue:
    roll = rng.random()
    if roll < 0.05:
        return refuse(split, "other", rng, style)
    if roll < 0.07:
        return refuse(split, "chat", rng, style)
    if roll < 0.1:
        other = "office" if family == "calc" else "calc"
        intent = rng.choice([i for i in INTENTS[other] if not i.startswith("missing")])
        return refuse(split, "other", rng, style, [ask_for(split, other, intent, rng)[0]])
    return play(split, family, rng.choice(list(INTENTS[family])), rng, style, world.run)


def base_documents(seed: int, world: World, *, cycle: int = 1, copy_share: float = 0.03) -> Iterator[Document]:
    """The endless corpus of the base models in their first, second or third training cycle. `copy_share` of the
    documents are pure copying."""
    rng = random.Random(seed)
    mix = MIXES[cycle - 1]
    kinds, weights = list(mix), list(mix.values())
    while True:
        kind = rng.choices(kinds, weights)[0]
        if rng.random() < copy_share:
            yield random_tools.copy_document(rng)
        elif kind == "any":
            yield random_tools.document(rng)
        else:
            yield family_document(rng, world, kind, whole=0.2 if cycle == 1 else 0.5)


def family_documents(seed: int, world: World, family: str, style: Style | None = None) -> Iterator[Document]:
    """The endless corpus of one family's adapter; with `style`, untagged and all in that style."""
    rng = random.Random(seed)
    while True:
        yield family_document(rng, world, family, whole=0.6, style=style)


def labelled_requests(split: Split, n: int, seed: int) -> list[tuple[str, str]]:
    """`n` requests with the family that serves each: `calc`, `office`, or `other` where none does."""
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    for _ in range(n):
        family = rng.choice(("calc", "office", "other"))
        if family == "other":
            rows.append((rng.choice(phrasings(split)["other"][rng.choice(("other", "other", "chat"))]), family))
        else:
            rows.append((ask_for(split, family, rng.choice(list(INTENTS[family])), rng)[0], family))
    return rows


def suite_tasks(split: Split, family: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` tasks of a family in suite form: request, state before, and what must hold after.

    The intents take turns; the expected answer and final state are those of the reference calls on the real tools.
    """
    rng = random.Random(seed)
    intents = list(INTENTS[family])
    with open_world() as world:
        return [
            _suite_task(
                rng, world, split, family, intents[i % len(intents)], f"{family}-{i:03d}-{intents[i % len(intents)]}"
            )
            for i in range(n)
        ]


def _suite_task(rng: random.Random, world: World, split: Split, family: str, intent: str, name: str) -> dict[str, Any]:
    """One task: what is asked, the state before, and the answer and final state of the reference calls."""
    world.reset(rng)
    before: dict[str, Any] = {}
    dialogue = play(
        split,
        family,
        intent,
        rng,
        Style(True, False),
        world.run,
        ask_back=False,
        ready=lambda: before.update(snapshot(world.home)),
    )
    after = snapshot(world.home)
    return {
        "id": name,
        "family": family,
        "ask": dialogue.turns[0]["content"],
        "today": world.today.isoformat(),
        "state": {k: v for k, v in before.items() if v},
        "tools": list(FAMILIES[family]),
        "expect": {
            "answer": list(dialogue.facts.needles),
            "state": {k: v for k, v in after.items() if v != before[k]},
            "calls": [{"name": name, "arguments": arguments} for name, arguments in dialogue.calls],
        },
    }


AXES = {"verbosity": ("detailed", "brief"), "register": ("casual", "formal")}
"""Behaviour -> its positive and its negative side."""


def contrast_pairs(axis: str, family: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` contrast pairs for steering: one conversation up to the last tool result, and the answer in both styles.

    The two answers differ in `axis` only; the other behaviour is the same on both sides and drawn anew for each pair.
    """
    rng = random.Random(seed)
    pairs: list[dict[str, Any]] = []
    with open_world() as world:
        while len(pairs) < n:
            world.reset(rng)
            other = rng.random() < 0.5
            intent = rng.choice([i for i in INTENTS[family] if not i.startswith("missing")])
            dialogue = play("train", family, intent, rng, Style(True, True), world.run)
            sides = [Style(side, other) if axis == "verbosity" else Style(other, not side) for side in (False, True)]
            if axis == "register" and other:
                continue  # brief answers differ in their last mark only: too little to read a register from
            names = tuple(name for name, _ in dialogue.calls)
            facts = dialogue.facts
            positive, negative = (word_answer(s, facts.short, facts.long, names, rng) for s in sides)
            pairs.append(
                {
                    "messages": list(dialogue.turns[:-1]),
                    "tools": [world.specs[name] for name in FAMILIES[family]],
                    "positive": positive,
                    "negative": negative,
                }
            )
    return pairs
