"""`lora_rows.cpp`, compiled for this machine when it is first needed, and the calls of it.

Where it cannot be had, the caller goes on in torch, and `why_not` says what was missing.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...native import Function, load_kinds

SOURCE = Path(__file__).with_name("lora_rows.cpp")

BLOCK_ROWS = 6
"""Rows of a block at most."""
LANES = 16
"""Columns of A are read so many at a time: in memory they are padded to a multiple."""
MOST_SLICES = 16
_CALL = "_trimtab_call"
"""On the first B of a module: its `Call`."""


@functools.cache
def _library() -> tuple[dict[torch.dtype, Function], str | None]:
    pointer = ctypes.c_void_p
    return load_kinds(SOURCE, "add", [pointer] * 2 + [ctypes.c_int64] * 2 + [pointer] * 4 + [ctypes.c_float])


def why_not() -> str | None:
    """Why the compiled code cannot be had here; None when it can."""
    return _library()[1]


@dataclass(frozen=True)
class Call:
    """What is the same at every call with one module's weights, checked and laid out once.

    It keeps addresses and not the tensors: `call_for` hands it out for these very tensors only.

    Attributes:
        dtype: of the weights, and what it takes.
        tensors: of what it was made, the plan's and the weights.
        widths: of the slices in y.
        fixed: the arguments of lora_rows.cpp that they give.
    """

    dtype: torch.dtype
    tensors: tuple[weakref.ref[torch.Tensor], ...]
    widths: tuple[int, ...]
    fixed: tuple[Any, ...]

    def is_for(self, tensors: Sequence[torch.Tensor], widths: Sequence[int]) -> bool:
        """Whether it was made of these very tensors."""
        mine = self.tensors
        same = len(tensors) == len(mine) and all(one() is other for one, other in zip(mine, tensors, strict=True))
        return same and tuple(widths) == self.widths

    def takes(self, y: torch.Tensor, x: torch.Tensor) -> bool:
        """Whether y and x are of the weights' type, on the CPU, and their rows lie together."""
        return y.dtype == x.dtype == self.dtype and y.stride(1) == x.stride(1) == 1 and y.is_cpu

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        """`y[row, slice_i] += scale * B_i A_i x[row]`, the weights of each row's slot, in place.

        Args:
            y, x: [N, sum of widths or more], [N, in].
        """
        function = _library()[0][self.dtype]
        function(y.data_ptr(), x.data_ptr(), y.stride(0), x.stride(0), *self.fixed, scale)


def call_for(
    a: torch.Tensor | None,
    b: Sequence[torch.Tensor],
    order: torch.Tensor,
    blocks: torch.Tensor,
    widths: Sequence[int],
) -> Call | None:
    """The call for one module's weights, or None where the compiled code cannot be had or does not take these.

    It is kept on the first of B, so that it goes with the weights.

    Args:
        a: [slices, S, 1, r, in], or None where x [N, slices r] is already what it makes.
        b: for each slice [S, 1, out_i, r]. A and B are laid out as `lora_op.arrange` does.
        order, blocks: which rows have which slot (`lora_op.Plan`).
        widths: of the slices in y.
    """
    tensors = (order, blocks, *b, *(() if a is None else (a,)))
    call: Call | None = getattr(b[0], _CALL, None)
    if call is not None and call.is_for(tensors, widths):
        return call
    if not _laid_out(a, b, widths):
        return None
    # What lora_rows.cpp calls `shape`.
    shape = [0, 0, 0] if a is None else [a.stride(1), a.stride(4), a.shape[4]]
    shape += [len(b), b[0].shape[3]]
    shape += [part.data_ptr() for part in b]
    shape += [part.stride(0) for part in b]
    shape += [part.stride(3) for part in b]
    shape += widths
    pointers = (order.data_ptr(), blocks.data_ptr(), None if a is None else a.data_ptr())
    fixed = (*pointers, (ctypes.c_int64 * len(shape))(*shape))
    call = Call(b[0].dtype, tuple(map(weakref.ref, tensors)), tuple(widths), fixed)
    setattr(b[0], _CALL, call)
    return call


def _laid_out(a: torch.Tensor | None, b: Sequence[torch.Tensor], widths: Sequence[int]) -> bool:
    """Whether weights are of one supported type, on the CPU, laid out as `lora_op` does, and no wider than y."""
    dtype = b[0].dtype
    return (
        dtype in _library()[0]
        and len(b) <= MOST_SLICES
        and all(part.is_cpu and part.dtype == dtype and part.stride(2) == 1 for part in b)
        and all(width <= part.shape[2] for width, part in zip(widths, b, strict=True))
        and (a is None or (a.dtype == dtype and _padded(a)))
    )


def _padded(a: torch.Tensor) -> bool:
    """Whether A's columns lie together, slice by slice, and are followed by what fills the last vector."""
    slices, _, _, rank, _ = a.shape
    together = a.stride(3) == 1 and (slices == 1 or a.stride(0) == rank)
    return together and a.stride(4) >= -(-slices * rank // LANES) * LANES
