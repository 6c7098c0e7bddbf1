"""The doctor's look at what is compiled for this machine: what a vLLM on the CPU goes through instead of its own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from .finding import Finding


def compiled_code() -> Iterator[Finding]:
    """What a vLLM on the CPU goes through that is compiled for this machine."""
    if importlib.util.find_spec("torch") is not None:
        yield from adapters()
        yield from decoding()
        yield from products()


def adapters() -> Iterator[Finding]:
    """What adapters go through: `steering/vllm/lora_cpu.py` says why it matters."""
    from ..steering.vllm import lora_native
    from ..steering.vllm.launch import STOCK_LORA

    name = "LoRA on the CPU"
    if os.environ.get(STOCK_LORA) == "1":
        detail = (
            f"vLLM's own op ({STOCK_LORA}=1): slow, and requests to the base model may get the last adapter's weights"
        )
        yield Finding(name, "warn", detail, f"Unset {STOCK_LORA}")
    elif (reason := lora_native.why_not()) is not None:
        yield Finding(name, "warn", f"Trimtab's op, in torch: nothing compiles here ({reason})", "Install g++")
    else:
        yield Finding(name, "ok", "Trimtab's op, compiled for this machine")


def decoding() -> Iterator[Finding]:
    """What attention goes through while requests decode, `steering/vllm/attention_cpu.py`."""
    from ..steering.vllm import decode_native
    from ..steering.vllm.launch import STOCK_ATTENTION

    name = "decoding on the CPU"
    if os.environ.get(STOCK_ATTENTION) == "1":
        yield Finding(name, "ok", f"vLLM's own attention ({STOCK_ATTENTION}=1)")
    elif (reason := decode_native.why_not()) is not None:
        yield Finding(name, "warn", f"vLLM's own attention: nothing compiles here ({reason})", "Install g++")
    else:
        yield Finding(name, "ok", "Trimtab's attention, compiled for this machine")


def products() -> Iterator[Finding]:
    """What layers go through in float32, `steering/vllm/linear_cpu.py`."""
    from ..steering.vllm import linear_native
    from ..steering.vllm.launch import STOCK_LINEAR

    name = "float32 on the CPU"
    if os.environ.get(STOCK_LINEAR) == "1":
        yield Finding(name, "ok", f"vLLM's own products ({STOCK_LINEAR}=1)")
    elif (reason := linear_native.why_not()) is None:
        yield Finding(name, "ok", "AMX tiles, where weights are bfloat16 numbers")
    elif reason in (linear_native.NO_AMX, linear_native.NOT_ALLOWED):
        yield Finding(name, "ok", f"vLLM's own products: {reason}")
    else:
        yield Finding(name, "warn", f"vLLM's own products: no AMX code to be had ({reason})", "Install g++")
