"""The edit of the layers and the reading of a runner's state, on a stand-in with the runner's own fields."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trimtab.errors import BadInput, EngineError, LimitExceeded, NotFound
from trimtab.steering.intervention import Gate, Intervention
from trimtab.steering.scope import Scope
from trimtab.steering.terms import ablate
from trimtab.steering.vllm.cache_keys import SCOPED_KEY, layout, phase_key
from trimtab.steering.vllm.runner import RunnerSteering, decoder_layers, require_methods, steering_of
from trimtab.steering.vllm.runner_v1 import steer, step_view

H, L = 6, 3


class Block(nn.Module):
    """Like vLLM's blocks: (hidden, residual), the last add deferred."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(H, H)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = hidden + residual
        return self.linear(residual), residual


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Block() for _ in range(L))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = torch.zeros_like(hidden)
        for layer in self.model.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


def make_runner(model: nn.Module, *, eager: bool = True, rows: int = 4, terms: int = 0) -> Any:
    """A stand-in with the fields of vLLM's V1 runner that steering reads."""
    runner = SimpleNamespace(
        model=model,
        device=torch.device("cpu"),
        max_num_tokens=32,
        vllm_config=SimpleNamespace(
            model_config=SimpleNamespace(
                get_hidden_size=lambda: H,
                hf_text_config=SimpleNamespace(num_hidden_layers=L),
                dtype=torch.float32,
                enforce_eager=eager,
                is_encoder_decoder=False,
                enable_prompt_embeds=False,
            ),
            compilation_config=SimpleNamespace(mode=3, cudagraph_mode=None),
            cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
            speculative_config=None,
            scheduler_config=SimpleNamespace(async_scheduling=False, max_num_seqs=8),
            parallel_config=SimpleNamespace(
                pipeline_parallel_size=1, prefill_context_parallel_size=1, use_ubatching=False
            ),
        ),
        input_batch=SimpleNamespace(num_reqs=0, req_ids=[], num_computed_tokens_cpu=np.zeros(8, dtype=np.int32)),
        requests={},
    )
    runner.trimtab_steering = steer(runner, rows, terms)
    return runner


def schedule(runner: Any, *requests: tuple[str, str | None, int, int, int]) -> Any:
    """Settle a batch of (id, profile, computed, scheduled, prompt length); returns the scheduler's output."""
    for row, (name, profile, computed, _, prompt) in enumerate(requests):
        extra = None if profile is None else {"trimtab": profile, "trimtab_id": f"receipt-{name}"}
        runner.requests[name] = SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args=extra),
            lora_request=None,
            num_prompt_tokens=prompt,
            output_token_ids=[],
        )
        runner.input_batch.num_computed_tokens_cpu[row] = computed
    # vLLM keeps finished rows behind the live ones until they are reused: they must not be read.
    runner.input_batch.req_ids = [r[0] for r in requests] + [None]
    runner.input_batch.num_reqs = len(requests)
    return SimpleNamespace(num_scheduled_tokens={r[0]: r[3] for r in reversed(requests)})


def profile(sha: str, *parts: Intervention) -> Any:
    return SimpleNamespace(sha256=sha, id=f"{sha}@1", interventions=parts, gate=None)


def vector(value: float) -> torch.Tensor:
    return torch.full((H,), value)


@pytest.mark.parametrize("eager", [True, False])
@torch.no_grad()
def test_each_token_gets_its_own_edit(eager: bool) -> None:
    torch.manual_seed(0)
    model = Model()
    plain = Model()
    plain.load_state_dict(model.state_dict())
    runner = make_runner(model, eager=eager)
    steering = steering_of(runner)
    steering.load(profile("p", Intervention(0, vector(1.0)), Intervention(0, vector(2.0), "generated")))
    steering.load(profile("q", Intervention(2, vector(-3.0), "prompt")))

    output = schedule(runner, ("a", "p", 2, 3, 4), ("b", None, 0, 2, 9), ("c", "q", 0, 2, 1))
    steering.before_step(step_view(runner, output))
    x = torch.randn(7, H)

    wanted = {0: torch.tensor([1.0, 1, 3, 0, 0, 0, 0]), 2: torch.tensor([0.0, 0, 0, 0, 0, -3, 0])}
    hidden, residual = x, torch.zeros_like(x)
    for number, layer in enumerate(plain.model.layers):
        hidden, residual = layer(hidden, residual)
        if number in wanted:
            hidden = hidden + wanted[number][:, None]
    torch.testing.assert_close(model(x), hidden + residual)

    steering.before_dummy()
    assert torch.equal(model(x), plain(x)), "a dummy run must be unsteered"
    applied = steering.receipt("receipt-a")
    assert applied is not None
    assert (applied[0].steered, applied[0].restored) == (5, 2)
    assert steering.receipt("receipt-b") is None


