"""Interventions: edits to the residual stream, and their algebra.

A site is `resid_post[l]`, the output of block `l` (the *summed* residual, that is `resid_pre[l + 1]`). At the tokens in
scope, an intervention makes of the residual h

    h' = h + b + sum_j u_j phi_j(v_j . h + c_j),    phi_j(z) = [z > theta_j] (clip(z, low_j, high_j) - keep_j z)

with b the additive vector and each j one rank-1 term. Added vectors (ActAdd, CAA, BiPO) are b alone; ablation,
projection clamps, SAE-feature clamps and LoReFT are rank-1 terms (`terms.py`). All interventions of a profile read the
same h, so they add up, in any order: those of one layer and one set of tokens fold into one `Edit`.

A `Gate` multiplies all edits of a profile by 0 or 1: conditional steering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch

from ..errors import BadInput
from .scope import Phase, Scope, reachable

Tokens = Phase
"""Token scope by phase alone."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """Rank-1 terms; r of them.

    Attributes:
        read, write: v and u, each [r, hidden_size], float32.
        bias, low, high, keep, threshold: c, low, high, keep and theta, each [r], float32; infinite where there is no
            bound. The defaults make phi the identity.
    """

    read: torch.Tensor
    write: torch.Tensor
    bias: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    low: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    high: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    keep: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    threshold: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        """Fill in the defaults: one of each for every term."""
        usual = {"bias": 0.0, "low": -torch.inf, "high": torch.inf, "keep": 0.0, "threshold": -torch.inf}
        for name, value in usual.items():
            given = getattr(self, name)
            if given.numel() == 0:
                object.__setattr__(self, name, torch.full((self.rank,), value))
            elif given.shape != (self.rank,):
                raise ValueError(f"{name} has shape {list(given.shape)}, not [{self.rank}]")
        if self.write.shape != self.read.shape:
            raise ValueError(f"write has shape {list(self.write.shape)}, read {list(self.read.shape)}")

    @property
    def rank(self) -> int:
        """How many terms."""
        return int(self.read.shape[0])

    def scaled(self, strength: float) -> LowRank:
        """The terms times `strength`: what they add grows with it, what they read stays.

        Raises:
            BadInput: they overflow. In a bank, which multiplies all rows with all terms, they would reach everybody.
        """
        write = self.write * strength
        if not torch.isfinite(write).all():
            raise BadInput("the terms overflow at this strength", where="strength", fix="Lower it")
        return LowRank(self.read, write, self.bias, self.low, self.high, self.keep, self.threshold)


def joined(terms: Sequence[LowRank]) -> LowRank:
    """All terms of several: their sum."""
    return LowRank(*(torch.cat([getattr(term, one.name) for term in terms]) for one in fields(LowRank)))


@dataclass(frozen=True, eq=False)
class Intervention:
    """One edit of `resid_post[layer]` at the tokens in scope.

    Attributes:
        layer: index of the block after which it acts, from 0.
        vector: what is added, shape [hidden_size], float32, already times its strength; None adds nothing.
        tokens: the token scope, or the name of a phase.
        low_rank: rank-1 terms, already times their strength; None for none.
    """

    layer: int
    vector: torch.Tensor | None
    tokens: Scope | Phase = "all"
    low_rank: LowRank | None = None

    @property
    def scope(self) -> Scope:
        """The token scope."""
        return Scope(self.tokens) if isinstance(self.tokens, str) else self.tokens


@dataclass(frozen=True, eq=False)
class Edit:
    """What is done to one token at one layer: `vector` [hidden_size] or None is added, and the terms of `low_rank`."""

    vector: torch.Tensor | None
    low_rank: LowRank | None


@dataclass(frozen=True, eq=False)
class Gate:
    """A condition on the residual under which a profile acts (conditional steering, after arXiv 2409.05907, section 3).

    A token passes when the cosine of h = resid_post[layer] and `vector` is above `threshold` (`above`) or not (else).
    The cosine is signed. The paper takes that of h and its projection on the vector, or of a tanh of this, which is
    |cosine| or nearly so.

    Attributes:
        layer: where h is read, before any edit of this layer; a profile acts at this layer and later ones only.
        vector: the condition, shape [hidden_size], float32.
        threshold: a cosine.
        above: which side passes.
        hold: False asks each token for itself. True asks the last prompt token alone, for itself and everything
            generated after it; earlier prompt tokens are then left alone.
    """

    layer: int
    vector: torch.Tensor
    threshold: float
    above: bool = True
    hold: bool = False


def fold(interventions: Iterable[Intervention]) -> dict[int, Edit]:
    """What some interventions do together, whatever their scopes. Sums run in float64, so their order does not matter.

    Returns:
        layer -> edit, ordered by layer.
    """
    by_layer: dict[int, list[Intervention]] = {}
    for part in interventions:
        by_layer.setdefault(part.layer, []).append(part)
    out = {}
    for layer in sorted(by_layer):
        vectors = [p.vector.to(torch.float64) for p in by_layer[layer] if p.vector is not None]
        terms = [p.low_rank for p in by_layer[layer] if p.low_rank is not None]
        total = None
        for vector in vectors:
            total = vector if total is None else total + vector
        out[layer] = Edit(None if total is None else total.to(torch.float32), joined(terms) if terms else None)
    return out


@dataclass(frozen=True, eq=False)
class Variants:
    """A profile's interventions, folded once for every set of tokens that is treated alike.

    Attributes:
        scopes: its different token scopes; bit i of a mask is the i-th.
        edits: mask -> layer -> edit. A token whose mask is missing (0 always is) is left alone.
    """

    scopes: tuple[Scope, ...]
    edits: dict[int, dict[int, Edit]]

    @property
    def layers(self) -> frozenset[int]:
        """The layers at which something is done."""
        return frozenset(layer for by_layer in self.edits.values() for layer in by_layer)


def variants(interventions: Iterable[Intervention]) -> Variants:
    """Fold a profile's interventions for each combination of scopes that a token can be in."""
    parts = list(interventions)
    scopes = tuple(dict.fromkeys(part.scope for part in parts))
    return Variants(
        scopes,
        {mask: fold(p for p in parts if mask >> scopes.index(p.scope) & 1) for mask in reachable(scopes)},
    )
