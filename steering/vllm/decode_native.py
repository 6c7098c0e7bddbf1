"""`decode_rows.cpp`, compiled for this machine when it is first needed, and the call of it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from ...native import Function, load_kinds

SOURCE = Path(__file__).with_name("decode_rows.cpp")

GROUP = 32
"""The width of a head and the tokens of a block must be multiples."""


@functools.cache
def _library() -> tuple[dict[torch.dtype, Function], str | None]:
    return load_kinds(SOURCE, "attend", [ctypes.c_void_p] * 6 + [ctypes.c_float])


def why_not() -> str | None:
    """Why the compiled code cannot be had here; None when it can."""
    return _library()[1]


def takes(out: torch.Tensor, query: torch.Tensor, cache: torch.Tensor) -> bool:
    """Whether `attend` can be asked for tensors like these."""
    width = query.shape[2]
    return (
        query.dtype == cache.dtype == out.dtype
        and out.shape == query.shape
        and query.stride()[1:] == out.stride()[1:] == (width, 1)
        and query.dtype in _library()[0]
        and width % GROUP == 0
        and query.shape[1] % cache.shape[1] == 0
        and cache.shape[2] % GROUP == 0
        and cache.is_cpu
        and cache.stride(3) == 1
        and cache.stride(2) == cache.shape[3] == 2 * width
    )


def attend(
    out: torch.Tensor,
    query: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> None:
    """Softmax attention of one new token of each request over its tokens in the cache, that one included, into `out`.

    Args:
        out, query: [requests, heads, dim], float32 or bfloat16; sums are float32. A row's heads lie together.
        cache: [blocks, key heads, tokens of a block, 2 dim], filled by vLLM for its `vec` kernel: `takes` it.
        table: [requests, blocks of a request or more], int32: its blocks.
        lengths: [requests], int32: its tokens. A row of `out` without any is left alone.
        scale: of the logits.
    """
    requests, heads, dim = query.shape
    sizes = (ctypes.c_int64 * 10)(
        requests, heads, cache.shape[1], dim, cache.shape[2], cache.stride(0), cache.stride(1), query.stride(0),
        out.stride(0), table.stride(0),
    )  # fmt: skip
    tensors = (out, query, cache, table, lengths)
    _library()[0][query.dtype](*(tensor.data_ptr() for tensor in tensors), sizes, scale)
