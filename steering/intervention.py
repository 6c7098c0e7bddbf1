"""Interventions: edits to the residual stream, and their algebra.

A site is `resid_post[l]`, the output of block `l` (the *summed* residual, that is `resid_pre[l + 1]`). A pure addition
commutes with any other, so all additions of one profile at one layer and token scope fold into one vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import torch

Tokens = Literal["all", "prompt", "generated"]
"""Token scope: every token, those of the prompt, or those after it, by absolute position in the sequence."""

Phase = Literal["prompt", "generated"]
"""Which side of the prompt's end a token stands on. The last prompt token is a prompt token."""

PHASES: Final[tuple[Phase, Phase]] = ("prompt", "generated")


@dataclass(frozen=True, eq=False)
class Intervention:
    """Add `vector` to `resid_post[layer]` at the tokens in scope.

    Attributes:
        layer: index of the block after which the vector is added, from 0.
        vector: shape [hidden_size], float32, already times its strength.
        tokens: the token scope.
    """

    layer: int
    vector: torch.Tensor
    tokens: Tokens = "all"


def fold(interventions: Iterable[Intervention]) -> dict[tuple[int, Tokens], torch.Tensor]:
    """Sum the vectors that share layer and scope. Sums run in float64, so the order of the parts does not matter.

    Returns:
        (layer, tokens) -> vector of shape [hidden_size], float32, ordered by layer.
    """
    sums: dict[tuple[int, Tokens], torch.Tensor] = {}
    for part in interventions:
        key = (part.layer, part.tokens)
        vector = part.vector.to(torch.float64)
        sums[key] = sums[key] + vector if key in sums else vector
    return {key: sums[key].to(torch.float32) for key in sorted(sums)}


def by_phase(interventions: Iterable[Intervention]) -> dict[tuple[int, Phase], torch.Tensor]:
    """What a token of each phase gets at each layer: scope `all` counts for both phases.

    Returns:
        (layer, phase) -> vector of shape [hidden_size], float32, ordered by layer; keys that get nothing are absent.
    """
    parts = list(interventions)
    out: dict[tuple[int, Phase], torch.Tensor] = {}
    for phase in PHASES:
        mine = (Intervention(p.layer, p.vector) for p in parts if p.tokens in ("all", phase))
        out.update({(layer, phase): vector for (layer, _), vector in fold(mine).items()})
    return {key: out[key] for key in sorted(out)}
