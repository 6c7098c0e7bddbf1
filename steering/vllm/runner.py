"""The one module that knows vLLM's model runner: its V1 runner, on the CPU and on a GPU.

Three seams of the runner are wrapped, all of them on its class:

- `load_model`: afterwards the decoder layers are found and get the edit, `hidden + table[index]`. vLLM's layers return
  (hidden, residual) with the MLP's add deferred; a pure addition may go on either half. Table and index are buffers of
  fixed shape and address, so compiled code and CUDA graphs keep reading what is written to them later.
- `_prepare_inputs`: called once per real step, after the runner has settled its batch (new, resumed, reordered and
  finished requests), and before the model runs. From its state the index is filled; positions and prompt lengths are
  the scheduler's, so chunked prefill, prefix-cache hits and preemption need no cases here.
- `_dummy_run`: profiling, warm-up and capture, which bypass `_prepare_inputs`, run with an index of zeros.

Whatever does not look as expected is refused at start, never served unsteered.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import BadInput
from ..bank import Bank
from ..kernel import LayerTable, TermTable, added
from ..profile import Profile
from ..scope import Place
from ..texts import Answers
from .gating import Gating, decide
from .launch import GATES_VARIABLE
from .steps import NOTHING, PROFILE_KEY, RECEIPT_KEY, Applied, Filled, Ledger, Pending, Rows, StepView
from .versions import require_supported

ATTRIBUTE = "trimtab_steering"
"""Where a runner keeps its `RunnerSteering`."""

_SPARE_TOKENS = 1024
"""Room in the index beyond the scheduler's token budget, for the padding of captured graphs."""


