"""Causal attention under a mask, in blocks, by plain matrix products that torch.compile fuses.

Queries 0..127 see no key beyond 127, and so on: each block of queries gets the keys before its end, 58 % of the work
for rows of 768 tokens, with the same result. On the CPU torch's own attention kernel takes three times as long for it,
forwards and backwards, as these products do. A GPU has a better kernel of its own, which is used there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

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
def in_blocks(model: Any) -> Iterator[None]:
    """Let a transformers model on the CPU that uses torch's own attention use `blocks` for a while.

    Its masks must be 4-dimensional and causal meanwhile.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = model.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(NAME, blocks)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
