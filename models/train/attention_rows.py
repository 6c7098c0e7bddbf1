"""Attention over packed rows on a CPU, compiled for this machine when first needed.

`attention_rows.cpp` is for float32 with AVX-512, `attention_tiles.cpp` for bfloat16 with AMX.

In a row of 768 tokens a token sees some 170 others. The kernels compute the blocks in which anything is seen, where
plain products compute all that comes before, and keep no weights for the way back. Where they cannot be had,
`attention.py` goes on with these products.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...native import AMX, Function, load_native

NAME = "trimtab_rows"
SOURCE = Path(__file__).with_name("attention_rows.cpp")
TILES = Path(__file__).with_name("attention_tiles.cpp")
DIMS = {torch.float32: (16, 32, 64, 128), torch.bfloat16: (32, 64, 128)}
"""Widths of a head that the kernels take."""


@functools.cache
def _library(dtype: torch.dtype) -> tuple[Function, Function] | str:
    if not torch.cpu._is_avx512_supported():
        return "the processor has no AVX-512"
    tiles = dtype == torch.bfloat16
    if tiles and not torch.cpu._is_amx_tile_supported():
        return "the processor has no AMX"
    library = load_native(AMX, SOURCE, TILES) if tiles else load_native(SOURCE)
    if isinstance(library, str):
        return library
    if tiles and library.tiles_allowed():
        return "the system does not allow AMX"
    prefix = "tile_" if tiles else ""
    forwards, backwards = (getattr(library, f"{prefix}attention_{way}") for way in ("forwards", "backwards"))
    for function, pointers in ((forwards, 7), (backwards, 11)):
        function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_float]
        function.restype = None
    return forwards, backwards


def why_not(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the compiled code for float32 or bfloat16 cannot be had here; None when it can."""
    found = _library(dtype)
    return found if isinstance(found, str) else None


def bounds(clumps: NDArray[np.int64], branches: NDArray[np.int64]) -> torch.Tensor:
    """What each token sees, as [batch, 1, 3, length] int32: keys `first` to `opened`, the shared opening (none for a
    token of the opening), and `own` to itself.

    Args:
        clumps: [batch, length] as in `Rows`, and so are the branches: in runs, an opening before its conversations.
    """
    places = np.broadcast_to(np.arange(clumps.shape[1]), clumps.shape)
    start = np.ones_like(clumps[:, :1], bool)
    other = np.concatenate([start, clumps[:, 1:] != clumps[:, :-1]], 1)
    turns = other | np.concatenate([start, branches[:, 1:] != branches[:, :-1]], 1)
    first = np.maximum.accumulate(np.where(other, places, 0), 1)
    own = np.maximum.accumulate(np.where(turns, places, 0), 1)
    ended = np.maximum.accumulate(np.where(branches == 0, places + 1, 0), 1)
    opened = np.where(branches == 0, first, np.maximum(ended, first))
    return torch.from_numpy(np.stack([first, opened, own], 1).astype(np.int32)).unsqueeze(1)


def _sizes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
    """What attention_rows.cpp calls `sizes`."""
    batch, heads, length, dim = query.shape
    sizes = [batch, heads, key.shape[1], length, dim]
    for tensor in (query, key, value):
        sizes += tensor.stride()[:3]
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _together(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor with its last dimension together."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _call(number: int, tensors: tuple[torch.Tensor, ...], sizes: Any, scale: float) -> None:
    # The gradients' first argument, too, is of the queries' kind.
    found = _library(tensors[0].dtype)
    if isinstance(found, str):
        raise RuntimeError(found)
    found[number](*(tensor.data_ptr() for tensor in tensors), sizes, scale)


def _logs_of(query: torch.Tensor) -> torch.Tensor:
    return query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("trimtab_train::attend", mutates_args=())
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of tensors in float32 or bfloat16 over what each token sees; sums are float32.

    Args:
        query: [batch, heads, length, dim]; key and value [batch, key heads, length, dim].
        seen: [batch, 1, 3, length], of `bounds`.

    Returns:
        [batch, length, heads, dim], and the logarithm of each softmax's denominator, [batch, heads, length], float32.

    Raises:
        ValueError: tensors that the kernel does not read.
    """
    wrong = key.shape != value.shape or key.shape[3] != query.shape[3] or query.shape[1] % key.shape[1]
    if wrong or {key.dtype, value.dtype} != {query.dtype} or query.shape[3] not in DIMS.get(query.dtype, ()):
        raise ValueError(f"attention of {query.dtype} {list(query.shape)} over {list(key.shape)}, {list(value.shape)}")
    query, key, value, seen = _together(query), _together(key), _together(value), seen.contiguous()
    batch, heads, length, dim = query.shape
    out, logs = query.new_empty(batch, length, heads, dim), _logs_of(query)
    _call(0, (out, logs, query, key, value, seen), _sizes(query, key, value), scale)
    return out, logs


@torch.library.custom_op("trimtab_train::attend_back", mutates_args=())
def attend_back(
    slope: torch.Tensor,
    out: torch.Tensor,
    logs: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, given that of `attend`'s first result."""
    query, key, value, seen = _together(query), _together(key), _together(value), seen.contiguous()
    of_query, of_key, of_value = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    given = (slope.to(query.dtype).contiguous(), out.contiguous(), logs.contiguous(), query, key, value, seen)
    _call(1, (of_query, of_key, of_value, *given), _sizes(query, key, value), scale)
    return of_query, of_key, of_value


@attend.register_fake
def _(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, dim = query.shape
    return query.new_empty(batch, length, heads, dim), _logs_of(query)


@attend_back.register_fake
def _(slope: torch.Tensor, out: torch.Tensor, logs: torch.Tensor, query: torch.Tensor, *others: Any) -> Any:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, *others[:2]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _back(ctx: Any, slope: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    return (*attend_back(slope, *ctx.saved_tensors, ctx.scale), None, None)


attend.register_autograd(_back, setup_context=_keep)


def rows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function in transformers' form, whose mask is `bounds`; see `attend`."""
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled("cpu"):
        # What was normalised is in float32 nevertheless.
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    return attend(query, key, value, attention_mask, scale)[0], None
