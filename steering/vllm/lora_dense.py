"""The LoRA op of compiled code: one product with every slot's A, one with every slot's B, and a mask between them.

Compiled code cannot loop over the slots that happen to be in use, so here all slots stand side by side. With S slots of
rank r, `low = (x A^T) * mask` is [N, S r], where the mask keeps of each row the r columns of its own slot and of a row
without adapter none; then `y += low B^T`. No branch on data, no shape that depends on it: vLLM's graph stays whole,
and what it costs does not depend on how many adapters a batch mixes.

The weights lie as these products read them: A of all slices of a module in one tensor, [slices, S, 1, r, in], and B of
a slice so that [out, S, r] is contiguous. vLLM goes on writing slot by slot through views of its own shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch


def arrange(layer: Any) -> None:
    """Lay the stacked weights of a `BaseLinearLayerWithLoRA`, all still zero, out for `add`.

    Afterwards `lora_a_stacked` is one tensor, [slices, S, 1, r, in], where it was a tuple of [S, 1, r, in];
    `lora_b_stacked` is a tuple of [S, 1, out, r] as before. Slices whose A differ in shape are left as they are.
    """
    a, b = layer.lora_a_stacked, layer.lora_b_stacked
    if not isinstance(a, tuple) or len({part.shape for part in a}) != 1:
        return
    layer.lora_a_stacked = torch.stack(a)
    layer.lora_b_stacked = tuple(_slots_inside(part) for part in b)


def _slots_inside(b: torch.Tensor) -> torch.Tensor:
    slots, _, out, rank = b.shape
    return torch.zeros(out, slots, rank, dtype=b.dtype, device=b.device).permute(1, 0, 2).unsqueeze(1)


def with_arranged(stock: Callable[..., None]) -> Callable[..., None]:
    """`create_lora_weights`, followed by `arrange`."""

    @functools.wraps(stock)
    def create_lora_weights(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        arrange(self)

    return create_lora_weights


def add(
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: Sequence[torch.Tensor],
    mask: torch.Tensor,
    scale: float,
) -> None:
    """`y[:, slice_i] += scale * x A_i^T B_i^T` for each row's own slot, in place.

    Args:
        y: [N, sum of out_i].
        x: [N, in].
        a: [slices, S, 1, r, in].
        b: for each slice [S, 1, out_i, r], as `arrange` lays it out.
        mask: [N, S]: 1 at a row's slot, else 0; a row without adapter has none.
    """
    slices, slots, _, rank, width = a.shape
    low = (x @ a.view(slices * slots * rank, width).T.to(x.dtype)).view(-1, slices, slots, rank)
    low = (low * mask.to(low.dtype)[:, None, :, None]).view(-1, slices, slots * rank)
    parts = [
        low[:, i].to(y.dtype) @ part.squeeze(1).permute(1, 0, 2).reshape(-1, slots * rank).T.to(y.dtype)
        for i, part in enumerate(b)
    ]
    added = parts[0] if slices == 1 else torch.cat(parts, dim=-1)
    # vLLM may pad a module's output beyond what the adapters know, or y may be narrower than padded weights.
    used = min(added.shape[-1], y.shape[-1])
    y[:, :used].add_(added[:, :used], alpha=scale)


def add_embedding(y: torch.Tensor, x: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> None:
    """`y += x B^T` for each row's own slot, in place; x [N, r] is already its row of the embedding's A.

    Args:
        b: [S, 1, out, r], as vLLM lays it out.
    """
    slots, _, out, rank = b.shape
    spread = (mask.to(x.dtype)[:, :, None] * x[:, None, :]).view(-1, slots * rank)
    y.add_((spread @ b.squeeze(1).transpose(1, 2).reshape(slots * rank, out).to(x.dtype)).to(y.dtype))
