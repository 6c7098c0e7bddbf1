"""What steering takes for granted about vLLM's V2 model runner, held to vLLM's own classes.

The runner's bookkeeping is vLLM's own code, run on the CPU through the lives of requests: added, computed in pieces,
reordered, preempted, taken up again, finished. Only what a Triton kernel would write is written by hand. (That the
whole runner steers as it should is shown in `test_vllm_random`, with its kernels interpreted.)
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from trimtab.errors import BadInput, EngineError
from trimtab.steering.vllm import runner_v2
from trimtab.steering.vllm.runner import require_methods
from trimtab.steering.vllm.runner_v2 import drop_ended, note_new, step_view
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.lora_utils import LoraState
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.states import RequestState

PROMPTS = {"a": [1, 2, 3, 4, 5, 6, 7], "b": [11, 12], "c": [21, 22, 23]}
PROFILES = {"a": "p", "b": None, "c": "q"}
CPU = torch.device("cpu")


class Nothing:
    """Stands for a part of the runner that steering has nothing to do with: every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Life:
    """A V2 runner as far as it keeps track of requests, and the steps a scheduler would make it do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Without a GPU there is no memory to share with it, and no kernel: what writes staged values is written out.
        monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)
        monkeypatch.setattr(buffer_utils.StagedWriteTensor, "apply_write", apply_write)
        self.runner: Any = SimpleNamespace(
            req_states=RequestState(4, 32, 16, 0, 100, CPU),
            lora_state=LoraState(4),
            block_tables=Nothing(),
            model_state=Nothing(),
            sampler=None,
            is_last_pp_rank=False,
            use_pp=False,
            decode_query_len=1,
            trimtab_asked={},
            **dict.fromkeys(
                ("pooling_runner", "encoder_cache", "adaptive_verification", "pp_handler", "prompt_logprobs_worker")
            ),
            pcp_manager=None,
        )
        self.runner._remove_request = lambda request_id: GPUModelRunner._remove_request(self.runner, request_id)
        self.said: dict[str, list[int]] = {name: [] for name in PROMPTS}

    def step(
        self,
        tokens: dict[str, int],
        *,
        new: Sequence[tuple[str, int]] = (),
        going: Sequence[tuple[str, int]] = (),
        finished: Sequence[str] = (),
        preempted: Sequence[str] = (),
    ) -> Any:
        """One step as the runner does it up to its model; (id, tokens computed before) of new and going requests."""
        runner, output = self.runner, SchedulerOutput.make_empty()
        output.scheduled_new_reqs = [self.asked(name, computed) for name, computed in new]
        cached = CachedRequestData.make_empty()
        cached.req_ids = [name for name, _ in going]
        cached.num_computed_tokens = [computed for _, computed in going]
        cached.new_block_ids = [None for _ in going]
        output.scheduled_cached_reqs = cached
        output.num_scheduled_tokens = dict(tokens)
        output.total_num_scheduled_tokens = sum(tokens.values())
        output.finished_req_ids, output.preempted_req_ids = set(finished), set(preempted)
        drop_ended(runner.trimtab_asked, output)
        GPUModelRunner.finish_requests(runner, output)
        note_new(runner.trimtab_asked, output)
        GPUModelRunner.add_requests(runner, output)
        GPUModelRunner.update_requests(runner, output)
        state, _ = GPUModelRunner.gather_batch_req_state(runner, output, False)
        assert state is not None
        count = len(state.req_ids)
        batch = dataclasses.replace(
            InputBatch.make_dummy(count, state.num_tokens, InputBuffers(4, 32, CPU)),
            req_ids=state.req_ids,
            idx_mapping_np=state.idx_mapping_np,
            num_scheduled_tokens=state.num_scheduled_tokens,
            num_computed_tokens_np=runner.req_states.num_computed_tokens_np[state.idx_mapping_np],
        )
        return step_view(runner, batch)

    def asked(self, name: str, computed: int) -> NewRequestData:
        """A request as the scheduler sends it: what was said so far is among its tokens."""
        extra = {"trimtab": PROFILES[name], "trimtab_id": f"r{name}"} if PROFILES[name] else None
        return NewRequestData(
            req_id=name,
            prompt_token_ids=PROMPTS[name],
            mm_features=[],
            sampling_params=SamplingParams(max_tokens=8, extra_args=extra),
            pooling_params=None,
            block_ids=([1],),
            num_computed_tokens=computed,
            lora_request=LoRARequest("x", 1, "nowhere") if name == "c" else None,
            prefill_token_ids=PROMPTS[name] + self.said[name],
        )

    def sample(self, name: str, token: int) -> None:
        """A token is generated: what `post_update` writes on the device."""
        row = self.runner.req_states.req_id_to_index[name]
        self.runner.req_states.all_token_ids.gpu[row, len(PROMPTS[name]) + len(self.said[name])] = token
        self.said[name].append(token)


def apply_write(self: Any) -> None:
    """`_apply_write_kernel`, in Python."""
    begin = 0
    rows = self.gpu if self.gpu.dim() == 2 else self.gpu[:, None]
    for row, start, end in zip(
        self._staged_write_indices, self._staged_write_starts, self._staged_write_cu_lens, strict=True
    ):
        rows[row, start : start + end - begin] = torch.tensor(self._staged_write_contents[begin:end], dtype=self.dtype)
        begin = end
    self.clear_staged_writes()


def plain(view: Any) -> list[tuple[Any, ...]]:
    """A view, request by request: id, profile, receipt, adapter, position, length, prompt length, answer."""
    assert view.lengths.dtype == view.positions.dtype == view.prompt_lengths.dtype == np.int64
    assert len(view.outputs) == len(view.request_ids)
    fields = (view.request_ids, view.profiles, view.receipts, view.adapters)
    numbers = (view.positions.tolist(), view.lengths.tolist(), view.prompt_lengths.tolist())
    return list(zip(*fields, *numbers, view.outputs[:], strict=True))


def test_a_step_is_read_in_the_order_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(monkeypatch)
    # A prompt in pieces; the batch is sorted by the number of tokens.
    first = life.step({"a": 4, "b": 2}, new=[("a", 0), ("b", 0)])
    assert plain(first) == [("b", None, None, None, 0, 2, 2, []), ("a", "p", "ra", None, 0, 4, 7, [])]
    life.sample("b", 31)
    # A prefix that was found in the cache: its positions are not computed.
    second = life.step({"b": 1, "a": 3, "c": 1}, new=[("c", 2)], going=[("b", 2), ("a", 4)])
    assert plain(second) == [
        ("b", None, None, None, 2, 1, 2, [31]),
        ("c", "q", "rc", "x", 2, 1, 3, []),
        ("a", "p", "ra", None, 4, 3, 7, []),
    ]
    for name in "abc":
        life.sample(name, 40 + ord(name))
    # One ends, one is thrown out.
    third = life.step({"c": 1}, going=[("c", 3)], finished=["b"], preempted=["a"])
    assert plain(third) == [("c", "q", "rc", "x", 3, 1, 3, [139])]
    assert set(life.runner.trimtab_asked) == {"a", "c"}, "a condition that is held must outlast a preemption"
    life.sample("c", 50)
    # The one that was thrown out comes back, perhaps in another slot, with its answer so far to be computed again.
    fourth = life.step({"c": 1, "a": 5}, new=[("a", 0)], going=[("c", 4)])
    assert plain(fourth) == [
        ("c", "q", "rc", "x", 4, 1, 3, [139, 50]),
        ("a", "p", "ra", None, 0, 5, 7, []),
    ]
    fifth = life.step({"a": 3}, going=[("a", 5)], finished=["c"])
    assert plain(fifth) == [("a", "p", "ra", None, 5, 3, 7, [137])]
    assert set(life.runner.trimtab_asked) == {"a"}


def test_what_is_not_known_stops_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(monkeypatch)
    batch = InputBatch.make_dummy(1, 2, InputBuffers(4, 32, CPU))
    with pytest.raises(EngineError, match="was never added"):
        step_view(life.runner, batch)
    life.step({"a": 1}, new=[("a", 0)])
    with pytest.raises(EngineError, match="draft tokens"):
        step_view(life.runner, dataclasses.replace(batch, req_ids=["a"], num_draft_tokens=1))


def test_the_runner_calls_what_is_wrapped_in_the_known_order() -> None:
    calls = [
        node.func.attr
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(GPUModelRunner.execute_model))))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    lines = {
        name: inspect.getsource(GPUModelRunner.execute_model).index(f"self.{name}(")
        for name in ("finish_requests", "add_requests", "update_requests", "prepare_inputs", "model")
    }
    assert list(lines) == sorted(lines, key=lines.__getitem__)
    assert calls.count("prepare_inputs") == 2, "the runner's, and the model state's, which is given the same batch"
    source = inspect.getsource(GPUModelRunner)
    assert source.count("self.prepare_inputs(") == 1
    assert source.count("def _dummy_run") == source.count("def capture_model") == 1
    assert list(inspect.signature(GPUModelRunner.prepare_inputs).parameters)[:2] == ["self", "scheduler_output"]
    assert "InputBatch" in str(inspect.signature(GPUModelRunner.prepare_inputs).return_annotation)
    assert list(inspect.signature(GPUModelRunner.add_requests).parameters) == ["self", "scheduler_output"]
    assert list(inspect.signature(GPUModelRunner.finish_requests).parameters) == ["self", "scheduler_output"]


def test_the_cpus_runner_takes_its_seams_from_the_gpus() -> None:
    from vllm.v1.worker.cpu.model_runner import CPUModelRunner

    assert issubclass(CPUModelRunner, GPUModelRunner)
    assert not set(runner_v2.SEAMS) & set(vars(CPUModelRunner)), "an override would go around what is wrapped"


def test_another_layout_is_refused_when_it_is_met() -> None:
    require_methods(GPUModelRunner, runner_v2.SEAMS)
    runner_v2._require_fields(InputBatch, runner_v2.BATCH)
    runner_v2._require_fields(NewRequestData, runner_v2.REQUEST)
    with pytest.raises(BadInput, match="GPUModelRunner has no settle"):
        require_methods(GPUModelRunner, ["settle"])
    with pytest.raises(BadInput, match="InputBatch has no places"):
        runner_v2._require_fields(InputBatch, ["places"])
    with pytest.raises(BadInput, match=r"model runner has no req_states\.prompt_len\.np"):
        runner_v2.steer(SimpleNamespace(req_states=SimpleNamespace()), 2)


def test_a_model_that_does_not_generate_token_by_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(monkeypatch)
    life.runner.model_state = SimpleNamespace(num_new_sampled_tokens_per_step=0)
    with pytest.raises(BadInput, match="token by token"):
        runner_v2.steer(life.runner, 2)
