"""Tasks of the families in suite form, from the same plays as the corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ...tools.builtin import FAMILIES
from ...tools.builtin.state import snapshot
from .answers import PLAIN
from .corpus import Split, World, foreign_request, open_world
from .families import phrasings, play, refuse
from .intents import INTENTS

KINDS = ("repair", "no-tool")
"""The kinds of tasks a suite has besides a family's intents."""
EACH = 20
"""Tasks of each of these kinds where every phrasing of an intent has its task."""


def task_kinds(family: str) -> list[str]:
    """The kinds of a family's tasks: its intents, but for those whose outcome a style decides, and `KINDS`."""
    return [name for name, intent in INTENTS[family].items() if not intent.units] + list(KINDS)


def suite_tasks(split: Split, family: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` tasks of a family: request, state before, and what must hold after.

    The kinds take turns; the expected answer and final state are those of the reference calls on the real tools.
    """
    rng = random.Random(seed)
    kinds = _shuffled_kinds(rng, family)
    return _tasks(rng, split, family, [(kinds[i % len(kinds)], None) for i in range(n)])


def phrased_tasks(split: Split, family: str, seed: int, limit: int | None = None) -> list[dict[str, Any]]:
    """One task for every test phrasing of a family's intents, and `EACH` of the other kinds; at most `limit`.

    Of the training side, which has many more phrasings, each intent shows as many as it has on the test side. The kinds
    take turns as long as they have any left.
    """
    rng = random.Random(seed)
    kinds = _shuffled_kinds(rng, family)
    left: dict[str, Sequence[str | None]] = {
        kind: [None] * EACH
        if kind in KINDS
        else rng.sample(phrasings(split)[family][kind], len(phrasings("test")[family][kind]))
        for kind in kinds
    }
    rounds = range(max(map(len, left.values())))
    turns = [(kind, left[kind][i]) for i in rounds for kind in kinds if i < len(left[kind])]
    return _tasks(rng, split, family, turns[:limit])


def _shuffled_kinds(rng: random.Random, family: str) -> list[str]:
    """A family's kinds in an order of chance, so that a few tasks are not all of the first ones."""
    kinds = task_kinds(family)
    rng.shuffle(kinds)
    return kinds


def _tasks(rng: random.Random, split: Split, family: str, turns: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """A task for each kind and phrasing, or a drawn one for None."""
    with open_world() as world:
        return [
            _task(rng, world, split, family, kind, text, f"{family}-{i:03d}-{kind}")
            for i, (kind, text) in enumerate(turns)
        ]


def _task(
    rng: random.Random, world: World, split: Split, family: str, kind: str, text: str | None, name: str
) -> dict[str, Any]:
    """One task: what is asked, the state before, and the answer and final state of the reference calls."""
    before: dict[str, Any] = {}

    def ready() -> None:
        before.update(snapshot(world.home))

    world.reset(rng)
    if kind == "no-tool":
        foreign = rng.random() < 0.5
        texts = [foreign_request(rng, family, split)] if foreign else None
        dialogue = refuse(split, "other", rng, PLAIN, texts)
        ready()
    elif kind == "repair":
        mendable = [i for i, intent in INTENTS[family].items() if intent.typo is not None and intent.group == "single"]
        while True:
            dialogue = play(split, family, rng.choice(mendable), rng, PLAIN, world.run, slip=True, ready=ready)
            if len(dialogue.calls) > 1 and not dialogue.facts.short.startswith("Error"):
                break
            before.clear()
            world.reset(rng)
    else:
        dialogue = play(split, family, kind, rng, PLAIN, world.run, text=text, ask_back=False, ready=ready)
    after = snapshot(world.home)
    return {
        "id": name,
        "family": family,
        "ask": dialogue.turns[0]["content"],
        "today": world.today.isoformat(),
        "state": {k: v for k, v in before.items() if v},
        "tools": list(FAMILIES[family]),
        "expect": {
            "answer": [list(one) if isinstance(one, tuple) else one for one in dialogue.facts.needles],
            "state": {k: v for k, v in after.items() if v != before[k]},
            "calls": [{"name": name, "arguments": arguments} for name, arguments in dialogue.calls],
        },
    }
