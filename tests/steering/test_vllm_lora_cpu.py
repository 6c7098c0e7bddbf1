"""The LoRA op on vLLM's own `PunicaWrapperCPU`, against dense float32 sums; the stock op fails the same checks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.steering.vllm import attention_cpu, lora_cpu, lora_dense
from trimtab.steering.vllm.lora_cpu import group, patch

pytest.importorskip("vllm")

SLOTS, RANK, IN, OUT = 3, 4, 8, (6, 5)


def wrapper_class(*, ours: bool) -> Any:
    """A copy of vLLM's class, so that the tests do not change the one in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    copy = type("Copy", (PunicaWrapperCPU,), {})
    if ours:
        patch(copy)
    return copy


def arranged() -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The same stacks as vLLM writes them, slot by slot, into weights that lie as compiled code reads them."""
    layer = SimpleNamespace(
        lora_a_stacked=tuple(torch.zeros(SLOTS, 1, RANK, IN) for _ in OUT),
        lora_b_stacked=tuple(torch.zeros(SLOTS, 1, out, RANK) for out in OUT),
    )
    lora_dense.arrange(layer)
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


def test_bfloat16_models() -> None:
    a, b = (tuple(t.bfloat16() for t in part) for part in stacks())
    x, y = torch.randn(3, IN).bfloat16(), torch.zeros(3, sum(OUT), dtype=torch.bfloat16)
    wrapper([0, -1, 0], [-1], prefill=False).add_lora_linear(y, x, a, b, 1.0, OUT)
    wanted = dense(x[:1].float(), [0], a[0].float(), b[0].float(), 1.0)
    torch.testing.assert_close(y[:1, : OUT[0]].float(), wanted, rtol=0.05, atol=0.2)
    assert not y[1].any()


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
