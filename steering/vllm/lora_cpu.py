"""A LoRA op for vLLM on the CPU that leaves rows without adapter alone.

vLLM marks a row without adapter with slot -1, and its CPU op indexes the stacked weights with that: torch takes -1 as
the *last* slot. As long as that slot is empty it holds zeros; once every slot is taken, requests to the base model
get the last adapter's weights. It also gathers a whole weight matrix for each row.

Here each row gets the weights of its own slot, by one op for a whole module (`lora_op.py`), and rows without adapter
are not touched. To compiled code that op is one call with fixed arguments, so torch.compile can stay on, which vLLM
turns off on the CPU as soon as LoRA is on.

`TRIMTAB_STOCK_LORA=1` keeps vLLM's own op, and its choice to compile nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import lora_native, lora_op
from .launch import STOCK_LORA
from .lora_op import Plan, Rows, group
from .versions import require_supported

_INSTALLED = "_trimtab_installed"
_SAMPLED = "_trimtab_sampled_groups"
_PLAN = "_trimtab_plan"
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
            cls.create_lora_weights = lora_op.with_layout(cls.create_lora_weights)
    for name in ("create_lora_weights", "set_lora", "reset_lora"):
        stock = getattr(layers.LogitsProcessorWithLoRA, name)
        setattr(layers.LogitsProcessorWithLoRA, name, with_used_slots(stock))
    BaseLinearLayerWithLoRA.create_lora_weights = lora_op.with_layout(BaseLinearLayerWithLoRA.create_lora_weights)
    embedding = layers.VocabParallelEmbeddingWithLoRA
    embedding.create_lora_weights = lora_op.with_layout(embedding.create_lora_weights, lora_op.arrange_embedding)


def installed() -> bool:
    """Whether the op has been replaced in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    return bool(getattr(PunicaWrapperCPU, _INSTALLED, False))


def describe() -> str:
    """Which op adapters go through in this process: `compiled`, `torch` where there is no compiler, or `stock`."""
    if not installed():
        return "stock"
    return "compiled" if lora_native.why_not() is None else "torch"


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
    wrapper.__init__ = _with_plan(wrapper.__init__)
    wrapper.update_metadata = _with_groups(wrapper.update_metadata)
    for function in (add_shrink, add_expand, add_lora_linear, add_lora_embedding, add_lora_logits):
        setattr(wrapper, function.__name__, function)
    setattr(wrapper, _INSTALLED, True)


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


def _with_plan(stock: Callable[..., None]) -> Callable[..., None]:
    """Give a wrapper its plan: the same tensors at every step, as compiled code needs them."""

    @functools.wraps(stock)
    def __init__(self: Any, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        stock(self, max_num_batched_tokens, *args, **kwargs)
        setattr(self, _PLAN, Plan(max_num_batched_tokens))

    return __init__


def _with_groups(stock: Callable[..., None]) -> Callable[..., None]:
    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        getattr(self, _PLAN).fill(self.token_lora_indices.tolist())
        setattr(self, _SAMPLED, group(self.sampler_indices.tolist()))

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
        for slot, rows in getattr(self, _PLAN).groups():
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
        for slot, rows in getattr(self, _PLAN).groups():
            _accumulate(target, _flat(part), b[slot], rows)
        offset += width


def add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: torch.Tensor | Sequence[torch.Tensor],
    lora_b_stacked: Sequence[torch.Tensor],
    scale: float,
    output_slices: Sequence[int],
    **_: Any,
) -> None:
    """`y[:, slice_i] += scale * x A_i^T B_i^T` for rows with an adapter, in place.

    A and B are a tuple each, one entry a slice, or as `lora_op.arrange` lays them out.
    """
    a = lora_a_stacked if isinstance(lora_a_stacked, torch.Tensor) else torch.stack(tuple(lora_a_stacked))
    _add(self, y, x, a, lora_b_stacked, output_slices, scale)


def add_lora_embedding(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **_: Any
) -> None:
    """`y += x B^T` for rows with an adapter; x [N, r] is already the embedding's A."""
    if not add_inputs:
        y.zero_()
    _add(self, y, x, None, (lora_b_stacked,), (lora_b_stacked.shape[2],), 1.0)


def _add(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor | None,
    b: Sequence[torch.Tensor],
    widths: Sequence[int],
    scale: float,
) -> None:
    plan: Plan = getattr(self, _PLAN)
    if torch.compiler.is_compiling():  # traced code makes the same call at every step
        torch.ops.trimtab.lora_add(_flat(y), _flat(x), a, list(b), plan.order, plan.blocks, list(widths), scale)
    elif not plan.empty:
        lora_op.lora_add(_flat(y), _flat(x), a, b, plan.order, plan.blocks, widths, scale)


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
