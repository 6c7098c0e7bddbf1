"""Attention over packed rows on the CPU: by kernels of our own (`attention_rows.py`), or in blocks, by plain products.

As plain products that torch.compile fuses, queries 0..127 see no key beyond 127, and so on: each block of queries gets
the keys before its end, 58 % of the work for rows of 768 tokens, with the same result. On the CPU torch's own attention
kernel takes three times as long for it, forwards and backwards. A GPU has a better kernel of its own, which is used
there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import attention_rows
from .data import Rows

NAME = "trimtab_blocks"
BLOCK = 128
"""Queries a block."""


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere it is some forty times slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def sight(clumps: torch.Tensor, branches: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[batch, 1, length, length] attention mask, 0 or minus infinity: a token sees itself and what came before it in
    its own conversation, the shared opening included.

    Args:
        clumps: [batch, length] as in `Rows`, and so are the branches.
    """
    same = clumps[:, None, :, None] == clumps[:, None, None, :]
    mine = branches[:, None, None, :] == branches[:, None, :, None]
    opening = branches[:, None, None, :] == 0
    length = clumps.shape[1]
    seen = same & (mine | opening) & torch.ones(length, length, dtype=torch.bool, device=clumps.device).tril()
    # Added, not chosen by: a bool mask would be turned into this one in every layer.
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def blocks(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function in transformers' form.

    Args:
        query: [batch, heads, length, dim]; key and value [batch, kv heads, length, dim].
        attention_mask: [batch, 1, length, length], added to the logits; nothing sees what comes after it.

    Returns:
        [batch, length, heads, dim], and no weights.
    """
    batch, heads, length, dim = query.shape
    kv = key.shape[1]
    scale = dim**-0.5 if scaling is None else scaling
    parts = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        # The query heads of one key head side by side: one larger product, and no copies of the keys.
        asked = query[:, :, start:end].reshape(batch, kv, -1, dim)
        logits = asked @ key[:, :, :end].transpose(2, 3)
        seen = attention_mask[:, :, None, start:end, :end]
        logits = logits.view(batch, kv, heads // kv, end - start, end).float() * scale + seen
        weights = torch.softmax(logits, -1).to(value.dtype).view(batch, kv, -1, end)
        parts.append((weights @ value[:, :, :end]).view(batch, heads, end - start, dim))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


@contextmanager
def faster(model: Any) -> Iterator[None]:
    """Let a transformers model on the CPU that uses torch's own attention use a faster one for a while.

    Its masks must be those of `mask_for` meanwhile.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = model.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu":
        yield
        return
    name, function = (attention_rows.NAME, attention_rows.rows) if _fits(model) else (NAME, blocks)
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _fits(model: Any) -> bool:
    """Whether a model can use a kernel: that for bfloat16 where models are trained in it, else that for float32."""
    config = model.config
    heads = config.num_attention_heads
    shared = heads % (getattr(config, "num_key_value_heads", None) or heads) == 0
    # Some models' values are of another width than their keys.
    dim = None if hasattr(config, "v_head_dim") else getattr(config, "head_dim", None) or config.hidden_size // heads
    dtype = torch.bfloat16 if bfloat16_is_fast() else torch.float32
    mine = model.dtype == torch.float32 and dim in attention_rows.DIMS[dtype]
    return shared and mine and attention_rows.why_not(dtype) is None


def mask_for(model: Any, rows: Rows, clumps: torch.Tensor, branches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask that the model's attention takes now, for these rows.

    Args:
        clumps, branches: of `rows`, on the model's device.
    """
    if model.config._attn_implementation == attention_rows.NAME:
        return attention_rows.bounds(rows.clumps, rows.branches)
    return sight(clumps, branches, dtype)
