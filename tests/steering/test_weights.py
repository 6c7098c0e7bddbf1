"""Merged adapters, held to PEFT's own arithmetic and to the identities of weight arithmetic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from trimtab.errors import BadInput
from trimtab.home import file_sha256
from trimtab.steering.document import Document
from trimtab.steering.methods.weight_arithmetic import learn
from trimtab.steering.profile import Profile, save_profile
from trimtab.steering.weights import RANKS, legal_rank, merged_adapter, served_name

Make = Callable[..., Path]
Weights = dict[str, torch.Tensor]


def profile(folder: Path, adapter: Path | None = None, deltas: list[tuple[Path, Path, float]] | None = None) -> Profile:
    data = {"format": 1, "name": folder.name, "base": {"model": "tiny", "sha256": "a" * 64}}
    parts: dict[str, Path] = {}
    if adapter is not None:
        parts["adapter"] = adapter
        data["adapter"] = {"path": "adapter", "sha256": file_sha256(adapter / "adapter_model.safetensors")}
    entries = []
    for number, (plus, minus, strength) in enumerate(deltas or []):
        entry = {"plus": f"deltas/{number}/plus", "minus": f"deltas/{number}/minus"}
        parts |= {entry["plus"]: plus, entry["minus"]: minus}
        entries.append({**entry, "strength": strength})
    document = Document.model_validate({**data, "weight_deltas": entries})
    return save_profile(folder, document, adapters=parts)


@pytest.fixture
def update(new_model: Callable[..., PreTrainedModel]) -> Callable[[Path], Weights]:
    """What an adapter adds to each weight, by PEFT's own merging: an independent reference."""
    plain = {key: value.clone() for key, value in new_model().state_dict().items()}

    def measure(folder: Path) -> Weights:
        merged = PeftModel.from_pretrained(new_model(), str(folder)).merge_and_unload().state_dict()
        return {key: merged[key].double() - plain[key].double() for key in plain}

    return measure


def same(a: Weights, b: Weights, tolerance: float = 1e-6) -> None:
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=tolerance, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


def merged(one: Profile, cache: Path) -> Path:
    made = merged_adapter(one, cache)
    assert made is not None
    return made[0]


def test_sum_of_adapter_and_deltas_equals_peft(
    tmp_path: Path, make_adapter: Make, update: Callable[[Path], Weights]
) -> None:
    """Different ranks, alphas, modules and rsLoRA in one profile; small enough numbers for float32 to hold 1e-6."""
    size = {"size": 0.05}
    adapter = make_adapter("a", 1, r=3, lora_alpha=5, **size)
    plus = make_adapter("p", 2, target_modules=["q_proj", "v_proj"], use_rslora=True, **size)
    minus = make_adapter("m", 3, r=5, target_modules=["down_proj", "v_proj"], layers_to_transform=[0, 2], **size)
    other = make_adapter("o", 4, target_modules=["o_proj"], rank_pattern={"layers.1.self_attn.o_proj": 2}, **size)
    one = profile(tmp_path / "one", adapter, [(plus, minus, 0.7), (other, plus, -1.5)])
    folder = merged(one, tmp_path / "cache")
    a, p, m, o = (update(path) for path in (adapter, plus, minus, other))
    expected = {key: a[key] + 0.7 * (p[key] - m[key]) - 1.5 * (o[key] - p[key]) for key in a}
    assert any(value.abs().max() > 0.01 for value in expected.values())
    same(update(folder), expected)