class RunnerSteering:
    """The steering of one model runner: bank, index buffer, live profiles, ledger.

    Everything here is called from the worker's own thread, between or inside steps; there is no locking.
    """

    def __init__(self, runner: Any, rows: int, terms: int = 0) -> None:
        """Give every decoder layer of the runner's model the edit.

        Args:
            rows: rows of the bank, the empty one included.
            terms: how many rank-1 terms the bank holds at each layer.

        Raises:
            BadInput: the model's layers cannot be found, or the engine uses a feature that steering does not cover.
        """
        _require_supported_features(runner)
        config = runner.vllm_config
        hidden_size = int(config.model_config.get_hidden_size())
        self.layers = decoder_layers(runner.model, int(config.model_config.hf_text_config.num_hidden_layers))
        # In plain eager mode a layer that does nothing in this step is skipped, and so are rank-1 terms and conditions
        # where no profile of the step has any. Traced code and captured graphs run whatever they ran when they were
        # made, so there the whole edit is always in; conditions only on demand.
        self.may_skip = bool(config.model_config.enforce_eager) or _plain_eager(config.compilation_config)
        self.gated = self.may_skip or os.environ.get(GATES_VARIABLE) == "1"
        self.bank = Bank(
            len(self.layers),
            hidden_size,
            rows,
            columns=terms,
            gated=self.gated,
            dtype=config.model_config.dtype,
            device=runner.device,
        )
        size = int(runner.max_num_tokens) + _SPARE_TOKENS
        self._index_host = torch.zeros(size, dtype=torch.int64, pin_memory=bool(runner.device.type == "cuda"))
        self._index_np = self._index_host.numpy()
        self.index = self._index_host if runner.device.type == "cpu" else self._index_host.to(runner.device)
        self.live: dict[str, Place] = {}
        self._rows = Rows(self.live, Answers(_Tokenizer(config.model_config)))
        self._tells_late = bool(config.scheduler_config.async_scheduling)
        self.ledger = Ledger()
        self.step = Filled(0, frozenset(), False)
        self._runner = runner
        self.gating = Gating(size, int(config.scheduler_config.max_num_seqs) * 2, runner.device)
        self._pending: list[Pending] = []
        for number, layer in enumerate(self.layers):
            table = self.bank.table(number)
            register(layer, table, self.index)
            if table.gates is not None:
                self.gating.register(layer, table.gates)
            layer.register_forward_hook(self._edit(number))

    def _edit(self, number: int) -> Callable[[Any, Any, Any], Any]:
        may_skip, terms, gates = self.may_skip, bool(self.bank.columns), self.gated

        def edit(layer: Any, _args: Any, output: Any) -> Any:
            if may_skip and number not in self.step.layers:
                return None
            reads = terms and not (may_skip and not self.step.reads)
            asks = gates and not (may_skip and not self.step.gated)
            hidden = output[0] if isinstance(output, tuple) else output
            # The last add of a layer is deferred: whatever reads the residual must read the sum.
            total = hidden + output[1] if (reads or asks) and isinstance(output, tuple) else hidden
            # [tokens, width]; models that vLLM runs through transformers have a batch of 1 in front.
            flat = total.flatten(0, -2)
            gate = decide(layer, flat) if asks else None
            delta = added(table_of(layer, reads), layer.trimtab_rows[: flat.shape[0]], flat, gate)
            edited = hidden + delta.view(hidden.shape)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return edit

    def load(self, profile: Profile) -> Place:
        """Make a profile live. Raises LimitExceeded when the bank is full, BadInput when it does not fit."""
        if profile.sha256 not in self.live:
            if profile.gate is not None and not self.gated:
                raise BadInput(
                    "this server was compiled without conditions (`gate`)",
                    where=f"profile {profile.id}",
                    fix=f"Start it with {GATES_VARIABLE}=1",
                )
            if self._tells_late and any(part.scope.reads_text for part in profile.interventions):
                raise BadInput(
                    "a token scope reads the generated text, which asynchronous scheduling tells too late",
                    where=f"profile {profile.id}",
                    fix="Start the server with --no-async-scheduling",
                )
            self.live[profile.sha256] = self.bank.put(profile.sha256, profile) if profile.interventions else Place()
        return self.live[profile.sha256]

    def unload(self, sha: str) -> None:
        """Make a profile not live; one that was not is left so. Its requests must have ended."""
        place = self.live.pop(sha, None)
        if place is not None and place.layers:
            self.bank.drop(sha)

    def receipt(self, receipt: str) -> list[Applied] | None:
        """What was applied under a receipt id, or None when it is unknown."""
        self._settle()
        return self.ledger.get(receipt)

    def before_step(self, view: StepView) -> None:
        """Set the index for a real step. Raises NotFound when a request's profile is not live."""
        self._settle()
        self.step = self._write(view)
        self.gating.fill(view, [self._rows.place(sha) for sha in view.profiles], self._runner.requests)
        self._pending = self.ledger.record(view, self._rows)

    def _settle(self) -> None:
        """Count what the conditions of the last step let through."""
        for entry, begin, end in self._pending:
            if entry.steered is not None:
                entry.steered += int((self.gating.open[begin:end] & (self.index[begin:end] != 0)).sum())
        self._pending = []

    def _write(self, view: StepView) -> Filled:
        before = self.step.dirty
        filled = self._rows.fill(view, self._index_np, before)
        end = max(before, filled.dirty)
        if self.index is not self._index_host and end:
            self.index[:end].copy_(self._index_host[:end], non_blocking=True)
        return filled

    def before_dummy(self) -> None:
        """Zero the index for a run without requests."""
        self.before_step(NOTHING)


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
    for name in ("load_model", "_prepare_inputs", "_dummy_run"):
        if not callable(getattr(GPUModelRunner, name, None)):
            raise BadInput(f"vLLM's model runner has no {name}", where="vllm", fix="Install the supported vLLM")
    for runner_class in (GPUModelRunner, CPUModelRunner):
        if "load_model" in vars(runner_class):
            runner_class.load_model = _after_load(runner_class.load_model, rows, terms)
    GPUModelRunner._prepare_inputs = _with_step(GPUModelRunner._prepare_inputs)
    GPUModelRunner._dummy_run = _with_dummy(GPUModelRunner._dummy_run)
    GPUModelRunner._trimtab_installed = True


