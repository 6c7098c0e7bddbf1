"""What happens in a soak, and what it is held to."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .bars import Bar

TOLERANCE = 2e-3
"""Nats: what float32 in another order explains, over a whole answer in a batch that changes as it goes."""
SWAP_MS = 50.0
"""Milliseconds until a new version of a profile can be asked for."""


@dataclass(frozen=True)
class Case:
    """What can be asked for; `name` None is the base model."""

    name: str | None
    strength: float | None
    prompt: int
    new: int


@dataclass(frozen=True)
class Said:
    """An answer's tokens and their log probabilities, nats."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class Tally:
    """What happened.

    Attributes:
        counts: of answers, refusals and hang-ups, by kind.
        wrong: answers that were not what was asked for, in words; `lost`: requests that should have been answered.
        said: distinct answers by what was asked for.
        swaps: seconds until a new version could be asked for, each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    said: dict[Case, list[Said]] = field(default_factory=dict)
    swaps: list[float] = field(default_factory=list)

    def note(self, case: Case, said: Said) -> None:
        """Keep an answer that is not one of those there are: the same tokens, within the tolerance."""
        for other in self.said.setdefault(case, []):
            near = all(abs(a - b) < TOLERANCE / 4 for a, b in zip(other.logprobs, said.logprobs, strict=False))
            if other.ids == said.ids and near:
                return
        self.said[case].append(said)


@dataclass(frozen=True)
class Soaked:
    """The outcome of a soak.

    Attributes:
        seconds: it took.
        replayed: distinct answers that the reference read.
        difference: its largest from them, in nats; None where it read none.
    """

    model: str
    seconds: float
    tally: Tally
    replayed: int
    difference: float | None

    @property
    def answered(self) -> int:
        """Answers that came whole."""
        return self.tally.counts["answered"]

    def bars(self) -> list[Bar]:
        """What a soak is held to."""
        swap = statistics.median(self.tally.swaps) * 1000 if self.tally.swaps else None
        return [
            Bar("swap.ms", swap, SWAP_MS, "most"),
            Bar("soak.missteered", self._counted(self.tally.wrong), 0.0, "most"),
            Bar("soak.lost", self._counted(self.tally.lost), 0.0, "most"),
        ]

    def _counted(self, found: Sequence[str]) -> float | None:
        """How many were found; unknown where none was found because nothing was answered."""
        return float(len(found)) if found or self.answered else None

    @property
    def good(self) -> bool:
        """Whether answers came, and none was wrong or lost."""
        return bool(self.answered) and not self.tally.wrong and not self.tally.lost

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        swaps = sorted(self.tally.swaps)
        return {
            "bars": [bar.to_json() for bar in self.bars()],
            "model": self.model,
            "seconds": self.seconds,
            "answered": self.answered,
            "counts": dict(self.tally.counts),
            "replayed": self.replayed,
            "largest_difference_nats": self.difference,
            "swap_ms": {
                "n": len(swaps),
                "median": statistics.median(swaps) * 1000 if swaps else None,
                "p95": swaps[int(0.95 * (len(swaps) - 1))] * 1000 if swaps else None,
                "max": swaps[-1] * 1000 if swaps else None,
            },
            "wrong": self.tally.wrong[:40],
            "lost": self.tally.lost[:40],
        }
