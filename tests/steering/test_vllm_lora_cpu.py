"""The LoRA op on vLLM's own `PunicaWrapperCPU`, against dense float32 sums; the stock op fails the same checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.steering.vllm import attention_cpu, lora_cpu, lora_native, lora_op
from trimtab.steering.vllm.lora_cpu import patch
from trimtab.steering.vllm.lora_op import group

pytest.importorskip("vllm")

SLOTS, RANK, IN, OUT = 3, 4, 8, (37, 5)


def wrapper_class(*, ours: bool) -> Any:
    """A copy of vLLM's class, so that the tests do not change the one in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    copy = type("Copy", (PunicaWrapperCPU,), {})
    if ours:
        patch(copy)
    return copy


def arranged(dtype: torch.dtype = torch.float32) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The same stacks as vLLM writes them, slot by slot, into weights that lie as the op reads them."""
    layer = SimpleNamespace(
        lora_a_stacked=tuple(torch.zeros(SLOTS, 1, RANK, IN, dtype=dtype) for _ in OUT),
        lora_b_stacked=tuple(torch.zeros(SLOTS, 1, out, RANK, dtype=dtype) for out in OUT),
    )
    lora_op.arrange(layer)
    for i, (a, b) in enumerate(zip(*stacks(), strict=True)):
        for slot in range(SLOTS):
            layer.lora_a_stacked[i][slot, 0, :RANK, :IN].copy_(a[slot, 0])
            layer.lora_b_stacked[i][slot, 0, : OUT[i], :RANK].copy_(b[slot, 0])
    return layer.lora_a_stacked, layer.lora_b_stacked


def wrapper(slots: list[int], sampled: list[int], *, prefill: bool, ours: bool = True) -> Any:
    """A wrapper told each row's slot (-1: none) as the runner tells it: by adapter ids, slot s holding id s + 1."""
    from vllm.lora.layers import LoRAMapping

    made = wrapper_class(ours=ours)(64, 64, "cpu", lora_config=SimpleNamespace(max_loras=SLOTS))
    mapping = LoRAMapping(tuple(s + 1 for s in slots), tuple(s + 1 for s in sampled), is_prefill=prefill)
    made.update_metadata(mapping, [s + 1 for s in range(SLOTS)], SLOTS, 100)
    return made


