"""C++ of ours, compiled for this machine when it is first needed, with the compiler that torch.compile uses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Function = Callable[..., None]

AMX = Path(__file__).with_name("tiles.cpp")
"""What code for AMX starts with."""

VECTORS = Path(__file__).with_name("vectors.cpp")
"""What code over rows of float32 and bfloat16 starts with."""


def load_native(*sources: Path) -> ctypes.CDLL | str:
    """The library that `sources` make, one after the other, or why it cannot be had: no compiler, or code that does not
    load.

    Compiling takes seconds, once: torch keeps what it made beside its other compiled code.
    """
    try:
        from torch._inductor.codecache import CppCodeCache

        library: ctypes.CDLL = CppCodeCache.load("\n".join(source.read_text() for source in sources))
    except Exception as error:  # whatever a compiler, or torch's way to call it, may come up with
        lines = str(error).strip().splitlines() or ["no reason"]
        told = [line.strip() for line in lines[1:] if "error:" in line.lower()]  # a compiler's own words, if any
        return f"{type(error).__name__}: {(told or lines)[0]}"
    return library


def load_kinds(source: Path, name: str, arguments: Sequence[Any]) -> tuple[dict[torch.dtype, Function], str | None]:
    """The functions `{name}_float32` and `{name}_bfloat16` of what `VECTORS` and `source` make, and None; or none, and
    why.

    Args:
        arguments: the types of their arguments, as `ctypes` has them; they return nothing.
    """
    import torch

    library = load_native(VECTORS, source)
    if isinstance(library, str):
        return {}, library
    functions = {
        dtype: getattr(library, f"{name}_{dtype}".replace("torch.", "")) for dtype in (torch.float32, torch.bfloat16)
    }
    for function in functions.values():
        function.argtypes, function.restype = arguments, None
    return functions, None
