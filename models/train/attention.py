"""Causal attention under a mask, in blocks: on the CPU torch's kernel computes what a mask hides, so it is not asked.

Queries 0..127 see no key beyond 127, and so on: each block of queries gets the keys before its end. For rows of 768
tokens that is 58 % of the work, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

NAME = "trimtab_blocks"
BLOCK = 128
"""Queries a block."""


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
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    parts = []
    for start in range(0, query.shape[2], BLOCK):
        end = min(start + BLOCK, query.shape[2])
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, :end],
                value[:, :, :end],
                attn_mask=attention_mask[:, :, start:end, :end],
                scale=scaling,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


@contextmanager
def in_blocks(model: Any) -> Iterator[None]:
    """Let a transformers model that uses torch's own attention use `blocks` for a while.

    Its masks must be 4-dimensional and causal meanwhile.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    AttentionInterface.register(NAME, blocks)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
