"""What the worker process can be asked: `--worker-extension-cls trimtab.steering.vllm.worker.SteeringExtension`.

vLLM imports this module in the process that runs the model, before it makes the runner, and mixes the class into its
worker; so importing it is what installs the runner's part of steering there. The methods are called by name over
`collective_rpc`, between steps, and `trimtab_load` also through a door of its own (`door.py`), while a step runs. They
answer with plain data, and errors as `{"error": {...}}`, because an exception would arrive as text only.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import TrimtabError
from ..profile import load_profile
from ..strength import at_strength
from . import attention_cpu, linear_cpu, lora_cpu, runner, runner_v1, runner_v2, seeds_cpu
from .door import open_door
from .launch import TERMS_VARIABLE, bank_rows
from .plugin import SWITCH
from .versions import require_supported


class SteeringExtension:
    """Mixed into vLLM's worker; `self.model_runner` is the worker's."""

    model_runner: Any

    def trimtab_describe(self) -> dict[str, Any]:
        """What runs here: runner, shape of the model, capacity."""

        def describe() -> dict[str, Any]:
            steering = runner.steering_of(self.model_runner)
            bank, lora = steering.bank, self.model_runner.lora_config
            layers = self.model_runner.vllm_config.compilation_config.static_forward_context
            return {
                "vllm": require_supported(),
                "runner": type(self.model_runner).__qualname__,
                "dtype": str(self.model_runner.dtype).removeprefix("torch."),
                "hidden_size": bank.hidden_size,
                "num_layers": bank.num_layers,
                "rows": bank.rows - 1,
                "rows_used": bank.rows_used,
                "terms": bank.columns,
                "lora_op": lora_cpu.describe(),
                "attention": attention_cpu.describe(layers.values()),
                "linear": linear_cpu.describe(),
                "seeds": "trimtab" if seeds_cpu.installed() else "stock",
                "lora_slots": lora.max_loras if lora is not None else 0,
            }

        return _answer(describe)

    def trimtab_door(self) -> dict[str, Any]:
        """The address under which `trimtab_load` is answered beside the steps, too; None where it is not."""
        return _answer(lambda: {"address": open_door(self.trimtab_load)})

    def trimtab_load(self, directory: str, sha256: str, strength: float = 1.0) -> dict[str, Any]:
        """Make the profile in `directory` live from the next step on, provided that its identity is still `sha256`; at
        another strength than 1 under the identity that `at_strength` gives it."""

        def load() -> dict[str, Any]:
            steering = runner.steering_of(self.model_runner)
            bank = steering.bank
            profile = load_profile(Path(directory), hidden_size=bank.hidden_size, num_layers=bank.num_layers)
            if profile.sha256 != sha256:
                raise TrimtabError("the profile changed on disk while it was loaded", where=directory, fix="Load again")
            if strength != 1.0:
                profile = at_strength(profile, strength)
            steering.load(profile)
            return {}

        return _answer(load)

    def trimtab_unload(self, sha256: str) -> dict[str, Any]:
        """Make a profile not live."""

        def unload() -> dict[str, Any]:
            runner.steering_of(self.model_runner).unload(sha256)
            return {}

        return _answer(unload)

    def trimtab_receipt(self, receipt: str) -> dict[str, Any]:
        """What was applied to the requests under a receipt id; `requests` is None when it is unknown."""

        def look() -> dict[str, Any]:
            found = runner.steering_of(self.model_runner).receipt(receipt)
            return {"requests": None if found is None else [dataclasses.asdict(entry) for entry in found]}

        return _answer(look)


def _answer(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return function()
    except TrimtabError as error:
        return {"error": {**error.as_dict(), "status": error.status}}


if os.environ.get(SWITCH) == "1":
    # Which of its runners vLLM makes is not decided yet.
    for _runner in (runner_v1, runner_v2):
        _runner.install(bank_rows(), int(os.environ.get(TERMS_VARIABLE, "0")))
    lora_cpu.install()
    attention_cpu.install()
    linear_cpu.install()
    seeds_cpu.install()
