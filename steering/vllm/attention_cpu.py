"""vLLM's attention on a CPU with AMX, kept off the kernel that dies.

For bfloat16 on such a CPU vLLM picks an attention kernel that works in AMX tiles. With adapters enabled it was seen
to die of SIGILL at `tilezero` in one of OpenMP's threads, at random, in most starts. The AVX-512 kernel, which
float32 uses anyway, gives the same numbers. `TRIMTAB_AMX=1` lets vLLM choose.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from .versions import require_supported

SWITCH = "TRIMTAB_AMX"

_INSTALLED = "_trimtab_installed"


def install() -> None:
    """Keep this process's attention off AMX, unless the environment says otherwise.

    Raises:
        BadInput: this vLLM is not one that is known.
    """
    if os.environ.get(SWITCH) == "1":
        return
    require_supported()
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
