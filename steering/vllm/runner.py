"""The steering of one of vLLM's model runners, on the CPU and on a GPU, whichever runner it is.

After the model is loaded its decoder layers are found and get the edit, `hidden + table[index]`. vLLM's layers return
(hidden, residual) with the MLP's add deferred; a pure addition may go on either half. Table and index are buffers of
fixed shape and address, so compiled code and CUDA graphs keep reading what is written to them later.

`runner_v1` and `runner_v2` know vLLM's two runners: which methods to wrap, and how a step is read as a `StepView`.
Positions and prompt lengths are the scheduler's, so chunked prefill, prefix-cache hits and preemption need no cases
here. Under tensor parallelism every rank has a runner, and all of them do the same: the residual between two layers is
whole on each, as attention and MLP end in a sum over the ranks.

Whatever does not look as expected is refused at start, never served unsteered.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import BadInput
from ..bank import Bank, Reserved
from ..kernel import LayerTable, TermTable, added
from ..profile import Profile
from ..scope import Place
from ..texts import Answers
from .gating import Gating, decide
from .launch import GATES_VARIABLE
from .steps import NOTHING, Applied, Filled, Ledger, Pending, Rows, StepView

ATTRIBUTE = "trimtab_steering"
"""Where a runner keeps its `RunnerSteering`."""

_SPARE_TOKENS = 1024
"""Room in the index beyond the scheduler's token budget, for the padding of captured graphs."""


class RunnerSteering:
    """The steering of one model runner: bank, index buffer, live profiles, ledger.

    Everything here is called from the worker's own thread, between or inside steps, but for `load`: what that leaves
    behind is taken over between steps.
    """

    def __init__(self, runner: Any, rows: int, terms: int = 0, *, tells_late: bool = False) -> None:
        """Give every decoder layer of the runner's model the edit.

        Args:
            rows: rows of the bank, the empty one included.
            terms: how many rank-1 terms the bank holds at each layer.
            tells_late: whether the runner's steps may begin before it is known what was generated last.

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
        self._index_host = torch.zeros(size, dtype=torch.int64)
        self._index_np = self._index_host.numpy()
        self.index = self._index_host if runner.device.type == "cpu" else self._index_host.to(runner.device)
        self.live: dict[str, Place] = {}
        self._staged: deque[tuple[str, Reserved | None]] = deque()
        self._staging = threading.Lock()
        self._rows = Rows(self.live, Answers(_Tokenizer(config.model_config)))
        self._tells_late = tells_late
        self.ledger = Ledger()
        self.step = Filled(0, frozenset(), False)
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

    def load(self, profile: Profile) -> None:
        """Make a profile live from the next step on. Any thread may call this while a step runs.

        Raises:
            LimitExceeded: the bank is full.
            BadInput: it does not fit.
        """
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
        with self._staging:
            if profile.sha256 in self.live or any(sha == profile.sha256 for sha, _ in self._staged):
                return
            reserved = self.bank.reserve(profile.sha256, profile) if profile.interventions else None
            self._staged.append((profile.sha256, reserved))

    def _take_over(self) -> None:
        """Write what was staged into the bank; no layer runs now."""
        if not self._staged:
            return
        with self._staging:
            while self._staged:
                sha, reserved = self._staged.popleft()
                if reserved is not None:
                    self.bank.write(reserved)
                self.live[sha] = Place() if reserved is None else reserved.held.place

    def unload(self, sha: str) -> None:
        """Make a profile not live; one that was not is left so. Its requests must have ended."""
        self._take_over()
        place = self.live.pop(sha, None)
        if place is not None and place.layers:
            self.bank.drop(sha)

    def receipt(self, receipt: str) -> list[Applied] | None:
        """What was applied under a receipt id, or None when it is unknown."""
        self._settle()
        return self.ledger.get(receipt)

    def before_step(self, view: StepView, alive: Collection[str] = ()) -> None:
        """Set the index for a real step.

        Args:
            alive: the requests that have not ended, those that wait to be taken up again among them.

        Raises:
            NotFound: a request's profile is not live.
        """
        self._settle()
        self._take_over()
        self.step = self._write(view)
        self.gating.fill(view, [self._rows.place(sha) for sha in view.profiles], alive)
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
            # Staged anew for each step: with asynchronous scheduling the copy of the last one may still be to come.
            self.index[:end].copy_(self._index_host[:end].pin_memory(), non_blocking=True)
        return filled

    def before_dummy(self) -> None:
        """Zero the index for a run without requests."""
        self.before_step(NOTHING)


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


def require_methods(owner: Any, names: Iterable[str]) -> None:
    """Raises BadInput where a class of vLLM lacks a method that is wrapped or read: then it is not the one known."""
    for name in names:
        if not callable(getattr(owner, name, None)):
            raise BadInput(f"vLLM's {owner.__qualname__} has no {name}", where="vllm", fix="Install the supported vLLM")


def after_load(stock: Callable[..., Any], make: Callable[[Any], RunnerSteering]) -> Callable[..., Any]:
    """A runner's `load_model` that gives the runner its steering when the model is there."""

    @functools.wraps(stock)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = stock(self, *args, **kwargs)
        if getattr(self, ATTRIBUTE, None) is None:
            setattr(self, ATTRIBUTE, make(self))
        return out

    return load_model


def with_dummy(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A method that runs the model without requests (profiling, warm-up, capture), with an index of zeros."""

    @functools.wraps(stock)
    def without_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering_of(self).before_dummy()
        return stock(self, *args, **kwargs)

    return without_requests


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


def _plain_eager(compilation: Any) -> bool:
    """Whether every step runs the layers' Python: nothing traced, and no graph captured, not even one in pieces."""
    return int(compilation.mode or 0) == 0 and not compilation.cudagraph_mode


def _require_supported_features(runner: Any) -> None:
    """Raises BadInput for engine features under which positions or layers would not be what they seem."""
    config = runner.vllm_config
    parallel = config.parallel_config
    refused = {
        "speculative decoding": config.speculative_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "dual-batch overlap": bool(parallel.use_ubatching),
        "fast prefill of layers that share a cache": bool(config.cache_config.kv_sharing_fast_prefill),
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