@pytest.mark.parametrize("eager", [True, False])
@torch.no_grad()
def test_what_reads_the_residual_reads_the_sum(eager: bool) -> None:
    """The blocks hand on (hidden, residual) with the add deferred; a projection is of their sum."""
    torch.manual_seed(0)
    model, plain = Model(), Model()
    plain.load_state_dict(model.state_dict())
    runner = make_runner(model, eager=eager, terms=4)
    steering = steering_of(runner)
    direction = torch.randn(H)
    steering.load(profile("p", Intervention(1, vector(2.0), "all", ablate(direction))))
    steering.load(profile("q", Intervention(1, vector(1.0))))
    steering.before_step(
        step_view(runner, schedule(runner, ("a", "p", 0, 2, 2), ("b", "q", 0, 1, 1), ("c", None, 0, 1, 1)))
    )
    run = model if eager else torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    x = torch.randn(4, H)
    blocks: Any = plain.model.layers
    hidden, residual = blocks[0](x, torch.zeros_like(x))
    hidden, residual = blocks[1](hidden, residual)
    unit, total = direction / direction.norm(), hidden + residual
    hidden[:2] += 2.0 - torch.outer(total[:2] @ unit, unit)
    hidden[2] += 1.0
    hidden, residual = blocks[2](hidden, residual)
    torch.testing.assert_close(run(x), hidden + residual)
    steering.before_dummy()
    assert torch.equal(run(x), plain(x))


