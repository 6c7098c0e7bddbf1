"""LoRA layers that multiply by one matrix, W + s B A, while they are trained on a CPU with AMX.

The usual way, W x + s B (A x), has six thin products beside each layer's two large ones, forwards and backwards, and
adds large results up. With AMX the six take longer than the one that stands for them here: the gradient of the whole
matrix, of which those of A and B are small products. In float32 the thin ones are the cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F


def whole_is_faster() -> bool:
    """Whether a large product takes less than thin ones with a twentieth of its multiplications."""
    return bool(torch.cpu._is_amx_tile_supported())


def _forward(layer: Any, name: str) -> Callable[..., torch.Tensor]:
    scaling: float = layer.scaling[name]

    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.addmm(base.weight, up, down, alpha=scaling)
        return F.linear(x, weight, base.bias)

    return forward


def _plain(layer: Any) -> str | None:
    """The one adapter of a LoRA layer that is W + s B A and nothing else; None for other layers."""
    from peft.tuners.lora import Linear

    if (
        type(layer) is not Linear
        or type(layer.base_layer) is not torch.nn.Linear
        or layer.merged
        or layer.disable_adapters
    ):
        return None
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in layer.lora_A or layer.fan_in_fan_out:
        return None
    name: str = active[0]
    other = layer.lora_variant.get(name) is not None or layer.lora_bias.get(name, False)
    same = layer.lora_A[name].weight.dtype == layer.base_layer.weight.dtype == torch.float32
    return name if same and not other and isinstance(layer.lora_dropout[name], torch.nn.Identity) else None


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Let a model's plain LoRA layers on the CPU multiply once, where that is faster, for a while; the parameters and
    their gradients are the same."""
    changed = []
    if model.device.type == "cpu" and whole_is_faster():
        for layer in model.modules():
            if hasattr(layer, "lora_A") and (name := _plain(layer)) is not None:
                layer.forward = _forward(layer, name)
                changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward
