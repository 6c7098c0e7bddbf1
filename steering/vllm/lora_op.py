"""`torch.ops.trimtab.lora_add`: several adapters in one batch, each row with its own, inside compiled code and outside.

Rows are put into blocks of one slot, once a step, in buffers that keep their place. So compiled code holds one call
with fixed arguments, what it costs depends on the rows that have an adapter and not on how many adapters there are, and
rows without one are in no block. The work is done by `lora_native`, or by torch where that cannot be had.

The weights lie as that reads them: A of all slices of a module in one tensor, [S, in, slices r], and B in another,
[S, r, out]. vLLM goes on writing slot by slot through views of its own shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import lora_native

Rows = slice | torch.Tensor
"""Rows of one slot: a slice where they lie together, else their indices."""

Groups = tuple[tuple[int, Rows], ...]
"""(slot, its rows) for every slot in use."""


class Plan:
    """Which rows have which slot, in tensors that compiled code can hold on to.

    Args:
        tokens: rows of a batch at most.

    Attributes:
        order: the rows of all blocks, [tokens].
        blocks: how many there are, then (slot, its first place in `order`, its rows) of each, [1 + 3 tokens].
        empty: whether no row has an adapter.
    """

    def __init__(self, tokens: int) -> None:
        self.order = torch.zeros(tokens, dtype=torch.int64)
        self.blocks = torch.zeros(1 + 3 * tokens, dtype=torch.int64)
        self.empty = True

    def fill(self, slots: Sequence[int]) -> None:
        """Plan a batch, given the slot of each row; rows of slot -1 are in no block."""
        order: list[int] = []
        blocks: list[int] = []
        for slot, rows in by_slot(slots).items():
            for start in range(0, len(rows), lora_native.BLOCK_ROWS):
                some = rows[start : start + lora_native.BLOCK_ROWS]
                blocks += (slot, len(order), len(some))
                order += some
        self.order[: len(order)] = torch.tensor(order, dtype=torch.int64)
        self.blocks[1 : 1 + len(blocks)] = torch.tensor(blocks, dtype=torch.int64)
        self.blocks[0] = len(blocks) // 3
        self.empty = not blocks

    def groups(self) -> Groups:
        """The same rows, slot by slot."""
        return _slots_of(self.order, self.blocks)


def by_slot(slots: Sequence[int]) -> dict[int, list[int]]:
    """The rows of every slot in use."""
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows.setdefault(slot, []).append(row)
    return rows


def group(slots: Sequence[int]) -> Groups:
    """The rows of every slot in use, as torch takes them; rows of slot -1 are in no group."""
    return tuple((slot, _together(rows)) for slot, rows in by_slot(slots).items())


def _together(rows: list[int]) -> Rows:
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.tensor(rows)


def arrange(layer: Any) -> None:
    """Lay the stacked weights of a `BaseLinearLayerWithLoRA`, all still zero, out for the op.

    Afterwards `lora_a_stacked` is one tensor, [slices, S, 1, r, in], where it was a tuple of [S, 1, r, in];
    `lora_b_stacked` is a tuple of [S, 1, out, r] as before.
    """
    a, b = layer.lora_a_stacked, layer.lora_b_stacked
    if not isinstance(a, tuple) or len({part.shape for part in a}) != 1:
        return
    slices, (slots, _, rank, width) = len(a), a[0].shape
    columns = -(-slices * rank // lora_native.LANES) * lora_native.LANES
    # Strides by hand: a view may make up others for dimensions of size 1, and then the padding would not show.
    layer.lora_a_stacked = (
        a[0]
        .new_zeros(slots, width, columns)
        .as_strided((slices, slots, 1, rank, width), (rank, width * columns, columns, 1, columns))
    )
    outs = [part.shape[2] for part in b]
    beside = b[0].new_zeros(slots, rank, sum(outs))
    layer.lora_b_stacked = tuple(part.transpose(1, 2).unsqueeze(1) for part in beside.split(outs, dim=2))


def arrange_embedding(layer: Any) -> None:
    """Lay the stacked B of an embedding with LoRA, still zero, out for the op; its A is a table and stays."""
    slots, _, out, rank = layer.lora_b_stacked.shape
    layer.lora_b_stacked = layer.lora_b_stacked.new_zeros(slots, rank, out).transpose(1, 2).unsqueeze(1)


def with_layout(stock: Callable[..., None], laid_out: Callable[[Any], None] = arrange) -> Callable[..., None]:
    """`create_lora_weights`, followed by what lays the weights out."""

    @functools.wraps(stock)
    def create_lora_weights(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        laid_out(self)

    return create_lora_weights


def lora_add(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor | None,
    b: Sequence[torch.Tensor],
    order: torch.Tensor,
    blocks: torch.Tensor,
    widths: Sequence[int],
    scale: float,
) -> None:
    """`y[row, slice_i] += scale * B_i A_i x[row]`, the weights of each row's slot, in place (arXiv 2106.09685, eq. 3).

    Args:
        y, x: [N, sum of widths or more], [N, in].
        a: [slices, S, 1, r, in], or None where x [N, slices r] is already what it makes.
        b: for each slice [S, 1, out_i, r].
        order, blocks: of a `Plan`.
        widths: of the slices in y; vLLM may pad out_i beyond, with zeros.
    """
    call = lora_native.call_for(a, b, order, blocks, widths)
    if call is not None and call.takes(y, x):
        call.add(y, x, scale)
        return
    used = [min(width, part.shape[2]) for width, part in zip(widths, b, strict=True)]
    for slot, rows in _slots_of(order, blocks):
        mine, offset = x.index_select(0, rows), 0
        for i, part in enumerate(b):
            rank = part.shape[3]
            low = mine[:, i * rank : (i + 1) * rank] if a is None else mine @ a[i, slot, 0].T.to(mine.dtype)
            added = low.to(y.dtype) @ part[slot, 0, : used[i]].T.to(y.dtype)
            y[:, offset : offset + used[i]].index_add_(0, rows, added, alpha=scale)
            offset += widths[i]


def _slots_of(order: torch.Tensor, blocks: torch.Tensor) -> tuple[tuple[int, torch.Tensor], ...]:
    """The slots in use, with their rows: the blocks of a slot follow one another."""
    found: dict[int, tuple[int, int]] = {}
    for slot, first, rows in blocks[1 : 1 + 3 * int(blocks[0])].view(-1, 3).tolist():
        found[slot] = (found.get(slot, (first, 0))[0], first + rows)
    return tuple((slot, order[first:end]) for slot, (first, end) in found.items())


_LIBRARY = torch.library.Library("trimtab", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "lora_add(Tensor(a!) y, Tensor x, Tensor? a, Tensor[] b, Tensor order, Tensor blocks, int[] widths,"
    " float scale) -> ()"
)
_LIBRARY.impl("lora_add", lora_add, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("trimtab::lora_add", lambda *_: None, lib=_LIBRARY)
