"""LoRA layers that multiply by one matrix while they are trained: PEFT's own results, and plain layers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trimtab.models.train import merged as module
from trimtab.models.train.merged import merged


def _tuned(base: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **{"target_modules": "all-linear", **settings})
    return get_peft_model(model, config)


def _loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AMX; the products stay in float32, so that they can be compared closely."""
    monkeypatch.setattr(module, "whole_is_faster", lambda: True)


@pytest.mark.usefixtures("fast")
def test_one_product_gives_pefts_loss_and_gradients(tiny_model: Path) -> None:
    model = _tuned(tiny_model)
    before, expected = _loss_and_gradients(model)
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    with merged(model):
        assert layers
        assert all("forward" in vars(layer) for layer in layers)
        loss, found = _loss_and_gradients(model)
    assert not any("forward" in vars(layer) for layer in layers)
    assert loss == pytest.approx(before, abs=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def _two(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=4, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"lora_dropout": 0.5}, None),
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({}, _two),
        ({}, lambda model: model.merge_adapter()),
        ({}, lambda model: model.base_model.disable_adapter_layers()),
        ({}, lambda model: model.to(torch.bfloat16)),
    ],
)
def test_other_layers_stay_pefts(
    tiny_model: Path, settings: dict[str, Any], change: Callable[[Any], None] | None
) -> None:
    model = _tuned(tiny_model, **settings)
    if change is not None:
        change(model)
    with merged(model):
        assert not any("forward" in vars(m) for m in model.modules())


def test_where_thin_products_are_cheaper_they_stay(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "whole_is_faster", lambda: False)
    model = _tuned(tiny_model)
    with merged(model):
        assert not any("forward" in vars(m) for m in model.modules())
