"""vLLM's V2 model runner: its seams, and a step of it.

- `load_model`: afterwards the runner gets its steering, provided that its state is laid out as known here.
- `add_requests`: what a new request asks for is noted. This runner does not keep sampling parameters; a request that
  was preempted is forgotten altogether and comes as new, with prompt and answer so far as its tokens.
- `finish_requests`: those that ended, and were not just preempted, are dropped.
- `prepare_inputs`: returns the batch of a real step, in the order in which the model sees it.
- `_dummy_run`, `capture_model`: runs without requests, with an index of zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from ...errors import BadInput, EngineError
from .runner import RunnerSteering, after_load, require_methods, steering_of, with_dummy
from .steps import PROFILE_KEY, RECEIPT_KEY, StepView
from .versions import require_supported

SEAMS = ("load_model", "add_requests", "finish_requests", "prepare_inputs", "_dummy_run", "capture_model")

BATCH = ("req_ids", "idx_mapping_np", "num_scheduled_tokens", "num_computed_tokens_np", "num_draft_tokens")
"""Fields of a batch that are read."""

REQUEST = ("req_id", "sampling_params")
"""Fields of a new request that are read."""

STATE = ("req_states.prompt_len.np", "req_states.all_token_ids.gpu", "lora_state.lora_requests")
"""Attributes of a runner that are read."""

ASKED = "trimtab_asked"
"""Where a runner keeps what its requests asked for."""


class Asked(NamedTuple):
    """What a request asked for: the SHA-256 of a profile, and the id of its receipt."""

    profile: str | None
    receipt: str | None


def install(rows: int, terms: int) -> None:
    """Wrap the runner's seams, once per process, before a runner is made.

    Args:
        rows: rows of the bank; `rows - 1` can be taken by live profiles.
        terms: rank-1 terms that live profiles can have at each layer, all together.

    Raises:
        BadInput: this vLLM is not supported, or its runner lacks a seam, or its batch a field.
    """
    require_supported()
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    if getattr(GPUModelRunner, "_trimtab_installed", False):
        return
    require_methods(GPUModelRunner, SEAMS)
    _require_fields(InputBatch, BATCH)
    _require_fields(NewRequestData, REQUEST)

    GPUModelRunner.load_model = after_load(GPUModelRunner.load_model, lambda runner: steer(runner, rows, terms))
    GPUModelRunner.add_requests = _with_new(GPUModelRunner.add_requests)
    GPUModelRunner.finish_requests = _with_ended(GPUModelRunner.finish_requests)
    GPUModelRunner.prepare_inputs = _with_step(GPUModelRunner.prepare_inputs)
    GPUModelRunner._dummy_run = with_dummy(GPUModelRunner._dummy_run)
    GPUModelRunner.capture_model = with_dummy(GPUModelRunner.capture_model)
    GPUModelRunner._trimtab_installed = True


def steer(runner: Any, rows: int, terms: int = 0) -> RunnerSteering:
    """Steer a runner whose model is loaded.

    Raises:
        BadInput: its state is not laid out as known here, or it does not generate token by token.
    """
    for path in STATE:
        _read(runner, path)
    if _read(runner, "model_state.num_new_sampled_tokens_per_step") != 1:
        raise BadInput("steering does not support a model that does not generate token by token", where="vllm")
    steering = RunnerSteering(runner, rows, terms)
    setattr(runner, ASKED, {})
    return steering


def note_new(asked: dict[str, Asked], scheduler_output: Any) -> None:
    """Note what the new requests of a step ask for."""
    for new in scheduler_output.scheduled_new_reqs:
        extra = (new.sampling_params.extra_args or {}) if new.sampling_params is not None else {}
        asked[new.req_id] = Asked(extra.get(PROFILE_KEY), extra.get(RECEIPT_KEY))


def drop_ended(asked: dict[str, Asked], scheduler_output: Any) -> None:
    """Drop the requests that ended; one that was preempted stays, as a condition that it holds must last."""
    for request_id in scheduler_output.finished_req_ids:
        asked.pop(request_id, None)


def step_view(runner: Any, batch: Any) -> StepView:
    """A step as plain data.

    Args:
        batch: vLLM's `InputBatch`, as `prepare_inputs` returned it.

    Raises:
        EngineError: a request was never added, or tokens are guessed ahead: both are steps of another kind.
    """
    asked = _asked(runner)
    ids = list(batch.req_ids)
    unknown = [request_id for request_id in ids if request_id not in asked]
    if unknown or batch.num_draft_tokens:
        what = f"request {unknown[0]} was never added" if unknown else "the step holds draft tokens"
        raise EngineError(f"{what}, so what to steer is not known", where="vllm's V2 model runner")
    states, adapters = runner.req_states, runner.lora_state.lora_requests
    lengths = batch.num_scheduled_tokens.astype(np.int64)
    # The scheduler's count; it only runs ahead of the truth where drafts may be rejected.
    positions = batch.num_computed_tokens_np.astype(np.int64)
    prompts = states.prompt_len.np[batch.idx_mapping_np].astype(np.int64)
    return StepView(
        request_ids=ids,
        profiles=[asked[request_id].profile for request_id in ids],
        receipts=[asked[request_id].receipt for request_id in ids],
        adapters=[adapters[request_id].lora_name if request_id in adapters else None for request_id in ids],
        lengths=lengths,
        positions=positions,
        prompt_lengths=prompts,
        outputs=_Outputs(states.all_token_ids.gpu, batch.idx_mapping_np.tolist(), prompts, positions + lengths),
    )


class _Outputs(Sequence[Sequence[int]]):
    """The answers of a step's requests as far as the step computes them, each read when it is asked for.

    Sampled tokens are written on the device, and nothing on the host says when. Reading them from the device waits for
    what was queued before, the last step's sampling included, so it is right however steps are scheduled; and it costs
    such a wait, so only scopes that read the text do it.
    """

    def __init__(self, tokens: Any, rows: Sequence[int], begins: Any, ends: Any) -> None:
        self._tokens, self._rows, self._begins, self._ends = tokens, rows, begins, ends

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, i: int | slice) -> Sequence[int] | Sequence[Sequence[int]]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        begin, end = int(self._begins[i]), int(self._ends[i])
        answer: list[int] = self._tokens[self._rows[i], begin:end].tolist() if end > begin else []
        return answer


def _asked(runner: Any) -> dict[str, Asked]:
    asked: dict[str, Asked] = getattr(runner, ASKED)
    return asked


def _require_fields(owner: Any, names: Sequence[str]) -> None:
    missing = set(names) - set(owner.__dataclass_fields__)
    if missing:
        raise BadInput(
            f"vLLM's {owner.__qualname__} has no {', '.join(sorted(missing))}",
            where="vllm",
            fix="Install the supported vLLM",
        )


def _read(runner: Any, path: str) -> Any:
    value = runner
    for name in path.split("."):
        value = getattr(value, name, None)
        if value is None:
            raise BadInput(f"vLLM's model runner has no {path}", where="vllm", fix="Install the supported vLLM")
    return value


def _with_new(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def add_requests(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        note_new(_asked(self), scheduler_output)
        return stock(self, scheduler_output, *args, **kwargs)

    return add_requests


def _with_ended(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def finish_requests(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        drop_ended(_asked(self), scheduler_output)
        return stock(self, scheduler_output, *args, **kwargs)

    return finish_requests


def _with_step(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = stock(self, *args, **kwargs)
        steering_of(self).before_step(step_view(self, batch), _asked(self))
        return batch

    return prepare_inputs
