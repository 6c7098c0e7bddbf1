"""Attention of steps in which each request computes one token: over a cache that vLLM filled, against float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.steering.vllm import attention_cpu, decode_native
from trimtab.steering.vllm.launch import STOCK_ATTENTION
from vllm import _custom_ops as ops

pytestmark = pytest.mark.skipif(
    decode_native.why_not() is not None, reason=f"no compiled attention: {decode_native.why_not()}"
)

SCALE = 0.2


@dataclass(frozen=True)
class Requests:
    """Keys and values of requests, and the same in a cache whose blocks lie anywhere; what nobody wrote is NaN."""

    query: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    cache: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor

    def attend(self, some: slice = slice(None)) -> torch.Tensor:
        out = torch.full_like(self.query[some], math.nan)
        assert decode_native.takes(out, self.query[some], self.cache)
        decode_native.attend(out, self.query[some], self.cache, self.table[some], self.lengths[some], SCALE)
        return out

    def truth(self) -> torch.Tensor:
        rows = []
        for query, keys, values in zip(self.query, self.keys, self.values, strict=True):
            shared = query.shape[0] // keys.shape[1]
            k, v = (t.double().repeat_interleave(shared, dim=1) for t in (keys, values))
            weights = torch.softmax(SCALE * torch.einsum("hd,thd->ht", query.double(), k), dim=1)
            rows.append(torch.einsum("ht,thd->hd", weights, v))
        return torch.stack(rows)


def requests(
    lengths: list[int], kv: int = 2, shared: int = 3, dim: int = 64, block: int = 32, dtype: torch.dtype = torch.float32
) -> Requests:
    generator = torch.Generator().manual_seed(sum(lengths))
    keys = [torch.randn(n, kv, dim, generator=generator).to(dtype) for n in lengths]
    values = [torch.randn(n, kv, dim, generator=generator).to(dtype) for n in lengths]
    query = (3 * torch.randn(len(lengths), kv * shared, dim, generator=generator)).to(dtype)
    counts = [-(-n // block) for n in lengths]
    places = torch.randperm(sum(counts) + 2, generator=generator).to(torch.int32)
    table = torch.full((len(lengths), max(counts) + 1), 2**30, dtype=torch.int32)
    slots, at = [], 0
    for row, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = places[at : at + count]
        slots += [int(table[row, t // block]) * block + t % block for t in range(n)]
        at += count
    cache = torch.full((len(places), kv, block, 2 * dim), math.nan, dtype=dtype)
    halves = cache.view(len(places), kv, 2 * block, dim).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(torch.cat(keys), torch.cat(values), *halves, torch.tensor(slots), "vec")
    return Requests(query, keys, values, cache, table, torch.tensor(lengths, dtype=torch.int32))


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    kv=st.integers(1, 3),
    shared=st.integers(1, 10),
    dim=st.sampled_from([32, 64, 96, 128]),
    block=st.sampled_from([32, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(deadline=None, max_examples=60)
def test_each_request_sees_its_own_tokens_and_no_others(
    lengths: list[int], kv: int, shared: int, dim: int, block: int, dtype: torch.dtype
) -> None:
    some = requests(lengths, kv, shared, dim, block, dtype)
    # Logits of 25 are off by some 2e-5 in float32, and so are weights; another token would be off by more than 0.01.
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-8}
    torch.testing.assert_close(some.attend().double(), some.truth(), **near)


@given(st.lists(st.integers(1, 100), min_size=2, max_size=8))
@settings(deadline=None, max_examples=20)
def test_a_request_gets_the_same_in_every_batch(lengths: list[int]) -> None:
    some = requests(lengths)
    alone = [some.attend(slice(i, i + 1)) for i in range(len(lengths))]
    assert torch.equal(torch.cat(alone), some.attend())


def test_rows_may_lie_apart() -> None:
    some = requests([5, 70, 33])
    wide = torch.zeros(3, 20, 64)
    wide[:, 4:10] = some.query
    out = torch.zeros(3, 9, 64)
    decode_native.attend(out[:, 2:8], wide[:, 4:10], some.cache, some.table, some.lengths, SCALE)
    assert torch.equal(out[:, 2:8], some.attend())
    assert not out[:, :2].any()
    assert not out[:, 8:].any()


def test_logits_far_apart_and_what_is_not_a_number() -> None:
    some = requests([40, 40, 40])
    some.query[0] *= 1e6
    torch.testing.assert_close(some.attend()[0].double(), some.truth()[0], rtol=1e-4, atol=1e-4)
    some.query[1, 2, 3] = math.nan
    out = some.attend()
    assert out[1, 2].isnan().all()
    assert not out[2].isnan().any()


class Impl(SimpleNamespace):
    """A layer's attention as vLLM makes it, as far as the step's way depends on it."""

    @classmethod
    def of(cls, some: Requests, **others: Any) -> Impl:
        plain = {
            "num_kv_heads": some.cache.shape[1],
            "attn_type": "decoder",
            "sliding_window": -1,
            "logits_soft_cap": 0,
            "alibi_slopes": None,
            "sinks": None,
            "is_fp8_kv_cache": False,
            "head_size": some.query.shape[2],
            "scale": SCALE,
        }
        return cls(**{**plain, **others})


def step_of(some: Requests, **others: Any) -> SimpleNamespace:
    rows = some.query.shape[0]
    plain = {
        "num_actual_tokens": rows,
        "max_query_len": 1,
        "seq_lens": some.lengths,
        "block_table": some.table,
        "dynamic_causal": None,
    }
    return SimpleNamespace(**{**plain, **others})


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`CPUAttentionBackendImpl.forward` as installed, over a stock one that says that it was called."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    monkeypatch.setattr(CPUAttentionBackendImpl, "forward", lambda *_, **__: "stock")
    monkeypatch.delenv(STOCK_ATTENTION, raising=False)
    monkeypatch.setenv("TRIMTAB_AMX", "1")  # leaves the choice of kernels alone
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)  # as many as there are tasks below

    def installed() -> Any:
        attention_cpu.install()
        attention_cpu.install()
        return CPUAttentionBackendImpl.forward

    return installed


VEC = SimpleNamespace(isa="vec")


def test_a_step_of_one_token_each_goes_our_way(forward: Any) -> None:
    some = requests([9, 64, 31])
    padded = torch.cat([some.query, torch.zeros_like(some.query[:1])])
    out = torch.zeros_like(padded)
    run = forward()
    assert run(Impl.of(some), VEC, padded, None, None, some.cache, step_of(some), out) is out
    assert torch.equal(out[:3], some.attend())
    assert not out[3].any()


@pytest.mark.parametrize(
    ("impl", "step", "isa"),
    [
        ({}, {"max_query_len": 2}, "vec"),
        ({}, {"num_actual_tokens": 2}, "vec"),
        ({}, {"dynamic_causal": torch.ones(1)}, "vec"),
        ({}, {}, "amx"),
        ({"sliding_window": 16}, {}, "vec"),
        ({"logits_soft_cap": 30.0}, {}, "vec"),
        ({"alibi_slopes": torch.ones(6)}, {}, "vec"),
        ({"sinks": torch.ones(6)}, {}, "vec"),
        ({"attn_type": "encoder_decoder"}, {}, "vec"),
        ({"is_fp8_kv_cache": True}, {}, "vec"),
        ({"head_size": 80}, {}, "vec"),
        ({"num_kv_heads": 1}, {}, "vec"),  # fewer tasks than threads
    ],
)
def test_every_other_step_goes_the_stock_way(
    forward: Any, impl: dict[str, Any], step: dict[str, Any], isa: str
) -> None:
    some = requests([9, 64, 31])
    out = torch.zeros_like(some.query)
    layer = SimpleNamespace(isa=isa)
    given_step = step_of(some, **step)
    assert forward()(Impl.of(some, **impl), layer, some.query, None, None, some.cache, given_step, out) == "stock"
    assert not out.any()


def test_caches_that_are_laid_out_otherwise_are_not_read(forward: Any) -> None:
    some = requests([9, 64, 31])
    out, run = torch.zeros_like(some.query), forward()
    for cache in (some.cache.bfloat16(), some.cache.transpose(1, 2), some.cache[..., :64], some.cache[:, :, :16]):
        assert run(Impl.of(some), VEC, some.query, None, None, cache, step_of(some), out) == "stock"
    assert run(Impl.of(some), VEC, some.query, None, None, some.cache, None, out) == "stock"
    # Heads that lie apart, and outputs that are to be scaled, by place as some of vLLM's layers say it.
    apart = torch.zeros(3, 6, 128)[..., :64]
    for query, to in ((apart, out), (some.query, apart), (some.query, out.bfloat16()), (some.query, out[:, :3])):
        assert run(Impl.of(some), VEC, query, None, None, some.cache, step_of(some), to) == "stock"
    for scales in ((torch.ones(1), None), (None, torch.ones(1))):
        assert run(Impl.of(some), VEC, some.query, None, None, some.cache, step_of(some), out, *scales) == "stock"


def test_a_row_without_tokens_is_left_alone(forward: Any) -> None:
    some = requests([9, 64, 31])
    out, wanted = torch.full_like(some.query, 7.0), some.attend()
    some.lengths[1] = 0
    forward()(Impl.of(some), VEC, some.query, None, None, some.cache, step_of(some), out, None, None)
    assert torch.equal(out[[0, 2]], wanted[[0, 2]])
    assert (out[1] == 7).all()


def test_what_layers_go_through_is_told(forward: Any) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    def layer(**others: Any) -> SimpleNamespace:
        impl = CPUAttentionBackendImpl.__new__(CPUAttentionBackendImpl)
        vars(impl).update(vars(Impl.of(some, **others)))
        return SimpleNamespace(isa="vec", impl=impl)

    some = requests([9])
    plain, window, other = layer(), layer(sliding_window=16), SimpleNamespace()
    assert attention_cpu.describe([plain, other]) == "stock"
    forward()
    assert attention_cpu.describe([plain, other]) == "trimtab"
    assert attention_cpu.describe([plain, window, other]) == "trimtab in 1 of 2 layers"
    assert attention_cpu.describe([window]) == "stock"


def test_the_stock_way_can_be_kept(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOCK_ATTENTION, "1")
    some = requests([9, 64, 31])
    out = torch.zeros_like(some.query)
    assert forward()(Impl.of(some), VEC, some.query, None, None, some.cache, step_of(some), out) == "stock"
