"""`torch.ops.trimtab.linear`: products in float32 with weights that are bfloat16 numbers, in AMX tiles.

Checkpoints are mostly stored in bfloat16. Served in float32, as proofs want it, their weights have 16 bits that are
zero, and `linear_tiles.cpp` does without them: what comes out is as near to the truth as any product in float32, in
less than half the time.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from ...native import AMX, Function, load_native

SOURCE = Path(__file__).with_name("linear_tiles.cpp")

STEP = 32
"""Inputs are read so many at a time: their number must be a multiple."""
TILE = 16

NO_AMX = "the processor has no AMX"
NOT_ALLOWED = "the system does not allow AMX"


@functools.cache
def _library() -> Function | str:
    if not torch.cpu._is_amx_tile_supported():
        return NO_AMX
    library = load_native(AMX, SOURCE)
    if isinstance(library, str):
        return library
    if library.tiles_allowed():
        return NOT_ALLOWED
    function: Function = library.linear
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 5  # type: ignore[attr-defined]
    function.restype = None  # type: ignore[attr-defined]
    return function


def why_not() -> str | None:
    """Why the compiled code cannot be had here; None when it can."""
    found = _library()
    return found if isinstance(found, str) else None


def pack(weight: torch.Tensor) -> torch.Tensor | None:
    """A matrix [out, in] laid out for `torch.ops.trimtab.linear`, or None when that does not take it: numbers that are
    not bfloat16 ones, a number of inputs that is no multiple of 32, another type, or another device than the CPU.

    Returns:
        bfloat16, [out / 32, in / 32, 2, 16, 16, 2]: blocks, steps, tiles, and in a tile pairs of inputs by outputs.
    """
    out, inputs = weight.shape
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or inputs % STEP or not weight.numel():
        return None
    halves = weight.detach().to(torch.bfloat16)
    if not torch.equal(halves.to(torch.float32), weight):
        return None
    padded = torch.nn.functional.pad(halves, (0, 0, 0, -out % (2 * TILE)))
    return padded.view(-1, 2, TILE, inputs // STEP, TILE, 2).permute(0, 3, 1, 4, 2, 5).contiguous()


def linear(x: torch.Tensor, weight: torch.Tensor, width: int) -> torch.Tensor:
    """`x w^T`.

    Args:
        x: float32, [..., in].
        weight: of `pack`.
        width: outputs.

    Returns:
        float32, [..., width]. Each row is the same, bit for bit, whatever rows are beside it. Rows with infinities, or
        numbers above 3.39e38, come out as NaN; of numbers below 1e-30, bits are lost that count for less than 1e-38.

    Raises:
        ValueError: x is not of that type and width, or there are not so many outputs.
    """
    function = _library()
    steps = weight.shape[1]
    if isinstance(function, str):
        raise ValueError(function)
    if x.dtype != torch.float32 or x.shape[-1] != steps * STEP or width > weight.shape[0] * 2 * TILE:
        raise ValueError(f"{x.dtype} {list(x.shape)} to {width}, weights for float32 [..., {steps * STEP}]")
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    y = rows.new_empty(rows.shape[0], width)
    if y.numel():
        sizes = (rows.shape[0], width, steps, width, rows.stride(0))
        function(y.data_ptr(), rows.data_ptr(), weight.data_ptr(), *sizes)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], width)


_LIBRARY = torch.library.Library("trimtab", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("linear(Tensor x, Tensor weight, SymInt width) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("linear", linear, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "trimtab::linear", lambda x, weight, width: x.new_empty((*x.shape[:-1], width)), lib=_LIBRARY
)
