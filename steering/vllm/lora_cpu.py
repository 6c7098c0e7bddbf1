"""A LoRA op for vLLM on the CPU that leaves rows without adapter alone.

vLLM marks a row without adapter with slot -1, and its CPU op indexes the stacked weights with that: torch takes -1 as
the *last* slot. As long as that slot is empty it holds zeros; once every slot is taken, requests to the base model
get the last adapter's weights. It also gathers a whole weight matrix for each row.

Here the rows of a batch are grouped by slot once per step, and each slot in use costs two matrix products over its
rows: `y[rows] += scale * (x[rows] A^T) B^T`. Rows without adapter belong to no group and are never touched. Compiled
code has no groups to loop over and takes the op of `lora_dense.py`; with it torch.compile can stay on, which vLLM
turns off on the CPU as soon as LoRA is on.

`TRIMTAB_STOCK_LORA=1` keeps vLLM's own op, and its choice to compile nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import lora_dense
from .launch import STOCK_LORA
from .versions import require_supported

Rows = slice | torch.Tensor
"""Rows of one slot: a slice where they lie together, else their indices."""

Groups = tuple[tuple[int, Rows], ...]
"""(slot, its rows) for every slot in use."""

_INSTALLED = "_trimtab_installed"
_TOKENS = "_trimtab_token_groups"
_SAMPLED = "_trimtab_sampled_groups"
_MASK = "_trimtab_mask"
_USED = "_trimtab_used_slots"
"""On the stacked A of the logits: the slots whose adapter has weights for them."""


def install() -> None:
    """Replace the op in `PunicaWrapperCPU`, unless the environment asks for the stock one or this is no CPU vLLM."""
    if os.environ.get(STOCK_LORA) == "1" or installed():
        return
    require_supported()
    from vllm.lora import layers
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    patch(PunicaWrapperCPU)
    for cls in vars(layers).values():
        linear = isinstance(cls, type) and issubclass(cls, BaseLinearLayerWithLoRA)
        if linear and "create_lora_weights" in vars(cls):
            cls.create_lora_weights = lora_dense.with_arranged(cls.create_lora_weights)
    for name in ("create_lora_weights", "set_lora", "reset_lora"):
        stock = getattr(layers.LogitsProcessorWithLoRA, name)
        setattr(layers.LogitsProcessorWithLoRA, name, with_used_slots(stock))
    BaseLinearLayerWithLoRA.create_lora_weights = lora_dense.with_arranged(BaseLinearLayerWithLoRA.create_lora_weights)


def installed() -> bool:
    """Whether the op has been replaced in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    return bool(getattr(PunicaWrapperCPU, _INSTALLED, False))


def keep_compiled() -> None:
    """Keep vLLM compiling on the CPU when LoRA is on, unless the environment asks for the stock op, which cannot be.

    Must run before vLLM's configuration is made, in every process that makes one. Safe to call more than once.
    """
    from vllm.platforms.cpu import CpuPlatform

    if os.environ.get(STOCK_LORA) == "1" or getattr(CpuPlatform, _INSTALLED, False):
        return
    require_supported()
    stock = CpuPlatform.check_and_update_config.__func__

    @functools.wraps(stock)
    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        # All that the stock method makes of LoRA is to turn compilation off.
        lora, vllm_config.lora_config = vllm_config.lora_config, None
        try:
            stock(cls, vllm_config)
        finally:
            vllm_config.lora_config = lora

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    setattr(CpuPlatform, _INSTALLED, True)


def patch(wrapper: Any) -> None:
    """Replace the ops of a `PunicaWrapperCPU` class in place."""
    wrapper.__init__ = _with_mask(wrapper.__init__)
    wrapper.update_metadata = _with_groups(wrapper.update_metadata)
    for function in (add_shrink, add_expand, add_lora_linear, add_lora_embedding, add_lora_logits):
        setattr(wrapper, function.__name__, function)
    setattr(wrapper, _INSTALLED, True)


def group(slots: Sequence[int]) -> Groups:
    """Rows by slot; rows of slot -1 are in no group.

    Args:
        slots: the slot of each row.
    """
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            rows.setdefault(slot, []).append(row)
    return tuple(
        (slot, slice(mine[0], mine[-1] + 1) if mine[-1] - mine[0] + 1 == len(mine) else torch.tensor(mine))
        for slot, mine in rows.items()
    )


def with_used_slots(stock: Callable[..., None]) -> Callable[..., None]:
    """Note which slots have weights for the logits: hardly any adapter does, and the vocabulary is wide."""

    @functools.wraps(stock)
    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        used = getattr(self.lora_a_stacked, _USED, None)
        if used is None:
            self.lora_a_stacked._trimtab_used_slots = used = set()
        if stock.__name__ != "create_lora_weights":
            index = int(args[0] if args else kwargs["index"])
            (used.add if stock.__name__ == "set_lora" else used.discard)(index)

    return changed


