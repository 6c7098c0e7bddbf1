"""The one kernel of steering: what is added to the residual of each token of a batch.

Static shapes and addresses, no branch on data: torch.compile and CUDA graphs keep it as it is while tables are
refilled. Each token carries the number of a row; row 0 is no steering. Added vectors are gathered by row. The rank-1
terms of all rows stand side by side as columns, and every token computes all columns and keeps those of its own row:
two dense products whose cost does not depend on how many profiles a batch mixes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class TermTable(NamedTuple):
    """The rank-1 terms of one layer, C columns; a column whose owner is 0 is free.

    Attributes:
        read, write: [C, hidden_size], float32; free columns write zeros.
        bias, low, high, keep, threshold: [C], float32.
        owner: the row each column belongs to, [C], int64.
    """

    read: torch.Tensor
    write: torch.Tensor
    bias: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    keep: torch.Tensor
    threshold: torch.Tensor
    owner: torch.Tensor


class GateTable(NamedTuple):
    """The conditions that are read at one layer.

    Attributes:
        vector: by row, of unit length, [rows, hidden_size], float32; zeros where the row has no condition here.
        threshold: by row, [rows]: the signed cosine that is compared with.
        sign: by row, [rows]: 1 passes above the threshold, -1 at or below it, 0 has no condition here.
    """

    vector: torch.Tensor
    threshold: torch.Tensor
    sign: torch.Tensor


class LayerTable(NamedTuple):
    """All that one layer needs.

    Attributes:
        add: vectors by row, [rows, hidden_size]; row 0 is zero.
        terms: None where the bank holds no rank-1 terms.
        gates: None where the bank holds no conditions.
    """

    add: torch.Tensor
    terms: TermTable | None = None
    gates: GateTable | None = None


def added(table: LayerTable, rows: torch.Tensor, total: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """What to add to each token.

    Args:
        table: the layer's.
        rows: the row of each token, [N].
        total: the summed residual, [N, hidden_size].
        gate: 0 or 1 for each token, [N]; None is 1.

    Returns:
        [N, hidden_size] in the dtype of `table.add`. Rank-1 terms are computed in float32.
    """
    out = torch.index_select(table.add, 0, rows)
    if table.terms is not None:
        t = table.terms
        z = torch.addmm(t.bias, total.to(torch.float32), t.read.T)
        phi = torch.clamp(z, t.low, t.high) - t.keep * z
        mine = (t.owner == rows[:, None]) & (z > t.threshold)
        # A bound or product that is not finite in someone else's column must not leave a trace: select, not multiply.
        out = out + (torch.where(mine, phi, 0.0) @ t.write).to(out.dtype)
    return out if gate is None else out * gate[:, None].to(out.dtype)


def passes(gates: GateTable, rows: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each token has a condition at this layer, and whether it passes: two of [N], bool. The cosine is signed
    (see `intervention.Gate`)."""
    sign = torch.index_select(gates.sign, 0, rows)
    state = total.to(torch.float32)
    dot = (state * torch.index_select(gates.vector, 0, rows)).sum(-1)
    # A residual of zero length has no direction: its cosine counts as 0.
    cosine = dot / state.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    above = cosine > torch.index_select(gates.threshold, 0, rows)
    return sign != 0, above == (sign > 0)
