"""Matrix products of a vLLM that computes in float32 on a CPU with AMX, by tiles instead of vectors.

vLLM gives every linear layer its way to multiply once its weights are loaded. Layers whose weights are bfloat16 numbers
get `linear_native`'s here; all others, and all in bfloat16, keep vLLM's own. `TRIMTAB_STOCK_LINEAR=1` keeps it for
every layer.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from . import linear_native
from .launch import STOCK_LINEAR
from .versions import require_supported

_INSTALLED = "_trimtab_installed"

_chosen: list[bool] = []
"""For each layer that vLLM has asked about in this process, in turn: whether it multiplies by tiles."""


def install() -> None:
    """Wrap vLLM's choice, unless the environment asks for the stock one or tiles cannot be had here.

    Raises:
        BadInput: this vLLM is not one that is known.
    """
    if os.environ.get(STOCK_LINEAR) == "1" or installed() or linear_native.why_not() is not None:
        return
    require_supported()
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    stock = utils.dispatch_cpu_unquantized_gemm

    @functools.wraps(stock)
    def dispatch_cpu_unquantized_gemm(layer: torch.nn.Module, remove_weight: bool) -> None:
        _chosen.append(use_tiles(layer, remove_weight))
        if not _chosen[-1]:
            stock(layer, remove_weight)

    setattr(dispatch_cpu_unquantized_gemm, _INSTALLED, True)
    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def installed() -> bool:
    """Whether vLLM's choice has been wrapped in this process."""
    from vllm.model_executor.layers import utils

    return bool(getattr(utils.dispatch_cpu_unquantized_gemm, _INSTALLED, False))


def describe() -> str:
    """What layers multiply by in this process: `tiles`, `stock`, or how many by tiles."""
    ours = sum(_chosen)
    return "stock" if not ours else "tiles" if ours == len(_chosen) else f"tiles in {ours} of {len(_chosen)} layers"


def choices() -> str:
    """Which layers multiply by tiles: compiled code must not be taken for others, and it depends on the weights."""
    return "".join("01"[chosen] for chosen in _chosen)


def use_tiles(layer: Any, remove_weight: bool) -> bool:
    """Let a layer multiply by tiles, if they take its weights; whether they do.

    Args:
        layer: with `weight` [out, in]; gets `cpu_linear(x, weight, bias)`, which leaves `weight` alone.
        remove_weight: whether nothing else reads the weights.
    """
    weight = layer.weight
    packed = None if weight.is_meta or weight.ndim != 2 else linear_native.pack(weight)
    if packed is None:
        return False
    width = weight.shape[0]

    def cpu_linear(x: torch.Tensor, _: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = torch.ops.trimtab.linear(x, packed, width)
        return y if bias is None else y + bias

    layer.cpu_linear = cpu_linear
    if remove_weight:
        layer.weight = torch.nn.Parameter(weight.new_empty(0), requires_grad=False)
    return True
