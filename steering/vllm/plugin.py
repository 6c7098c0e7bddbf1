"""The entry point vLLM calls in each of its processes (`vllm.general_plugins`).

Importing Trimtab beside vLLM must change nothing for a vLLM that was not started by Trimtab. So `register` returns at
once, without importing anything heavy, unless `TRIMTAB_STEERING=1`.
"""

from __future__ import annotations

import os

SWITCH = "TRIMTAB_STEERING"


def register() -> None:
    """Prepare this process for steering when `TRIMTAB_STEERING=1`, else do nothing. Safe to call more than once.

    The heavy part (the model runner, the LoRA op) is installed by `worker.SteeringExtension`, which vLLM imports only
    in the process that runs the model; here is only what every process must agree on: the keys of vLLM's caches, and
    that code is compiled although LoRA is on.

    Raises:
        BadInput: this vLLM is not one the plugin was written for.
    """
    if os.environ.get(SWITCH) != "1":
        return
    from . import cache_keys, lora_cpu

    cache_keys.install()
    lora_cpu.keep_compiled()