@pytest.mark.parametrize("eager", [True, False])
@torch.no_grad()
def test_a_condition_lets_tokens_through_and_a_held_one_lasts(eager: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in two pieces and a token after it: the last prompt token decides, for a batch beside others."""
    monkeypatch.setenv("TRIMTAB_BANK_GATES", "1")
    torch.manual_seed(1)
    model, plain = Model(), Model()
    plain.load_state_dict(model.state_dict())
    runner = make_runner(model, eager=eager)
    steering = steering_of(runner)
    run = model if eager else torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    condition, x = torch.randn(H), torch.randn(3, 2, H)  # steps, tokens

    def by_hand(tokens: torch.Tensor, open_: list[bool] | None) -> tuple[torch.Tensor, torch.Tensor]:
        blocks: Any = plain.model.layers
        hidden, residual = blocks[0](tokens, torch.zeros_like(tokens))
        cosine = torch.cosine_similarity(hidden + residual, condition[None])
        for number in (1, 2):
            hidden, residual = blocks[number](hidden, residual)
            if number == 1 and open_ is not None:
                hidden = hidden + 2.0 * torch.tensor(open_)[:, None]
        return hidden + residual, cosine

    cosines = torch.stack([by_hand(step, None)[1] for step in x])
    border = float(cosines[1].mean())  # the two requests' last prompt tokens are on either side of it
    passing = (cosines[1] > border).tolist()
    assert passing[0] != passing[1]
    held = profile("h", Intervention(1, vector(2.0)))
    held.gate = Gate(0, condition, border, hold=True)
    each = profile("e", Intervention(1, vector(2.0)))
    each.gate = Gate(0, condition, border, above=False)
    steering.load(held)
    steering.load(each)
    for number, open_ in enumerate(([False, False], passing, passing)):
        output = schedule(runner, ("a", "h", number, 1, 2), ("b", "h", number, 1, 2))
        steering.before_step(step_view(runner, output), runner.requests)
        torch.testing.assert_close(run(x[number]), by_hand(x[number], open_)[0])
    assert [steering.receipt(f"receipt-{name}")[0].steered for name in "ab"] == [2 * one for one in passing]  # type: ignore[index]
    runner.requests.clear()
    steering.before_step(step_view(runner, schedule(runner, ("c", "e", 0, 2, 2))))
    torch.testing.assert_close(run(x[1]), by_hand(x[1], [not one for one in passing])[0])
    assert steering.receipt("receipt-c")[0].steered == 1  # type: ignore[index]
    steering.before_dummy()
    assert torch.equal(run(x[1]), plain(x[1]))
    # Compiled layers read the conditions' buffers in every step: a longer step must leave nothing behind.
    assert torch.equal(steering.gating.source, torch.arange(len(steering.gating.source)))
    assert not steering.gating.slot.any()
    assert not steering.gating.decides.any()
    assert steering.gating.open.all()
    with pytest.raises(EngineError, match="never went through"):
        steering.before_step(step_view(runner, schedule(runner, ("d", "h", 2, 1, 2))))


@torch.no_grad()
def test_layers_with_a_batch_of_one_in_front_are_steered_token_by_token() -> None:
    """As vLLM runs a model through transformers: [1, tokens, width], and one tensor out of each layer."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(H, H)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + self.linear(hidden)

    model: Any = nn.Module()
    model.layers = nn.ModuleList(Whole() for _ in range(L))
    runner = make_runner(model, terms=1)
    steering = steering_of(runner)
    steering.load(profile("p", Intervention(0, vector(2.0))))
    steering.load(profile("q", Intervention(0, None, "all", ablate(vector(1.0)))))
    x = torch.randn(1, 4, H)
    plain = x + model.layers[0].linear(x)
    steering.before_step(
        step_view(runner, schedule(runner, ("a", "p", 0, 2, 2), ("b", None, 0, 1, 1), ("c", "q", 0, 1, 1)))
    )
    out = model.layers[0](x)
    torch.testing.assert_close(out[:, :2], plain[:, :2] + 2)
    torch.testing.assert_close(out[:, 2], plain[:, 2])
    torch.testing.assert_close(out[0, 3], plain[0, 3] - plain[0, 3].mean())


def test_what_the_engine_cannot_do_is_refused_when_the_profile_is_loaded() -> None:
    runner = make_runner(Model())
    steering = steering_of(runner)
    gated = profile("g", Intervention(1, vector(1.0)))
    gated.gate = Gate(0, vector(1.0), 0.5)
    with pytest.raises(BadInput, match="TRIMTAB_BANK_GATES=1"):
        steering_of(make_runner(Model(), eager=False)).load(gated)
    with pytest.raises(LimitExceeded, match="0 of the bank's 0 rank-1 terms"):
        steering.load(profile("p", Intervention(1, None, "all", ablate(vector(1.0)))))
    runner.vllm_config.scheduler_config.async_scheduling = True
    late = steer(runner, rows=3)
    with pytest.raises(BadInput, match="no-async-scheduling"):
        late.load(profile("t", Intervention(1, vector(1.0), Scope(after="x"))))
    assert steering.live == late.live == {}


@torch.no_grad()
def test_loading_and_unloading_change_what_compiled_code_reads() -> None:
    torch.manual_seed(0)
    model = Model()
    runner = make_runner(model, eager=False)
    steering = steering_of(runner)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    x = torch.randn(4, H)
    before = compiled(x)
    steering.load(profile("p", Intervention(2, vector(5.0))))
    steering.before_step(step_view(runner, schedule(runner, ("a", "p", 0, 4, 4))))
    torch.testing.assert_close(compiled(x), before + 5.0)
    steering.before_dummy()
    steering.unload("p")
    steering.load(profile("q", Intervention(2, vector(-1.0))))
    steering.before_step(step_view(runner, schedule(runner, ("a", "q", 0, 4, 4))))
    torch.testing.assert_close(compiled(x), before - 1.0)


@pytest.mark.parametrize("eager", [True, False])
@torch.no_grad()
def test_what_is_loaded_while_a_step_runs_changes_nothing_before_the_next(
    eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two layers of a step, where a half-written term would act on tokens of the base model."""
    monkeypatch.setenv("TRIMTAB_BANK_GATES", "1")
    torch.manual_seed(0)
    model = Model()
    runner = make_runner(model, eager=eager, terms=2)
    steering = steering_of(runner)
    steering.load(profile("p", Intervention(1, vector(2.0), "all", ablate(torch.randn(H)))))
    batch = ("a", "p", 0, 2, 2), ("b", None, 0, 2, 2)
    steering.before_step(step_view(runner, schedule(runner, *batch)))
    x = torch.randn(4, H)
    alone = model(x)
    late = profile("q", Intervention(1, vector(5.0), "all", ablate(torch.randn(H))))
    late.gate = Gate(0, vector(1.0), -1.0)
    blocks: Any = model.model.layers
    handle = blocks[0].register_forward_hook(lambda *_: steering.load(late))
    assert torch.equal(model(x), alone)
    handle.remove()
    assert "q" not in steering.live
    with pytest.raises(LimitExceeded, match="0 of the bank's 2 rank-1 terms"):
        steering.load(profile("r", Intervention(1, None, "all", ablate(vector(1.0)))))
    steering.load(late)
    steering.before_step(step_view(runner, schedule(runner, ("a", "p", 0, 2, 2), ("b", "q", 0, 2, 2))))
    after = model(x)
    assert torch.equal(after[:2], alone[:2])
    assert not torch.allclose(after[2:], alone[2:])
    steering.load(profile("unused"))
    steering.unload("unused")
    assert set(steering.live) == {"p", "q"}


def test_a_request_of_a_profile_that_is_gone_stops_the_step() -> None:
    runner = make_runner(Model())
    steering = steering_of(runner)
    steering.load(profile("p", Intervention(0, vector(1.0))))
    steering.unload("p")
    with pytest.raises(NotFound):
        steering.before_step(step_view(runner, schedule(runner, ("a", "p", 0, 1, 1))))


def test_a_full_bank_refuses_and_adapters_alone_need_no_row() -> None:
    steering = steering_of(make_runner(Model(), rows=3))
    for name in ("p", "q"):
        steering.load(profile(name, Intervention(0, vector(1.0))))
    with pytest.raises(LimitExceeded):
        steering.load(profile("r", Intervention(0, vector(1.0))))
    steering.load(profile("adapter"))
    steering.before_dummy()
    assert {name: place.layers for name, place in steering.live.items()} == {"p": {0}, "q": {0}, "adapter": set()}
    steering.unload("p")
    steering.load(profile("r", Intervention(0, vector(1.0))))
    steering.before_dummy()
    assert set(steering.live) == {"q", "r", "adapter"}


def test_unknown_runners_and_models_are_refused() -> None:
    with pytest.raises(BadInput, match="does not know"):
        steering_of(SimpleNamespace())
    with pytest.raises(BadInput, match="0 lists of 9 layers"):
        decoder_layers(Model(), 9)
    model = Model()
    model.other = nn.Module()
    model.other.blocks = nn.ModuleList(Block() for _ in range(L))
    with pytest.raises(BadInput, match="2 lists"):
        decoder_layers(model, L)
    with pytest.raises(BadInput, match="Model has no _prepare_inputs"):
        require_methods(Model, ["forward", "_prepare_inputs"])


@pytest.mark.parametrize(
    ("section", "field", "value", "name"),
    [
        (None, "speculative_config", object(), "speculative decoding"),
        ("parallel_config", "pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config", "prefill_context_parallel_size", 2, "prefill context parallelism"),
        ("parallel_config", "use_ubatching", True, "dual-batch overlap"),
        ("cache_config", "kv_sharing_fast_prefill", True, "fast prefill of layers that share a cache"),
        ("model_config", "is_encoder_decoder", True, "an encoder-decoder model"),
        ("model_config", "enable_prompt_embeds", True, "prompt embeddings"),
    ],
)
def test_what_steering_does_not_cover_is_refused_when_the_model_is_loaded(
    section: str | None, field: str, value: object, name: str
) -> None:
    runner = make_runner(Model())
    config = runner.vllm_config
    setattr(config if section is None else getattr(config, section), field, value)
    with pytest.raises(BadInput, match=f"steering does not support {name} yet"):
        RunnerSteering(runner, rows=2)


def test_layers_are_only_skipped_where_no_graph_is_captured() -> None:
    """Graphs can be captured in pieces although nothing is compiled."""
    modes = pytest.importorskip("vllm.config.compilation").CUDAGraphMode
    runner = make_runner(Model(), eager=False)
    compilation = runner.vllm_config.compilation_config
    skips = {}
    for mode in (0, 3):
        for graphs in (modes.NONE, modes.PIECEWISE, modes.FULL_DECODE_ONLY):
            compilation.mode, compilation.cudagraph_mode = mode, graphs
            skips[mode, graphs.name] = RunnerSteering(runner, rows=2).may_skip
    assert [case for case, skip in skips.items() if skip] == [(0, "NONE")]


def test_blocks_past_the_prompt_are_keyed_by_its_length_only_for_scoped_profiles() -> None:
    def request(extra: dict[str, Any] | None) -> Any:
        return SimpleNamespace(num_prompt_tokens=40, sampling_params=SimpleNamespace(extra_args=extra))

    scoped = request({SCOPED_KEY: 1})
    assert [phase_key(scoped, end) for end in (32, 40, 48)] == [None, None, ("trimtab_prompt_length", 40)]
    assert phase_key(request({"trimtab": "x"}), 48) is None
    assert phase_key(request(None), 48) is None
    assert phase_key(SimpleNamespace(num_prompt_tokens=1, sampling_params=None), 48) is None


def test_the_plugin_leaves_other_vllms_alone() -> None:
    code = (
        "import os, sys; os.environ.pop('TRIMTAB_STEERING', None)\n"
        "from trimtab.steering.vllm.plugin import register\n"
        "register()\n"
        "print(sorted(m for m in ('torch', 'vllm', 'numpy', 'yaml', 'pydantic') if m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_compiled_code_of_one_bank_is_not_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {layout()}
    for name in ("TRIMTAB_BANK_ROWS", "TRIMTAB_BANK_TERMS", "TRIMTAB_BANK_GATES", "TRIMTAB_STOCK_LORA"):
        monkeypatch.setenv(name, "1")
        seen.add(layout())
    assert len(seen) == 5
