"""A profile at another strength: what is scaled, what stays, and what has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trimtab.errors import BadInput
from trimtab.home import file_sha256
from trimtab.steering.document import Document
from trimtab.steering.hooks import adapted, steered
from trimtab.steering.profile import Profile, save_profile
from trimtab.steering.strength import at_strength
from trimtab.steering.weights import merged_adapter

BASE = {"model": "tiny", "sha256": "0" * 64}


@pytest.fixture
def profile(tmp_path: Path, make_adapter: Callable[..., Path]) -> Profile:
    """An adapter, a weight delta, a vector and a direction that is taken out."""
    generator = torch.Generator().manual_seed(3)
    folders = {name: make_adapter(f"from-{name}", seed) for seed, name in enumerate(("adapter", "plus", "minus"))}
    document = Document.model_validate(
        {
            "format": 1,
            "name": "all",
            "base": BASE,
            "adapter": {"path": "adapter", "sha256": file_sha256(folders["adapter"] / "adapter_model.safetensors")},
            "weight_deltas": [{"plus": "plus", "minus": "minus", "strength": 0.8}],
            "interventions": [
                {"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 2.0},
                {"kind": "ablate", "layer": 0, "file": "v.safetensors", "tensor": "u"},
            ],
        }
    )
    tensors = {name: torch.randn(32, generator=generator) for name in ("v", "u")}
    return save_profile(tmp_path / "all@1", document, tensors={"v.safetensors": tensors}, adapters=folders)


def logits(model: torch.nn.Module, profile: Profile, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    merged = merged_adapter(profile, folder)
    folders = None if merged is None else merged[0]
    with torch.no_grad(), adapted(model, folders) as whole, steered(whole, profile, ids.shape[1]):
        return torch.as_tensor(whole(ids).logits)


def test_at_strength_0_only_the_adapter_is_left(
    profile: Profile, new_model: Callable[[], torch.nn.Module], ids: torch.Tensor, tmp_path: Path
) -> None:
    model = new_model()
    with torch.no_grad(), adapted(model, profile.adapter) as plain:
        wanted = plain(ids).logits
    torch.testing.assert_close(
        logits(model, at_strength(profile, 0), tmp_path / "m", ids), wanted, rtol=1e-4, atol=1e-4
    )
    assert (logits(model, profile, tmp_path / "m", ids) - wanted).abs().max() > 0.1


def test_a_strength_is_what_a_profile_written_with_it_does(
    profile: Profile, new_model: Callable[[], torch.nn.Module], ids: torch.Tensor, tmp_path: Path
) -> None:
    fields = profile.document.model_dump(mode="json", exclude_none=True)
    fields["weight_deltas"][0]["strength"] *= -0.5
    fields["interventions"][0]["strength"] *= -0.5
    fields["interventions"][1]["strength"] = -0.5
    written = save_profile(
        tmp_path / "written@1",
        Document.model_validate(fields),
        tensors={"v.safetensors": load_file(profile.directory / "v.safetensors")},
        adapters={name: profile.directory / name for name in ("adapter", "plus", "minus")},
    )
    model = new_model()
    torch.testing.assert_close(
        logits(model, at_strength(profile, -0.5), tmp_path / "m", ids), logits(model, written, tmp_path / "m", ids)
    )


def test_every_strength_has_an_identity_of_its_own(profile: Profile) -> None:
    assert at_strength(profile, 1) is profile
    assert len({at_strength(profile, s).sha256 for s in (1, 0, 0.5, 0.25, -0.5)}) == 5
    assert at_strength(profile, 2).sha256 == at_strength(profile, 2.0).sha256


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 101, -100.5])
def test_what_is_no_strength(profile: Profile, strength: float) -> None:
    with pytest.raises(BadInput, match="is no strength"):
        at_strength(profile, strength)


@pytest.mark.parametrize("part", ["interventions.1", "weight_deltas.0"])
def test_what_overflows_at_a_strength_is_refused(profile: Profile, tmp_path: Path, part: str) -> None:
    """Terms of which one is infinite would make a bank's other rows NaN, too: 0 times infinity is none."""
    fields = profile.document.model_dump(mode="json", exclude_none=True)
    group, number = part.split(".")
    fields[group][int(number)]["strength"] = 3e37
    written = save_profile(
        tmp_path / "much@1",
        Document.model_validate(fields),
        tensors={"v.safetensors": load_file(profile.directory / "v.safetensors")},
        adapters={name: profile.directory / name for name in ("adapter", "plus", "minus")},
    )
    with pytest.raises(BadInput, match="overflow") as caught:
        merged_adapter(at_strength(written, -100.0), tmp_path / "m")
    assert caught.value.where == "strength"


def test_an_adapter_alone_has_none(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    folder = make_adapter("a", 1)
    sha = file_sha256(folder / "adapter_model.safetensors")
    fields = {"format": 1, "name": "plain", "base": BASE, "adapter": {"path": "adapter", "sha256": sha}}
    plain = save_profile(tmp_path / "plain@1", Document.model_validate(fields), adapters={"adapter": folder})
    for strength in (0.5, 1):
        with pytest.raises(BadInput, match="adapter alone"):
            at_strength(plain, strength)