def test_merged_adapter_is_plain_and_of_one_legal_rank(tmp_path: Path, make_adapter: Make) -> None:
    plus = make_adapter("p", 2, r=5, target_modules=["q_proj"])
    minus = make_adapter("m", 3, r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    folder = merged(profile(tmp_path / "one", make_adapter("a", 1), [(plus, minus, 1.0)]), tmp_path / "cache")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16  # 4 + 5 + 2, rounded up
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert {min(value.shape) for value in tensors.values()} == {16}
    assert len(tensors) == 2 * (3 * 2 + 1)  # q and down in three layers, v in one
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_identities(tmp_path: Path, make_adapter: Make, update: Callable[[Path], Weights]) -> None:
    plus, minus = make_adapter("p", 2, size=0.05), make_adapter("m", 3, size=0.05)
    cache = tmp_path / "cache"
    up, down = update(plus), update(minus)
    zero = update(merged(profile(tmp_path / "zero", None, [(plus, minus, 0.0)]), cache))
    assert all(not value.any() for value in zero.values())  # k = 0: bitwise nothing
    whole = update(merged(profile(tmp_path / "whole", minus, [(plus, minus, 1.0)]), cache))
    same(whole, up)  # k = 1 on theta- is theta+
    forth = update(merged(profile(tmp_path / "forth", None, [(plus, minus, 0.6)]), cache))
    back = update(merged(profile(tmp_path / "back", None, [(minus, plus, 0.6)]), cache))
    same(forth, {key: -value for key, value in back.items()})  # antisymmetric
    same(forth, {key: 0.6 * (up[key] - down[key]) for key in up})
    same(update(merged(profile(tmp_path / "alone", plus), cache)), up)


def test_steered_forward_equals_the_merged_forward(
    tmp_path: Path, make_adapter: Make, new_model: Callable[..., PreTrainedModel], ids: torch.Tensor
) -> None:
    one = profile(tmp_path / "one", make_adapter("a", 1), [(make_adapter("p", 2), make_adapter("m", 3), 0.5)])
    wrapped = PeftModel.from_pretrained(new_model(), str(merged(one, tmp_path / "cache")))
    with torch.inference_mode():
        unmerged = wrapped(input_ids=ids).logits
        together = wrapped.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(unmerged, together, atol=1e-4, rtol=1e-4)


def test_no_weights_no_adapter(tmp_path: Path) -> None:
    assert merged_adapter(profile(tmp_path / "empty"), tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_cache_is_by_content(tmp_path: Path, make_adapter: Make) -> None:
    adapter, cache = make_adapter("a", 1), tmp_path / "cache"
    plus, minus = make_adapter("p", 2), make_adapter("m", 3)
    one = merged_adapter(profile(tmp_path / "one", adapter), cache)
    two = merged_adapter(profile(tmp_path / "two", adapter), cache)
    assert one is not None
    assert two is not None
    assert one == two  # other profile, same weights: one folder
    assert one[1] == file_sha256(one[0] / "adapter_model.safetensors")
    assert served_name(profile(tmp_path / "three", adapter), one[1]) == f"three@{one[1][:12]}"
    stamp = (one[0] / "adapter_model.safetensors").stat().st_mtime_ns
    merged_adapter(profile(tmp_path / "four", adapter), cache)
    assert (one[0] / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    hashes = {one[1]}
    for k in (0.5, 1.0):
        made = merged_adapter(profile(tmp_path / f"k{k}", adapter, [(plus, minus, k)]), cache)
        assert made is not None
        hashes.add(made[1])
    assert len(hashes) == len(list(cache.iterdir())) == 3
    (one[0] / "adapter_model.safetensors").unlink()  # a broken leftover is made anew, the same bytes
    assert merged_adapter(profile(tmp_path / "five", adapter), cache) == one


def test_ranks() -> None:
    assert [legal_rank(rank) for rank in (1, 8, 9, 65, 129, 512)] == [8, 8, 16, 128, 256, 512]
    assert all(legal_rank(rank) == rank for rank in RANKS)
    with pytest.raises(BadInput, match="at most 512"):
        legal_rank(513)


def test_direction(tmp_path: Path, make_adapter: Make, update: Callable[[Path], Weights]) -> None:
    plus, minus = make_adapter("p", 2), make_adapter("m", 3, r=6, target_modules=["q_proj", "v_proj"])
    found = learn(plus, minus)
    up, down = update(plus), update(minus)
    flat = [torch.cat([value.flatten() for value in part.values()]) for part in (up, down)]
    assert found.norm == pytest.approx(float((flat[0] - flat[1]).norm()), rel=1e-5)
    assert found.plus_norm == pytest.approx(float(flat[0].norm()), rel=1e-5)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-5)
    assert found.rank == 10
    key = "model.layers.1.self_attn.v_proj"
    assert found.modules[key] == pytest.approx(float(down[f"{key}.weight"].norm()), rel=1e-5)
    back = learn(minus, plus)
    assert (back.norm, back.cosine) == pytest.approx((found.norm, found.cosine))
    with pytest.raises(BadInput, match="the same adapter"):
        learn(plus, plus)
    path = Path(shutil.copytree(plus, tmp_path / "spelt otherwise")) / "adapter_model.safetensors"
    halves = {".lora_A.": 3.0, ".lora_B.": 1 / 3}
    spelt = {key: t * next(f for half, f in halves.items() if half in key) for key, t in load_file(path).items()}
    save_file(spelt, path)
    with pytest.raises(BadInput, match="the direction would be zero"):
        learn(plus, path.parent)


def test_adapters_of_two_models_do_not_mix(tmp_path: Path, make_adapter: Make) -> None:
    plus, minus = make_adapter("p", 2), make_adapter("m", 3)
    path = minus / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("q_proj.lora_A.weight"))
    tensors[key] = torch.zeros(4, 16)
    save_file(tensors, path)
    with pytest.raises(BadInput, match="other widths"):
        learn(plus, minus)
    with pytest.raises(BadInput, match="come from one base model"):
        profile(tmp_path / "one", None, [(plus, minus, 1.0)])
