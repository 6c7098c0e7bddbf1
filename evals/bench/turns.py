"""What it costs, turn after turn, that steered states never come back as something else.

A profile may act on generated tokens only. What it said in one turn is prompt in the next, so its states there are not
those that the first turn left in the cache: reusing them would carry the steering over (contamination: GCAD, arXiv
2605.10664). Trimtab's cache keys let such blocks be computed again (`steering/vllm/cache_keys.py`). Here conversations
of several turns are held with the base model, with a profile that acts on every token, whose states stay valid, and
with one that acts on generated tokens; measured are the prompt tokens that had to be computed, the time of a turn, and,
at the last turn, how far the server and how far reused states are from the reference.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch

from ...models.card import ModelCard
from ...steering.asking import LIMITS, Asker
from ...steering.intervention import Intervention
from ...steering.profile import Profile
from ...steering.reference import Reference
from ...steering.scope import MOST_PLACES, Phase, Scope
from ...steering.vllm.launch import BLOCK_TOKENS
from .bars import Bar
from .profiles import everywhere

SIDES: tuple[Phase | None, ...] = (None, "all", "generated")
"""The base model, and where the profiles act."""
STRENGTH = 1.0
"""Length of the added vectors."""
TOLERANCE = 1e-3
"""Nats."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        prompt: tokens.
        cached: of these, whose states were there already; None where the server does not say.
        seconds: from the request to the whole answer.
    """

    prompt: int
    cached: int | None
    seconds: float


@dataclass(frozen=True)
class Turns:
    """The outcome.

    Attributes:
        sides: by side (`base`, `all`, `generated`), a list of turns for each conversation.
        difference: log probabilities of the last answers of `generated`, at most so far from the reference, nats.
        reused: the same, had the earlier answers' states been reused.
    """

    model: str
    block: int
    sides: dict[str, list[list[Turn]]]
    difference: float
    reused: float

    def seconds(self, side: str) -> list[float]:
        """Of each turn over the base model's in the same conversation, the median over conversations."""
        pairs = [zip(*both, strict=True) for both in zip(self.sides[side], self.sides["base"], strict=True)]
        ratios = [[mine.seconds / base.seconds for mine, base in turns] for turns in pairs]
        return [statistics.median(turn) for turn in zip(*ratios, strict=True)]

    def computed(self, side: str) -> list[float | None]:
        """Prompt tokens of each turn that had to be computed, the mean over conversations."""
        found: list[float | None] = []
        for turn in zip(*self.sides[side], strict=True):
            counts = [None if one.cached is None else one.prompt - one.cached for one in turn]
            known = [count for count in counts if count is not None]
            found.append(statistics.fmean(known) if len(known) == len(counts) else None)
        return found

    def bars(self) -> list[Bar]:
        """What must hold."""
        return [Bar("turns.difference", self.difference, TOLERANCE, "most")]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "bars": [bar.to_json() for bar in self.bars()],
            "model": self.model,
            "block": self.block,
            "computed": {side: self.computed(side) for side in self.sides},
            "seconds_of_base": {side: self.seconds(side) for side in self.sides if side != "base"},
            "difference": self.difference,
            "difference_if_reused": self.reused,
            "turns": {side: [[asdict(turn) for turn in one] for one in found] for side, found in self.sides.items()},
        }


def write_profiles(card: ModelCard, root: Path) -> dict[str, Profile]:
    """Profiles `turns-all` and `turns-generated`: the same random vectors at every layer, for these tokens."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(card.num_layers, card.hidden_size, generator=generator)
    phases = [side for side in SIDES if side is not None]
    return {phase: everywhere(card, root, f"turns-{phase}", directions, STRENGTH, phase) for phase in phases}


async def measure(
    card: ModelCard,
    scratch: Path,
    *,
    turns: int,
    prompt: int,
    new: int,
    conversations: int,
    told: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Turns:
    """`converse` on a server of its own, which knows no other profiles.

    Args:
        scratch: an empty folder for profiles.
    """
    from ...models.engines.vllm import make_server
    from ...steering.store import ProfileStore

    profiles = write_profiles(card, scratch)
    told("starting the server")
    server = make_server(card, ProfileStore(scratch))
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=LIMITS) as http:
            return await converse(
                Asker(http, server.url, card.name),
                Reference(card.path),
                profiles,
                turns=turns,
                prompt=prompt,
                new=new,
                conversations=conversations,
                block=BLOCK_TOKENS,
                seed=0,
                told=told,
            )
    finally:
        await server.stop()


async def converse(
    asker: Asker,
    reference: Reference,
    profiles: dict[str, Profile],
    *,
    turns: int,
    prompt: int,
    new: int,
    conversations: int,
    block: int,
    seed: int,
    told: Callable[[str], None] = lambda text: None,
) -> Turns:
    """Hold the conversations, the sides taking turns, on a server where the profiles are live.

    Args:
        turns: of each conversation.
        prompt, new: tokens that the user says in a turn, and that are answered.
        block: tokens of a block of the server's cache.
        seed: of what the user says; with another one nothing is in the cache.

    Raises:
        EngineError, EngineUnavailable: an answer failed.
    """
    sides: dict[str, list[list[Turn]]] = {side or "base": [] for side in SIDES}
    worst = reused = 0.0
    for number in range(conversations):
        user = reference.prompts([prompt] * turns, seed + number)
        order = [*SIDES[number % len(SIDES) :], *SIDES[: number % len(SIDES)]]
        for side in order:
            name = asker.model if side is None else profiles[side].id
            said: list[int] = []
            ends: list[int] = []
            found: list[Turn] = []
            for words in user:
                said += words
                ends.append(len(said))
                start = time.perf_counter()
                answer = await asker.ask(name, said, new, salt=f"{seed}-{number}")
                found.append(Turn(len(said), answer.cached, time.perf_counter() - start))
                if len(ends) < turns:
                    said += answer.ids
            sides[side or "base"].append(found)
            if side == "generated":
                scores, _ = reference.scored(profiles[side], said, answer.ids)
                carried = carried_over(reference, profiles[side], said, answer.ids, ends, new, block)
                worst = max(worst, apart(scores, answer.logprobs))
                reused = max(reused, apart(scores, carried))
        told(f"conversation {number + 1} of {conversations}")
    return Turns(asker.model, block, sides, worst, reused)


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def carried_over(
    reference: Reference,
    profile: Profile,
    prompt: Sequence[int],
    said: Sequence[int],
    ends: Sequence[int],
    new: int,
    block: int,
) -> list[float]:
    """Log probabilities of the last answer, had every whole block that earlier turns left been reused.

    Args:
        ends: where each turn's prompt ended; the last one is that of `prompt`.
    """
    places: list[int] = []
    for end in ends[:-1]:
        whole = (end + new - 1) // block * block  # the last token of an answer is not computed in its turn
        places += range(end, max(end, whole))
    scopes = [Scope("generated")]
    scopes += [Scope(at=tuple(places[i : i + MOST_PLACES])) for i in range(0, len(places), MOST_PLACES)]
    parts = tuple(Intervention(one.layer, one.vector, scope) for one in profile.interventions for scope in scopes)
    return reference.scored(replace(profile, interventions=parts), prompt, said)[0]
