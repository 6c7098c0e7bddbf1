"""How a Trimtab server is started: stock vLLM's OpenAI server, told about steering by options and environment.

The server is two processes: the one that speaks HTTP and the one that runs the model. vLLM on the CPU would make it
three (its `mp` executor, which can bind OpenMP threads to cores); with one worker the executor in the engine's own
process does the same work and saves a start of Python, torch and vLLM: about a third of the time until `/health`
answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import BadInput
from .plugin import SWITCH

PROFILES_VARIABLE = "TRIMTAB_PROFILES"
"""Roots of the profile store, joined by `os.pathsep`."""

LIVE_VARIABLE = "TRIMTAB_LIVE"
"""Profiles to make live at start, joined by commas; not set, every profile of the store that fits the model."""

TERMS_VARIABLE = "TRIMTAB_BANK_TERMS"
"""How many rank-1 terms live profiles can have at each layer, all together."""

ROWS_VARIABLE = "TRIMTAB_BANK_ROWS"
"""How many rows the bank has, the empty one included. A profile takes one for each set of its tokens that is treated
alike: one where all are, two where it tells prompt and answer apart."""

DEFAULT_ROWS = 129

FULL_AFTER = 32
"""So many profiles in a row for which there is no room, and a start does not read the rest of the store."""

GATES_VARIABLE = "TRIMTAB_BANK_GATES"
"""Set to 1, a server that compiles its layers has room for conditions, too; one that does not compile always has."""

BLOCK_TOKENS = 32
"""Tokens of a block of the cache. vLLM takes 128 on the CPU, and only whole blocks are shared: too coarse for short
prompts."""

STOCK_LORA = "TRIMTAB_STOCK_LORA"
"""Set to 1, vLLM's own LoRA op on the CPU stays, and nothing is compiled where LoRA is on."""

AMX = "TRIMTAB_AMX"
"""Set to 1, vLLM may take its AMX attention kernel on the CPU."""

STOCK_ATTENTION = "TRIMTAB_STOCK_ATTENTION"
"""Set to 1, vLLM's own attention decodes on the CPU."""

STOCK_LINEAR = "TRIMTAB_STOCK_LINEAR"
"""Set to 1, vLLM's own matrix products in float32 stay on a CPU with AMX."""

KEEP_ALIVE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
"""Seconds after which an idle connection is closed, where the environment says it."""

KEPT_ALIVE = 75
"""So long otherwise. vLLM's own 5 are as long as clients keep theirs (httpx, and OpenAI's client with it): one that is
used again at the very moment when the server closes it fails for no reason."""

SPINS = "GOMP_SPINCOUNT"
"""How often threads of a CPU server look for more work before they sleep, where the environment says it."""

FEW_SPINS = 5000
"""So often otherwise: a fifth of a millisecond. GCC's own 300,000 take 13, and while something else runs on the same
cores every wait for a thread may cost as much: two engines on two cores took 88 ms for a step, and take 27 so.
One alone is as fast with it as without."""

ENTRY = "vllm.entrypoints.openai.api_server"

MAX_CPU_LORAS = 64
"""Adapters kept in memory beside those in slots; more are read from disk when they are used."""

KV_BYTES = 1 << 30
"""Default size of the KV cache on the CPU."""


DTYPES = ("float32", "bfloat16")
"""Number formats that a model is served in, the default first, in which a profile is proven to a thousandth of a nat.
bfloat16 is for processors that multiply it fast."""


def bank_rows() -> int:
    """Rows of a server's bank, that of unsteered tokens included. Raises BadInput for no such number."""
    text = os.environ.get(ROWS_VARIABLE, str(DEFAULT_ROWS))
    try:
        rows = int(text)
    except ValueError:
        rows = 0
    if rows < 1:
        raise BadInput(f"{text!r} is no number of rows", where=ROWS_VARIABLE, fix="Give a whole number above 0")
    return rows


def wanted_live() -> list[str] | None:
    """The profiles that a server shall make live, by the environment; None for all that fit."""
    text = os.environ.get(LIVE_VARIABLE)
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def server_arguments(
    model_dir: Path,
    *,
    served_name: str,
    host: str,
    port: int,
    max_model_len: int,
    max_loras: int = 8,
    max_lora_rank: int = 64,
    dtype: str = DTYPES[0],
    compile: bool = False,
) -> list[str]:
    """Everything after the Python executable on the server's command line.

    Args:
        model_dir: folder of the base model.
        served_name: the base model's id in requests.
        host: address to listen on.
        port: port to listen on.
        max_model_len: longest prompt and answer together, in tokens.
        max_loras: adapters that one batch may mix.
        max_lora_rank: highest rank of an adapter that can be loaded.
        dtype: the model's number format, one of `DTYPES`.
        compile: whether vLLM compiles the layers.
    """
    eager = [] if compile else ["--enforce-eager"]
    return [
        "-m",
        ENTRY,
        "--model",
        str(model_dir),
        "--served-model-name",
        served_name,
        "--host",
        host,
        "--port",
        str(port),
        "--dtype",
        dtype,
        "--max-model-len",
        str(max_model_len),
        *eager,
        "--enable-lora",
        "--max-loras",
        str(max_loras),
        "--max-lora-rank",
        str(max_lora_rank),
        "--max-cpu-loras",
        str(max(MAX_CPU_LORAS, max_loras)),
        "--enable-prefix-caching",
        "--block-size",
        str(BLOCK_TOKENS),
        "--enable-prompt-tokens-details",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--generation-config",
        "vllm",
        "--worker-extension-cls",
        "trimtab.steering.vllm.worker.SteeringExtension",
        "--middleware",
        "trimtab.steering.vllm.endpoints.TrimtabMiddleware",
        "--distributed-executor-backend",
        "uni",
        "--no-enable-log-requests",
    ]


def server_environment(
    roots: Sequence[Path], live: Sequence[str] | None, terms: int = 0, *, gates: bool = False
) -> dict[str, str]:
    """Variables to add to the server's environment.

    Args:
        roots: roots of the profile store, the writable one first.
        live: profiles to make live before `/health` answers; None for all that fit the model.
        terms: room for rank-1 terms of live profiles, at each layer.
        gates: room for conditions where layers are compiled.
    """
    out = {
        SWITCH: "1",
        "VLLM_PLUGINS": "trimtab",
        TERMS_VARIABLE: str(terms),
        GATES_VARIABLE: "1" if gates else "0",
        PROFILES_VARIABLE: os.pathsep.join(str(root) for root in roots),
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # Allows the executor in the engine's process; the HTTP server still runs the engine in a process of its own.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_BYTES >> 30),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        KEEP_ALIVE: os.environ.get(KEEP_ALIVE, str(KEPT_ALIVE)),
    }
    if "OMP_WAIT_POLICY" not in os.environ:
        out[SPINS] = os.environ.get(SPINS, str(FEW_SPINS))
    if live is not None:
        out[LIVE_VARIABLE] = ",".join(live)
    return out
