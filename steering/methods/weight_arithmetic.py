"""Contrastive weight arithmetic (arXiv 2511.05408): the direction between two fine-tunes of one base.

    w = theta+ - theta- = sum over modules of (B+ A+ - B- A-)

Serving adds `strength * w` to the base, or to another fine-tune of it. Nothing is trained here: the two adapters are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import BadInput
from ..adapter import Adapter, adapter_sha256, read_adapter

Pair = tuple[torch.Tensor, torch.Tensor]

ROUNDING = 1e-6
"""Of both updates' norm: a direction below it is the float32 of the same update written in two ways."""


@dataclass(frozen=True)
class Direction:
    """What two adapters span.

    Attributes:
        plus, minus: the PEFT folders.
        plus_sha256, minus_sha256: their identities.
        norm: ||w||, Frobenius over all modules.
        plus_norm, minus_norm: ||theta+ - base||, ||theta- - base||.
        cosine: between the two updates; None when one of them is zero.
        modules: module -> ||w|| there.
        rank: upper bound on the rank of w in any module, r+ + r-.
    """

    plus: Path
    minus: Path
    plus_sha256: str
    minus_sha256: str
    norm: float
    plus_norm: float
    minus_norm: float
    cosine: float | None
    modules: Mapping[str, float]
    rank: int


def learn(plus: Path, minus: Path) -> Direction:
    """Measure the direction from `minus` to `plus`.

    Raises:
        BadInput: an adapter is not usable, both are the same or change the weights alike, or their modules differ in
            width.
    """
    first, second = read_adapter(plus), read_adapter(minus)
    modules: dict[str, float] = {}
    pp = mm = pm = 0.0
    rank = 0
    for module in sorted({*first.modules, *second.modules}):
        a, b = _get(first, module), _get(second, module)
        if a is not None and b is not None and (a[0].shape[1], a[1].shape[0]) != (b[0].shape[1], b[1].shape[0]):
            raise BadInput(
                f"{module} has other widths than in {plus}", where=str(minus), fix="Train both adapters on one base"
            )
        own, other, both = _inner(a, a), _inner(b, b), _inner(a, b)
        modules[module] = math.sqrt(max(own + other - 2 * both, 0.0))
        pp, mm, pm = pp + own, mm + other, pm + both
        rank = max(rank, sum(pair[0].shape[0] for pair in (a, b) if pair is not None))
    hashes = adapter_sha256(plus), adapter_sha256(minus)
    if hashes[0] == hashes[1]:
        raise BadInput("plus and minus are the same adapter", where=str(minus), fix="Give two different fine-tunes")
    norm = math.sqrt(sum(value * value for value in modules.values()))
    if not norm > ROUNDING * math.sqrt(pp + mm):
        raise BadInput(
            "plus and minus change the weights alike: the direction would be zero",
            where=str(minus),
            fix="Give two different fine-tunes",
        )
    return Direction(
        plus=plus,
        minus=minus,
        plus_sha256=hashes[0],
        minus_sha256=hashes[1],
        norm=norm,
        plus_norm=math.sqrt(pp),
        minus_norm=math.sqrt(mm),
        cosine=pm / math.sqrt(pp * mm) if pp > 0 and mm > 0 else None,
        modules=modules,
        rank=rank,
    )


def _get(adapter: Adapter, module: str) -> Pair | None:
    return adapter.modules.get(module)


def _inner(x: Pair | None, y: Pair | None) -> float:
    """<Bx Ax, By Ay> without forming the products: the sum of (Bx^T By) * (Ax Ay^T), in float64."""
    if x is None or y is None:
        return 0.0
    (ax, bx), (ay, by) = ((a.to(torch.float64), b.to(torch.float64)) for a, b in (x, y))
    return float(((bx.T @ by) * (ax @ ay.T)).sum())
