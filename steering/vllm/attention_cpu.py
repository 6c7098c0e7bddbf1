"""vLLM's attention on a CPU: kept off the kernel that dies, and faster where every request computes one token.

**AMX.** For bfloat16 on a CPU with AMX, vLLM picks an attention kernel that works in AMX tiles. With adapters enabled
it was seen to die of SIGILL at `tilezero` in one of OpenMP's threads, at random, in most starts. The AVX-512 kernel,
which float32 uses anyway, gives the same numbers. `TRIMTAB_AMX=1` lets vLLM choose.

**Decoding.** A step in which each request computes one token reads the whole cache of all of them, and does little
else. vLLM's kernel reads it at a third of what the memory gives; `decode_native` reads the same cache, as vLLM
wrote it. Steps with a prompt, and layers with windows, sinks, caps or biases, go vLLM's way.
`TRIMTAB_STOCK_ATTENTION=1` lets all go that way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import decode_native
from .launch import AMX, STOCK_ATTENTION
from .versions import require_supported

_INSTALLED = "_trimtab_installed"


def install() -> None:
    """Keep this process's attention off AMX and let it decode faster, as far as the environment does not say otherwise.

    Raises:
        BadInput: this vLLM is not one that is known.
    """
    require_supported()
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if os.environ.get(AMX) != "1":
        keep_off_amx()
    if os.environ.get(STOCK_ATTENTION) != "1" and decode_native.why_not() is None:
        decode_faster()


def keep_off_amx() -> None:
    """Let vLLM take its AVX-512 kernel where it would take the AMX one."""
    from vllm.v1.attention.backends import cpu_attn

    stock = cpu_attn._get_attn_isa
    if getattr(stock, _INSTALLED, False):
        return

    @functools.wraps(stock)
    def _get_attn_isa(*args: Any, **kwargs: Any) -> str:
        isa: str = stock(*args, **kwargs)
        return "vec" if isa == "amx" else isa

    setattr(_get_attn_isa, _INSTALLED, True)
    cpu_attn._get_attn_isa = _get_attn_isa


def decode_faster() -> None:
    """Let steps in which every request computes one token go through `decode_native`."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    stock: Callable[..., torch.Tensor] = CPUAttentionBackendImpl.forward
    if getattr(stock, _INSTALLED, False):
        return

    @functools.wraps(stock)
    def forward(
        self: Any,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        step = attn_metadata
        if step is not None and step.max_query_len == 1 and output_scale is None and output_block_scale is None:
            tokens = step.num_actual_tokens
            now = (output[:tokens], query[:tokens], kv_cache)
            if _shared_out(self, step) and plain(self, layer) and decode_native.takes(*now):
                decode_native.attend(*now, step.block_table, step.seq_lens, self.scale)
                return output
        return stock(self, layer, query, key, value, kv_cache, step, output, output_scale, output_block_scale)

    setattr(forward, _INSTALLED, True)
    CPUAttentionBackendImpl.forward = forward


def describe(layers: Iterable[Any]) -> str:
    """What decoding goes through in this process, given vLLM's layers: `trimtab`, `stock`, or how many do."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    installed = bool(getattr(CPUAttentionBackendImpl.forward, _INSTALLED, False))
    found = [layer for layer in layers if isinstance(getattr(layer, "impl", None), CPUAttentionBackendImpl)]
    ours = sum(installed and plain(layer.impl, layer) for layer in found)
    return "stock" if not ours else "trimtab" if ours == len(found) else f"trimtab in {ours} of {len(found)} layers"


def plain(impl: Any, layer: Any) -> bool:
    """Whether a layer's attention is softmax over all that came before, of a cache as `decode_native` reads it."""
    return (
        getattr(layer, "isa", None) == "vec"
        and impl.attn_type == "decoder"
        and impl.sliding_window == -1
        and not impl.logits_soft_cap
        and impl.alibi_slopes is None
        and impl.sinks is None
        and not impl.is_fp8_kv_cache
        and impl.head_size % decode_native.GROUP == 0
    )


def _shared_out(impl: Any, step: Any) -> bool:
    """Whether every request computes one token, and there is work for all threads: vLLM shares out one request, too."""
    tokens: int = step.num_actual_tokens
    enough = tokens * impl.num_kv_heads >= torch.get_num_threads()
    return enough and step.seq_lens.shape[0] == tokens and step.dynamic_causal is None