def steering_of(runner: Any) -> RunnerSteering:
    """The steering of a runner.

    Raises:
        BadInput: it has none, because it is not a runner this module knows.
    """
    steering = getattr(runner, ATTRIBUTE, None)
    if not isinstance(steering, RunnerSteering):
        kind = f"{type(runner).__module__}.{type(runner).__qualname__}"
        raise BadInput(
            f"vLLM runs the model with {kind}, which the steering plugin does not know",
            where="vllm",
            fix="Set VLLM_USE_V2_MODEL_RUNNER=0 so that vLLM uses its V1 model runner",
        )
    return steering


def step_view(runner: Any, scheduler_output: Any) -> StepView:
    """A step of the V1 runner as plain data, read after the runner has settled its batch."""
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


def register(layer: nn.Module, table: LayerTable, rows: torch.Tensor) -> None:
    """Make the rows and a table's tensors buffers of a layer: what traced code may read."""
    buffers = {"rows": rows, "add": table.add, **({} if table.terms is None else table.terms._asdict())}
    for name, tensor in buffers.items():
        layer.register_buffer(f"trimtab_{name}", tensor, persistent=False)


def table_of(layer: Any, reads: bool) -> LayerTable:
    """The table of a layer, from its buffers; `reads` says whether it has rank-1 terms."""
    terms = TermTable(*(getattr(layer, f"trimtab_{name}") for name in TermTable._fields)) if reads else None
    return LayerTable(layer.trimtab_add, terms)


class _Tokenizer:
    """The model's tokenizer, loaded when the first answer is read."""

    def __init__(self, model_config: Any) -> None:
        self._config = model_config
        self._made: Any = None

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """As transformers' tokenizers do."""
        if self._made is None:
            from vllm.tokenizers import cached_tokenizer_from_config

            self._made = cached_tokenizer_from_config(self._config)
        text: str = self._made.decode(ids, **options)
        return text


def decoder_layers(model: nn.Module, count: int) -> list[nn.Module]:
    """The decoder layers of a model, found by structure: the shallowest list of `count` blocks.

    Raises:
        BadInput: there is no such list, or more than one at one depth.
    """
    found = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    best = [module for depth, module in found if depth == min(depth for depth, _ in found)]
    if len(best) != 1:
        raise BadInput(
            f"{len(best)} lists of {count} layers found in {type(model).__name__}, where one is expected",
            where="vllm model",
            fix="Serve a decoder-only language model",
        )
    return list(best[0])


def _after_load(stock: Callable[..., Any], rows: int, terms: int) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = stock(self, *args, **kwargs)
        if getattr(self, ATTRIBUTE, None) is None:
            setattr(self, ATTRIBUTE, RunnerSteering(self, rows, terms))
        return out

    return load_model


def _with_step(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def _prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        steering_of(self).before_step(step_view(self, scheduler_output))
        return stock(self, scheduler_output, *args, **kwargs)

    return _prepare_inputs


def _with_dummy(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def _dummy_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering_of(self).before_dummy()
        return stock(self, *args, **kwargs)

    return _dummy_run


def _plain_eager(compilation: Any) -> bool:
    return int(compilation.mode or 0) == 0 and not compilation.cudagraph_mode.has_full_cudagraphs()


def _require_supported_features(runner: Any) -> None:
    """Raises BadInput for engine features under which positions or layers would not be what they seem."""
    config = runner.vllm_config
    refused = {
        "speculative decoding": config.speculative_config is not None,
        "pipeline parallelism": config.parallel_config.pipeline_parallel_size > 1,
        "dual-batch overlap": bool(config.parallel_config.enable_dbo),
        "an encoder-decoder model": bool(config.model_config.is_encoder_decoder),
        "prompt embeddings": bool(config.model_config.enable_prompt_embeds),
    }
    used = [name for name, on in refused.items() if on]
    if used:
        raise BadInput(
            f"steering does not support {' and '.join(used)} yet",
            where="vllm",
            fix="Start the server without it, or unset TRIMTAB_STEERING",
        )
