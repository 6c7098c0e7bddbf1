"""vLLM's V1 model runner: its seams, and a step of it.

- `load_model`: afterwards the runner gets its steering.
- `_prepare_inputs`: called once per real step, after the runner has settled its batch (new, resumed, reordered and
  finished requests), and before the model runs. From its state the index is filled.
- `_dummy_run`: profiling, warm-up and capture, which bypass `_prepare_inputs`, run with an index of zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .runner import RunnerSteering, after_load, require_methods, steering_of, with_dummy
from .steps import PROFILE_KEY, RECEIPT_KEY, StepView
from .versions import require_supported

SEAMS = ("load_model", "_prepare_inputs", "_dummy_run")


def install(rows: int, terms: int) -> None:
    """Wrap the runner's seams, once per process, before a runner is made.

    Args:
        rows: rows of the bank; `rows - 1` can be taken by live profiles.
        terms: rank-1 terms that live profiles can have at each layer, all together.

    Raises:
        BadInput: this vLLM is not supported, or its runner lacks a seam.
    """
    require_supported()
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if getattr(GPUModelRunner, "_trimtab_installed", False):
        return
    require_methods(GPUModelRunner, SEAMS)

    def make(runner: Any) -> RunnerSteering:
        return steer(runner, rows, terms)

    for runner_class in (GPUModelRunner, CPUModelRunner):
        if "load_model" in vars(runner_class):
            runner_class.load_model = after_load(runner_class.load_model, make)
    GPUModelRunner._prepare_inputs = _with_step(GPUModelRunner._prepare_inputs)
    GPUModelRunner._dummy_run = with_dummy(GPUModelRunner._dummy_run)
    GPUModelRunner._trimtab_installed = True


def steer(runner: Any, rows: int, terms: int = 0) -> RunnerSteering:
    """Steer a runner whose model is loaded. Scheduled asynchronously it does not know the last token in time."""
    late = bool(runner.vllm_config.scheduler_config.async_scheduling)
    return RunnerSteering(runner, rows, terms, tells_late=late)


def step_view(runner: Any, scheduler_output: Any) -> StepView:
    """A step as plain data, read after the runner has settled its batch."""
    batch = runner.input_batch
    count = int(batch.num_reqs)
    ids = list(batch.req_ids[:count])
    states = [runner.requests[request_id] for request_id in ids]
    extras = [(s.sampling_params.extra_args or {}) if s.sampling_params is not None else {} for s in states]
    scheduled = scheduler_output.num_scheduled_tokens
    return StepView(
        request_ids=ids,
        profiles=[e.get(PROFILE_KEY) for e in extras],
        receipts=[e.get(RECEIPT_KEY) for e in extras],
        adapters=[s.lora_request.lora_name if s.lora_request is not None else None for s in states],
        lengths=np.fromiter((scheduled[i] for i in ids), np.int64, count),
        positions=batch.num_computed_tokens_cpu[:count].astype(np.int64),
        prompt_lengths=np.fromiter((s.num_prompt_tokens for s in states), np.int64, count),
        outputs=[s.output_token_ids for s in states],
    )


def _with_step(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def _prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        steering_of(self).before_step(step_view(self, scheduler_output), self.requests)
        return stock(self, scheduler_output, *args, **kwargs)

    return _prepare_inputs
