"""Float32 products with bfloat16 weights, against float64 and torch's own; and vLLM's layers that go through them."""

from __future__ import annotations

import ctypes
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.native import AMX, load_native
from trimtab.steering.vllm import cache_keys, linear_cpu, linear_native
from trimtab.steering.vllm.launch import STOCK_LINEAR

needs_tiles = pytest.mark.skipif(
    linear_native.why_not() is not None, reason=f"no products in tiles: {linear_native.why_not()}"
)


def exact(out: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """Float32 weights that are bfloat16 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, inputs, generator=generator).bfloat16().float()


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    packed = linear_native.pack(weight)
    assert packed is not None
    out: torch.Tensor = torch.ops.trimtab.linear(x, packed, weight.shape[0])
    return out


def largest_error(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    """Against float64, in units of what sums of this length in float32 may be off."""
    truth = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    return float(((y.double() - truth).abs() / (scale * 2**-24 * math.sqrt(x.shape[-1]))).max())


@needs_tiles
@given(
    rows=st.integers(1, 130),
    steps=st.integers(1, 12),
    out=st.integers(1, 100),
    size=st.integers(-60, 60),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_a_product_is_as_near_to_the_truth_as_float32_is(rows: int, steps: int, out: int, size: int, seed: int) -> None:
    weight = exact(out, 32 * steps, seed)
    x = torch.randn(rows, 32 * steps, generator=torch.Generator().manual_seed(seed + 1)) * 2.0**size
    assert largest_error(product(x, weight), x, weight) < 2


@needs_tiles
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=1, max_size=64)
)
def test_no_bit_of_a_number_is_lost(numbers: list[float]) -> None:
    # Times one, nothing is rounded. Tiles take no subnormal numbers: the last parts of very small ones would be such.
    kept = [n for n in numbers if n == 0 or 2.0**-100 < abs(n) < 2.0**127]
    x = torch.zeros(1, 64)
    x[0, : len(kept)] = torch.tensor(kept)
    assert torch.equal(product(x, torch.eye(64)), x)


@needs_tiles
@given(rows=st.integers(2, 100), threads=st.integers(1, 3), shape=st.sampled_from([(48, 96), (2100, 1024)]))
@settings(deadline=None, max_examples=30)
def test_a_row_is_the_same_in_every_batch(rows: int, threads: int, shape: tuple[int, int]) -> None:
    weight, x = exact(*shape), torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    alone = torch.cat([product(x[i : i + 1], weight) for i in range(rows)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = product(x, weight)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


@needs_tiles
def test_shapes_and_strides_that_layers_meet() -> None:
    weight = exact(40, 64)
    wide = torch.randn(3, 5, 200)
    x = wide[..., 7:71]
    assert not x.is_contiguous()
    assert torch.equal(product(x, weight), product(x.contiguous(), weight))
    turned = torch.randn(64, 9).T
    assert torch.equal(product(turned, weight), product(turned.contiguous(), weight))
    assert product(torch.empty(0, 64), weight).shape == (0, 40)
    with pytest.raises(ValueError, match="96"):
        product(torch.randn(2, 96), weight)
    with pytest.raises(ValueError, match="bfloat16"):
        product(torch.randn(2, 64).bfloat16(), weight)
    with pytest.raises(ValueError, match="65"):
        torch.ops.trimtab.linear(torch.randn(2, 64), linear_native.pack(weight), 65)
    assert product(torch.full((1, 64), math.inf), weight).isnan().all()


@needs_tiles
def test_compiled_code_calls_it() -> None:
    weight, x = exact(64, 32), torch.randn(4, 32)
    packed = linear_native.pack(weight)
    compiled = torch.compile(lambda x: torch.ops.trimtab.linear(x, packed, 64) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(x), 2 * product(x, weight))
    torch.library.opcheck(torch.ops.trimtab.linear.default, (x, packed, 64))


@pytest.mark.parametrize(
    "weight",
    [
        exact(8, 32) * 1.001,
        exact(8, 32).bfloat16(),
        exact(8, 48),
        torch.full((8, 32), math.nan),
        torch.zeros(0, 32),
    ],
    ids=["not bfloat16 numbers", "bfloat16", "no multiple of 32", "NaN", "empty"],
)
def test_weights_that_are_left_to_vllm(weight: torch.Tensor) -> None:
    layer = SimpleNamespace(weight=weight)
    assert linear_native.pack(weight) is None
    assert not linear_cpu.use_tiles(layer, remove_weight=True)
    assert not hasattr(layer, "cpu_linear")
    assert layer.weight is weight


@pytest.fixture
def dispatch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's own choice for a layer, after `linear_cpu.install`."""
    from vllm.model_executor.layers import utils

    stock = getattr(utils.dispatch_cpu_unquantized_gemm, "__wrapped__", utils.dispatch_cpu_unquantized_gemm)
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", stock)
    monkeypatch.setattr(linear_cpu, "_chosen", [])
    monkeypatch.delenv(STOCK_LINEAR, raising=False)

    def install() -> Any:
        linear_cpu.install()
        linear_cpu.install()
        return utils.dispatch_cpu_unquantized_gemm

    return install


def multiplied(choose: Any, weight: torch.Tensor, bias: torch.Tensor | None, *, remove: bool) -> torch.Tensor:
    """What a layer with this choice of how to multiply makes of `X`."""
    from vllm.model_executor.layers.utils import cpu_unquantized_gemm

    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    choose(layer, remove_weight=remove)
    assert layer.weight.numel() == (0 if remove else weight.numel())
    out: torch.Tensor = cpu_unquantized_gemm(layer, X, layer.weight, bias)
    return out


X = torch.randn(7, 64, generator=torch.Generator().manual_seed(5))


@needs_tiles
@pytest.mark.parametrize(("biased", "remove"), itertools.product([False, True], repeat=2))
def test_a_layer_of_vllm_multiplies_by_tiles(dispatch: Any, biased: bool, remove: bool) -> None:
    weight, bias = exact(24, 64), torch.arange(24.0) if biased else None
    wanted = product(X, weight) if bias is None else product(X, weight) + bias
    assert torch.equal(multiplied(dispatch(), weight, bias, remove=remove), wanted)
    assert linear_cpu.installed()
    # Others go vLLM's way.
    odd = weight * 1.001
    torch.testing.assert_close(multiplied(dispatch(), odd, None, remove=remove), X @ odd.T)
    assert linear_cpu.choices() == "10"


def test_the_stock_way_can_be_kept(dispatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STOCK_LINEAR, "1")
    dispatch()
    assert not linear_cpu.installed()


def test_without_amx_vllm_is_left_alone(dispatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    linear_native._library.cache_clear()
    try:
        dispatch()
        assert not linear_cpu.installed()
        assert linear_native.why_not() == "the processor has no AMX"
    finally:
        linear_native._library.cache_clear()


def test_a_compiler_says_in_its_own_words_what_it_does_not_take(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main() { return nothing_of_the_kind; }\n")
    assert "nothing_of_the_kind" in str(load_native(source))


SETS_TILES_AND_MULTIPLIES = """
extern "C" int kept(float* y, const float* x, const void* w) {
  TileConfig before, after;
  before.rows[3] = 5, before.bytes[3] = 20;
  asm volatile("ldtilecfg %0" ::"m"(before));
  linear(y, x, w, 16, 32, 1, 32, 32);
  asm volatile("sttilecfg %0" : "=m"(after));
  asm volatile("tilerelease");
  return after.palette == 1 && after.rows[3] == 5 && after.bytes[3] == 20;
}
extern "C" int released(float* y, const float* x, const void* w) {
  TileConfig after;
  linear(y, x, w, 16, 32, 1, 32, 32);
  asm volatile("sttilecfg %0" : "=m"(after));
  return after.palette == 0;
}
"""


@needs_tiles
def test_tiles_of_others_are_put_back(tmp_path: Path) -> None:
    caller = tmp_path / "caller.cpp"
    caller.write_text(SETS_TILES_AND_MULTIPLIES)
    library = load_native(AMX, linear_native.SOURCE, caller)
    assert not isinstance(library, str), library
    weight, x = exact(32, 32), torch.randn(16, 32)
    packed = linear_native.pack(weight)
    assert packed is not None
    for function in (library.kept, library.released):
        y = torch.zeros(16, 32)
        function.argtypes = [ctypes.c_void_p] * 3
        assert function(y.data_ptr(), x.data_ptr(), packed.data_ptr()) == 1
        assert torch.equal(y, product(x, weight))


def test_compiled_code_is_keyed_by_which_layers_multiply_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, told = set(), []
    for choices in ([], [True, True], [True, False], [False, True], [False]):
        monkeypatch.setattr(linear_cpu, "_chosen", choices)
        keys.add(cache_keys.layout())
        told.append(linear_cpu.describe())
    assert len(keys) == 5
    assert told == ["stock", "tiles", *["tiles in 1 of 2 layers"] * 2, "stock"]
