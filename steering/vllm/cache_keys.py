"""What steering adds to the keys of vLLM's caches, in every process.

**Prefix cache.** The endpoints put the profile's hash in `cache_salt`, so two profiles never share blocks. Within one
profile there is a finer trap: with vectors only on the prompt (or only on generated tokens), the answer of one turn
is computed as generated and comes back as prompt in the next turn. Reusing its blocks would make the second answer
depend on what happens to be cached. So a request of such a profile says that it is *scoped*, and every block that
reaches past its prompt's end, or into the last prompt tokens where these are treated apart, is keyed by that prompt
length too: only a request with the same phase for each token can reuse it.

**Compiled code.** The layers contain the edit and its tables, so vLLM's key of compiled code must tell an edited model
from a stock one, and a bank of one size from another's.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from . import linear_cpu
from .launch import GATES_VARIABLE, ROWS_VARIABLE, STOCK_LINEAR, STOCK_LORA, TERMS_VARIABLE
from .versions import require_supported

SCOPED_KEY = "trimtab_scoped"
"""Field of `extra_args`, above 0 when what is done to a token depends on where the prompt ends: 1 more than the number
of tokens before that end for which it does (`scope.prompt_end_reach`)."""

LAYOUT = "trimtab-steering-6"
"""Changes whenever the edit of the layers does."""

_SIZES = (ROWS_VARIABLE, TERMS_VARIABLE, GATES_VARIABLE, STOCK_LORA, STOCK_LINEAR)
"""Variables that change what the layers look like."""

_INSTALLED = "_trimtab_installed"


def install() -> None:
    """Patch vLLM's key functions once. Raises BadInput for a vLLM that is not supported."""
    require_supported()
    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils

    if getattr(kv_cache_utils, _INSTALLED, False):
        return
    stock_block_keys = kv_cache_utils.generate_block_hash_extra_keys
    stock_compile_key = VllmConfig.compute_hash

    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm = stock_block_keys(request, start_token_idx, end_token_idx, start_mm_idx)
        extra = phase_key(request, end_token_idx)
        return ((*(keys or ()), extra) if extra is not None else keys), next_mm

    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
        key: str = stock_compile_key(self, *args, **kwargs)
        # Hashed, not appended: vLLM shortens the key to its first characters in places.
        return hashlib.sha256(f"{key} {layout()}".encode()).hexdigest()[: len(key)]

    kv_cache_utils.generate_block_hash_extra_keys = generate_block_hash_extra_keys
    VllmConfig.compute_hash = compute_hash
    setattr(kv_cache_utils, _INSTALLED, True)


def layout() -> str:
    """What the layers look like in this process, as far as compiled code depends on it. vLLM asks when it compiles,
    after the weights have been loaded."""
    sizes = (f"{name}={os.environ.get(name, '')}" for name in _SIZES)
    return " ".join([LAYOUT, *sizes, f"tiles={linear_cpu.choices()}"])


def phase_key(request: Any, end_token_idx: int) -> tuple[str, int] | None:
    """The extra key of a block that ends before token `end_token_idx`, or None when phases cannot differ in it."""
    params = request.sampling_params
    extra = None if params is None else params.extra_args
    reach = int(extra.get(SCOPED_KEY) or 0) if extra else 0
    if not reach or end_token_idx <= request.num_prompt_tokens - (reach - 1):
        return None
    return ("trimtab_prompt_length", int(request.num_prompt_tokens))
