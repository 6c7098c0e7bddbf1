"""What the families' evaluation is held to: shares with their intervals, and bars that they meet or do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .stats import Interval, wilson

SUCCESS = 0.95
"""Tasks that a family's adapter must solve."""
GAIN = 0.15
"""Success that the adapters must add to the bare model's, means over the families."""
UNSEEN = 0.8
"""Exact calls of tools never seen in training, constrained."""
ABSTENTION = 0.95
"""Precision and recall of making no call where no tool fits."""
BEHAVIOUR = 0.98
"""Replies that show the side that their tag names."""
UNTAGGED = (0.4, 0.6)
"""First sides among sampled replies without a tag."""
VALID = 0.995
"""Calls that fit their tool's schema, without constrained decoding."""


@dataclass(frozen=True)
class Share:
    """`k` of `n`; the share of nothing is unknown."""

    k: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Share:
        """How many are true."""
        known = list(outcomes)
        return cls(sum(known), len(known))

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval."""
        return wilson(self.k, self.n) if self.n else None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the interval."""
        interval = self.interval
        ends = {"low": None, "high": None} if interval is None else {"low": interval.low, "high": interval.high}
        return {"value": self.value, **ends, "k": self.k, "n": self.n}


@dataclass(frozen=True)
class Bar:
    """A measured value and what it is held to: at least `bar`, or within [low, high]. Unknown is never met.

    Attributes:
        share: the counts behind the value, where it is a share.
    """

    name: str
    value: float | None
    bar: float | tuple[float, float]
    share: Share | None = None

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        low, high = self.bar if isinstance(self.bar, tuple) else (self.bar, float("inf"))
        return low <= self.value <= high

    def to_json(self) -> dict[str, Any]:
        """A row of the document's `bars`; `bar` is a number, or [low, high]."""
        bar = list(self.bar) if isinstance(self.bar, tuple) else self.bar
        return {"name": self.name, "value": self.value, "bar": bar, "met": self.met}


def share_bar(name: str, share: Share | None, bar: float | tuple[float, float]) -> Bar:
    """A bar on a share; None where it was not measured."""
    return Bar(name, None if share is None else share.value, bar, share)


def mean(shares: Sequence[Share | None]) -> float | None:
    """The mean over families, each counting the same; unknown where one of them is."""
    values = [None if share is None else share.value for share in shares]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None


def task_bars(adapters: Mapping[str, Share | None], bare: Mapping[str, Share | None]) -> list[Bar]:
    """`success.FAMILY` for each family, and `adapters.gain`: how much better than the bare model, on average."""
    rows = [share_bar(f"success.{family}", share, SUCCESS) for family, share in adapters.items()]
    with_, without = mean(list(adapters.values())), mean(list(bare.values()))
    return [*rows, Bar("adapters.gain", None if with_ is None or without is None else with_ - without, GAIN)]


@dataclass(frozen=True)
class Abstention:
    """Answering without a call, against whether no offered tool fitted. Positive: answered without one."""

    precision: Share
    recall: Share


def abstention(outcomes: Sequence[tuple[bool, bool]]) -> Abstention:
    """From pairs (no offered tool fits, answered without a call)."""
    return Abstention(
        precision=Share.of(absent for absent, silent in outcomes if silent),
        recall=Share.of(silent for absent, silent in outcomes if absent),
    )