def stacks(seed: int = 0) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Every slot full: A [slots, 1, rank, in] and B [slots, 1, out, rank] for each slice."""
    g = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN, generator=g) for _ in OUT)
    b = tuple(torch.randn(SLOTS, 1, out, RANK, generator=g) for out in OUT)
    return a, b


def dense(x: torch.Tensor, slots: list[int], a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """Row by row; a row without adapter adds nothing."""
    rows = [
        torch.zeros(b.shape[2]) if s < 0 else scale * (b[s, 0] @ (a[s, 0] @ row))
        for row, s in zip(x, slots, strict=True)
    ]
    return torch.stack(rows)


def difference(slots: list[int], *, prefill: bool, ours: bool) -> torch.Tensor:
    """Largest difference from the dense sums, for each row."""
    a, b = stacks()
    x, y = torch.randn(len(slots), IN), torch.randn(len(slots), sum(OUT))
    wanted = y + torch.cat([dense(x, slots, *pair, 0.5) for pair in zip(a, b, strict=True)], dim=1)
    wrapper(slots, [-1], prefill=prefill, ours=ours).add_lora_linear(y, x, a, b, 0.5, OUT)
    return (y - wanted).abs().amax(dim=1)


@given(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=20), st.booleans())
@settings(deadline=None)
def test_rows_get_their_own_adapter_or_none(slots: list[int], prefill: bool) -> None:
    assert difference(slots, prefill=prefill, ours=True).max() < 1e-4


@pytest.mark.parametrize("prefill", [True, False])
def test_the_stock_op_gives_the_last_adapter_to_rows_without_one(prefill: bool) -> None:
    # Why the op is replaced. When this fails vLLM has been mended, and the replacement is only a matter of speed.
    rows = difference([0, -1, 2], prefill=prefill, ours=False)
    assert rows[0] < 1e-4
    assert rows[2] < 1e-4
    assert rows[1] > 0.1


@given(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=20))
@settings(deadline=None, max_examples=40)
def test_compiled_code_adds_the_same(slots: list[int]) -> None:
    (a, b), x = arranged(), torch.randn(len(slots), IN)
    wanted = torch.cat([dense(x, slots, *pair, 0.5) for pair in zip(*stacks(), strict=True)], dim=1)
    for compiled in (True, False):
        made, y = wrapper(slots, [-1], prefill=False), torch.zeros(len(slots), sum(OUT))

        def run(made: Any = made, y: torch.Tensor = y) -> None:
            made.add_lora_linear(y, x, a, b, 0.5, OUT)

        torch._dynamo.reset()  # or else it gives up after a number of shapes
        (torch.compile(run, backend="eager", fullgraph=True) if compiled else run)()
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)


def test_compiled_code_reads_an_embeddings_own_adapter() -> None:
    slots, b = [2, -1, 0], stacks()[1][0]
    made, low, y = wrapper(slots, [-1], prefill=False), torch.randn(3, RANK), torch.ones(3, OUT[0])
    torch.compile(lambda: made.add_lora_embedding(y, low, b), backend="eager", fullgraph=True)()
    wanted = [torch.zeros(OUT[0]) if s < 0 else b[s, 0] @ row for row, s in zip(low, slots, strict=True)]
    torch.testing.assert_close(y, torch.stack(wanted) + 1)


def test_shrink_and_expand_equal_the_fused_op() -> None:
    slots, (a, b) = [1, -1, 0, 1, -1], stacks()
    x, y = torch.randn(5, IN), torch.zeros(5, sum(OUT))
    made = wrapper(slots, [-1], prefill=True)
    low = tuple(torch.full((5, RANK), 7.0) for _ in OUT)
    made.add_shrink(low, x, a, 0.5)
    made.add_expand(y, low, b, OUT)
    fused = torch.zeros_like(y)
    made.add_lora_linear(fused, x, a, b, 0.5, OUT)
    torch.testing.assert_close(y, fused)
    set_instead = torch.full_like(y, 9.0)
    made.add_expand(set_instead, low, b, OUT, add_inputs=False)
    torch.testing.assert_close(set_instead, fused)


def test_embedding_and_logits() -> None:
    slots, sampled = [2, 2, -1, 0], [2, -1, 0]
    a, b = (part[0] for part in stacks())
    made = wrapper(slots, sampled, prefill=True)
    low, y = torch.randn(4, RANK), torch.zeros(4, OUT[0])
    made.add_lora_embedding(y, low, b)
    wanted = [torch.zeros(OUT[0]) if s < 0 else b[s, 0] @ row for row, s in zip(low, slots, strict=True)]
    torch.testing.assert_close(y, torch.stack(wanted))
    x, logits = torch.randn(3, IN), torch.zeros(3, OUT[0])
    made.add_lora_logits(logits, x, a, b, 2.0)
    torch.testing.assert_close(logits, dense(x, sampled, a, b, 2.0))


def test_slots_without_weights_for_the_logits_are_skipped() -> None:
    """Which they are is noted when an adapter takes or leaves a slot."""
    from vllm.lora.layers import LogitsProcessorWithLoRA

    layer = LogitsProcessorWithLoRA.__new__(LogitsProcessorWithLoRA)
    torch.nn.Module.__init__(layer)
    layer.base_layer, layer.hidden_size, layer.device = SimpleNamespace(vocab_size=OUT[0]), IN, torch.device("cpu")
    layer.sharded_to_full_mapping = None
    config: Any = SimpleNamespace(max_lora_rank=RANK, lora_dtype=torch.float32)
    changed = {
        name: lora_cpu.with_used_slots(getattr(LogitsProcessorWithLoRA, name))
        for name in ("create_lora_weights", "set_lora", "reset_lora")
    }
    changed["create_lora_weights"](layer, SLOTS, config)
    a, b = (part[0] for part in stacks())
    for slot in (0, 2):
        changed["set_lora"](layer, slot, a[slot, 0], b[slot, 0])
    changed["reset_lora"](layer, 2)
    layer.lora_a_stacked[2] = 7.0  # would show if the slot were read
    layer.lora_b_stacked[2] = 7.0
    x, logits = torch.randn(3, IN), torch.zeros(3, OUT[0])
    made = wrapper([0], [2, -1, 0], prefill=True)
    made.add_lora_logits(logits, x, layer.lora_a_stacked, layer.lora_b_stacked, 1.0)
    torch.testing.assert_close(logits, dense(x, [-1, -1, 0], a, b, 1.0))


@pytest.mark.parametrize("laid_out", [True, False])
def test_bfloat16_models(laid_out: bool) -> None:
    """Laid out for it the compiled code does it, else torch."""
    a, b = arranged(torch.bfloat16) if laid_out else (tuple(t.bfloat16() for t in part) for part in stacks())
    x, y = torch.randn(3, IN).bfloat16(), torch.zeros(3, sum(OUT), dtype=torch.bfloat16)
    wrapper([0, -1, 0], [-1], prefill=False).add_lora_linear(y, x, a, b, 1.0, OUT)
    wanted = dense(x[:1].float(), [0], a[0].float(), b[0].float(), 1.0)
    torch.testing.assert_close(y[:1, : OUT[0]].float(), wanted, rtol=0.05, atol=0.2)
    assert not y[1].any()


@given(
    slots=st.lists(st.integers(-1, 4), min_size=1, max_size=40),
    rank=st.integers(1, 40),
    width=st.integers(1, 50),
    outs=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_compiled_rows_equal_torch(
    slots: list[int], rank: int, width: int, outs: list[int], dtype: torch.dtype, seed: int
) -> None:
    """Any shape, in a batch that is part of a larger tensor; what lies around it, and rows without adapter, stay."""
    assert lora_native.why_not() is None
    g = torch.Generator().manual_seed(seed)
    layer = SimpleNamespace(
        lora_a_stacked=tuple(torch.zeros(5, 1, rank, width, dtype=dtype) for _ in outs),
        lora_b_stacked=tuple(torch.zeros(5, 1, out, rank, dtype=dtype) for out in outs),
    )
    lora_op.arrange(layer)
    a, b = layer.lora_a_stacked, layer.lora_b_stacked
    for part in (a, *b):
        part.copy_(torch.randn(part.shape, generator=g) / rank**0.5)
    x = torch.randn(len(slots), width + 3, generator=g).to(dtype)[:, 1 : width + 1]
    around = torch.randn(len(slots) + 2, sum(outs) + 4, generator=g).to(dtype)
    y = around[1:-1, 2:-2]
    wanted = around.clone()
    for row, slot in enumerate(slots):
        lows = [part[slot, 0].float() @ x[row].float() for part in a]
        parts = [0.5 * part[slot, 0].float() @ low for part, low in zip(b, lows, strict=True)]
        if slot >= 0:
            wanted[row + 1, 2:-2] += torch.cat(parts).to(dtype)
    plan = lora_op.Plan(64)
    plan.fill(slots)
    torch.ops.trimtab.lora_add(y, x, a, list(b), plan.order, plan.blocks, outs, 0.5)
    call = lora_native.call_for(a, b, plan.order, plan.blocks, outs)
    assert call is not None
    assert call.takes(y, x)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.05}
    torch.testing.assert_close(around, wanted, **close)
    untouched = torch.tensor([slot < 0 for slot in slots])
    assert torch.equal(around[1:-1][untouched], wanted[1:-1][untouched])


def test_what_is_kept_of_a_call_is_for_these_tensors_only() -> None:
    """The same B with another A, another plan or other widths, in other rows of another tensor."""
    (a, b), other = arranged(), lora_op.Plan(8)
    plan, more = lora_op.Plan(8), SimpleNamespace(lora_a_stacked=tuple(map(torch.zeros_like, stacks()[0])))
    more.lora_b_stacked = tuple(map(torch.zeros_like, stacks()[1]))
    lora_op.arrange(more)
    plan.fill([0, 1])
    other.fill([2, -1])
    x, kept = torch.randn(2, IN), lora_native.call_for(a, b, plan.order, plan.blocks, OUT)
    assert kept is not None
    assert lora_native.call_for(a, b, plan.order, plan.blocks, OUT) is kept
    sums = [dense(x, [2, -1], *pair, 1.0) for pair in zip(*stacks(), strict=True)]
    for given_a, given_plan, widths, wanted in (
        (more.lora_a_stacked, plan, OUT, torch.zeros(2, sum(OUT))),
        (a, other, OUT, torch.cat(sums, 1)),
        (a, other, (20, 5), torch.cat([sums[0][:, :20], sums[1]], 1)),
        (a, other, OUT, torch.cat(sums, 1)),
    ):
        y = torch.zeros(3, sum(widths))
        lora_op.lora_add(y[1:], x, given_a, b, given_plan.order, given_plan.blocks, widths, 1.0)
        torch.testing.assert_close(y[1:], wanted)


def test_an_embeddings_own_adapter_laid_out_for_it() -> None:
    slots, b = [2, -1, 0], stacks()[1][0]
    layer = SimpleNamespace(lora_b_stacked=torch.zeros_like(b))
    lora_op.arrange_embedding(layer)
    layer.lora_b_stacked.copy_(b)
    low, y = torch.randn(3, RANK), torch.ones(3, OUT[0])
    made = wrapper(slots, [-1], prefill=False)
    made.add_lora_embedding(y, low, layer.lora_b_stacked)
    assert getattr(layer.lora_b_stacked, lora_native._CALL).takes(y, low)
    wanted = [torch.zeros(OUT[0]) if s < 0 else b[s, 0] @ row for row, s in zip(low, slots, strict=True)]
    torch.testing.assert_close(y, torch.stack(wanted) + 1)


def test_without_a_compiler_torch_does_the_same(tmp_path: Path) -> None:
    code = (
        "import torch; from trimtab.steering.vllm import lora_native, lora_op; from types import SimpleNamespace\n"
        "a, b = (torch.zeros(2, 1, 1, 3),), (torch.zeros(2, 1, 2, 1),)\n"
        "layer = SimpleNamespace(lora_a_stacked=a, lora_b_stacked=b)\n"
        "plan = lora_op.Plan(4); plan.fill([-1, 1, 1]); lora_op.arrange(layer)\n"
        "a, b = layer.lora_a_stacked.fill_(1.0), [layer.lora_b_stacked[0].fill_(1.0)]\n"
        "x, y = torch.ones(3, 3), torch.zeros(3, 2)\n"
        "torch.ops.trimtab.lora_add(y, x, a, b, plan.order, plan.blocks, [2], 1.0)\n"
        "print(y.tolist(), lora_native.why_not())"
    )
    bare = {**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[[0.0, 0.0], [3.0, 3.0], [3.0, 3.0]] ")
    assert "compiler" in done.stdout


def test_rows_that_lie_together_are_a_slice() -> None:
    (first, rows), (second, scattered) = group([1, 1, -1, 0, -1, 0])
    assert (first, rows, second) == (1, slice(0, 2), 0)
    assert isinstance(scattered, torch.Tensor)
    assert scattered.tolist() == [3, 5]


def test_attention_stays_off_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends import cpu_attn

    monkeypatch.setattr(cpu_attn, "_get_attn_isa", cpu_attn._get_attn_isa)  # put back what install replaces
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.delenv("TRIMTAB_AMX", raising=False)
    assert cpu_attn._get_attn_isa(torch.bfloat16, 32, 64, "auto") == "amx"
    attention_cpu.install()
    attention_cpu.install()
    assert cpu_attn._get_attn_isa(torch.bfloat16, 32, 64, "auto") == "vec"
    assert cpu_attn._get_attn_isa(torch.bfloat16, 48, 64, "auto") == "vec16"