def _with_mask(stock: Callable[..., None]) -> Callable[..., None]:
    """Give a wrapper its mask, [max tokens, slots]: the same tensor at every step, as compiled code needs it."""

    @functools.wraps(stock)
    def __init__(self: Any, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        stock(self, max_num_batched_tokens, *args, **kwargs)
        if kwargs.get("lora_config") is not None:
            setattr(self, _MASK, torch.zeros(max_num_batched_tokens, kwargs["lora_config"].max_loras))

    return __init__


def _with_groups(stock: Callable[..., None]) -> Callable[..., None]:
    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        setattr(self, _TOKENS, group(self.token_lora_indices.tolist()))
        setattr(self, _SAMPLED, group(self.sampler_indices.tolist()))
        mask = getattr(self, _MASK, None)
        if mask is not None:
            slots = self.token_lora_indices[:, None]
            mask[: len(slots)] = slots == torch.arange(mask.shape[1])

    return update_metadata


def _accumulate(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rows: Rows, scale: float = 1.0) -> None:
    """`y[rows] += scale * x[rows] weight^T` for y [N, out], x [N, in] and weight [1, out, in] or [out, in].

    vLLM may pad `out` of the weights beyond that of y; the rest is zero.
    """
    matrix = weight.view(weight.shape[-2], weight.shape[-1])
    width = min(matrix.shape[0], y.shape[1])
    matrix = matrix[:width].to(y.dtype)
    if isinstance(rows, slice):
        y[rows, :width].addmm_(x[rows].to(y.dtype), matrix.T, alpha=scale)
    else:
        y[:, :width].index_add_(0, rows, x[rows].to(y.dtype) @ matrix.T, alpha=scale)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1, tensor.shape[-1])


def add_shrink(
    self: Any,
    y: Sequence[torch.Tensor],
    x: torch.Tensor,
    lora_a_stacked: Sequence[torch.Tensor],
    scale: float,
    **_: Any,
) -> None:
    """`y[i] = scale * x A_i^T` where there is an adapter, else 0. y[i] [N, r], x [N, in], A_i [slots, 1, r, in]."""
    for out, a in zip(y, lora_a_stacked, strict=False):
        flat = _flat(out)
        flat.zero_()
        for slot, rows in getattr(self, _TOKENS):
            _accumulate(flat, _flat(x), a[slot], rows, scale)


def add_expand(
    self: Any,
    y: torch.Tensor,
    x: Sequence[torch.Tensor],
    lora_b_stacked: Sequence[torch.Tensor],
    output_slices: Sequence[int],
    offset_start: int = 0,
    add_inputs: bool = True,
    **_: Any,
) -> None:
    """`y[:, slice_i] += x[i] B_i^T` for rows with an adapter. y [N, out], x[i] [N, r], B_i [slots, 1, out_i, r].

    Without `add_inputs` the slice is set and not added to; rows without adapter then become 0.
    """
    flat, offset = _flat(y), offset_start
    for part, b, width in zip(x, lora_b_stacked, output_slices, strict=False):
        target = flat[:, offset : offset + width]
        if not add_inputs:
            target.zero_()
        for slot, rows in getattr(self, _TOKENS):
            _accumulate(target, _flat(part), b[slot], rows)
        offset += width


def add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: Any,
    lora_b_stacked: Sequence[torch.Tensor],
    scale: float,
    output_slices: Sequence[int],
    **_: Any,
) -> None:
    """`y[:, slice_i] += scale * x A_i^T B_i^T` for rows with an adapter, in place.

    A and B are a tuple each, one entry a slice, or as `lora_dense.arrange` lays them out: compiled code needs that.
    """
    flat_y, flat_x = _flat(y), _flat(x)
    if torch.compiler.is_compiling():
        lora_dense.add(flat_y, flat_x, lora_a_stacked, lora_b_stacked, getattr(self, _MASK)[: len(flat_x)], scale)
        return
    for slot, rows in getattr(self, _TOKENS):
        mine, offset = flat_x[rows], 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low = mine @ a[slot].view(a.shape[-2], a.shape[-1]).T.to(mine.dtype)
            target, matrix = flat_y[:, offset : offset + width], b[slot].view(b.shape[-2], b.shape[-1])[:width]
            if isinstance(rows, slice):
                target[rows, : matrix.shape[0]].addmm_(low.to(y.dtype), matrix.T.to(y.dtype), alpha=scale)
            else:
                added = low.to(y.dtype) @ matrix.T.to(y.dtype)
                target[:, : matrix.shape[0]].index_add_(0, rows, added, alpha=scale)
            offset += width


def add_lora_embedding(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **_: Any
) -> None:
    """`y += x B^T` for rows with an adapter; x [N, r] is already the embedding's A."""
    flat = _flat(y)
    if not add_inputs:
        flat.zero_()
    if torch.compiler.is_compiling():
        lora_dense.add_embedding(flat, _flat(x), lora_b_stacked, getattr(self, _MASK)[: len(flat)])
        return
    for slot, rows in getattr(self, _TOKENS):
        _accumulate(flat, _flat(x), lora_b_stacked[slot], rows)


def add_lora_logits(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: torch.Tensor,
    lora_b_stacked: torch.Tensor,
    scale: float,
    **_: Any,
) -> None:
    """`y += scale * x A^T B^T` over the sampled rows that have an adapter. y [N, vocabulary], x [N, hidden]."""
    flat_y, flat_x = _flat(y), _flat(x)
    used = getattr(lora_a_stacked, _USED, None)
    for slot, rows in getattr(self, _SAMPLED):
        if used is not None and slot not in used:
            continue
        a = lora_a_stacked[slot].view(lora_a_stacked.shape[-2], lora_a_stacked.shape[-1])
        low = torch.zeros(flat_x.shape[0], a.shape[0], dtype=flat_x.dtype)
        _accumulate(low, flat_x, a, rows)
        _accumulate(flat_y, low, lora_b_stacked[slot], rows, scale)
