"""Seeded requests on the CPU whose prompt is computed in parts: vLLM dies of them, and here they come out right.

A step that computes only part of a prompt samples a token all the same and throws it away. vLLM then winds the
request's generator back by Philox's offset, which the CPU's Mersenne Twister does not have: `get_offset` raises, the
engine dies, and any client can do that to a server. Here the generator's whole state is kept from before the sampling
and put back, so a seed gives the same answer however the prompt was cut.

`TRIMTAB_STOCK_SEEDS=1` keeps vLLM's own way.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from .versions import require_supported

SWITCH = "TRIMTAB_STOCK_SEEDS"
_INSTALLED = "_trimtab_seeds"
_KEPT = "_trimtab_generator_states"


class Rewinder:
    """Stands for a generator while vLLM winds it back: whatever the offset, the kept state comes back."""

    def __init__(self, generator: torch.Generator, state: torch.Tensor) -> None:
        self._generator, self._state = generator, state

    def get_offset(self) -> int:
        """Some offset; it only goes back into `set_offset`."""
        return 0

    def set_offset(self, _: int) -> None:
        """Put the kept state back."""
        self._generator.set_state(self._state)


def install() -> None:
    """Wrap the model runner's sampling, unless the environment asks for the stock way."""
    if os.environ.get(SWITCH) == "1":
        return
    require_supported()
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not getattr(GPUModelRunner, _INSTALLED, False):
        patch(GPUModelRunner)


def installed() -> bool:
    """Whether the sampling has been wrapped in this process."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    return bool(getattr(GPUModelRunner, _INSTALLED, False))


def patch(runner: Any) -> None:
    """Wrap `_sample` and `_bookkeeping_sync` of a model runner's class in place."""
    stock_sample, stock_bookkeeping = runner._sample, runner._bookkeeping_sync

    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        count = self.input_batch.num_reqs
        thrown_away = np.nonzero(self.discard_request_mask.np[:count])[0].tolist()
        found = {i: self.input_batch.generators.get(i) for i in thrown_away}
        kept = {i: (g, g.get_state()) for i, g in found.items() if g is not None and g.device.type == "cpu"}
        setattr(self, _KEPT, kept)
        return stock_sample(self, *args, **kwargs)

    def bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators, kept = self.input_batch.generators, getattr(self, _KEPT, {})
        setattr(self, _KEPT, {})
        for i, (generator, state) in kept.items():
            generators[i] = Rewinder(generator, state)
        try:
            return stock_bookkeeping(self, *args, **kwargs)
        finally:
            generators.update({i: generator for i, (generator, _) in kept.items()})

    runner._sample, runner._bookkeeping_sync = sample, bookkeeping
    setattr(runner, _INSTALLED, True)
