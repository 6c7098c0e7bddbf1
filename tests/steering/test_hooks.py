"""The reference hooks, held to identities that need no tolerance or a tiny one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trimtab.errors import BadInput
from trimtab.steering.hooks import adapted, decoder_layers, reading, steered
from trimtab.steering.intervention import Gate, Intervention, fold, variants
from trimtab.steering.wearing import wear

HIDDEN, LAYERS = 32, 3


def vector(seed: int, size: float = 1.0) -> torch.Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed)) * size


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def test_layers_are_found_by_structure(model: PreTrainedModel) -> None:
    assert decoder_layers(model) == list(model.model.layers)
    with pytest.raises(BadInput, match="0 lists of"):
        decoder_layers(nn.Linear(2, 2))


def test_zero_vector_is_bitwise_nothing(model: PreTrainedModel, ids: torch.Tensor) -> None:
    plain = logits(model, ids)
    for tokens in ("all", "prompt", "generated"):
        with steered(model, [Intervention(1, torch.zeros(HIDDEN), tokens)], 4):
            assert torch.equal(logits(model, ids), plain)


def test_hooks_are_gone_afterwards_even_after_an_error(model: PreTrainedModel, ids: torch.Tensor) -> None:
    plain = logits(model, ids)
    with steered(model, [Intervention(0, vector(1))], 4):
        assert not torch.allclose(logits(model, ids), plain)
    assert torch.equal(logits(model, ids), plain)
    with pytest.raises(RuntimeError), steered(model, [Intervention(0, vector(1))], 4):
        model(input_ids=ids.float())
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
def test_equals_the_edit_made_by_hand(model: PreTrainedModel, ids: torch.Tensor, tokens: str) -> None:
    add, border = vector(2), 5
    rows = {"all": slice(None), "prompt": slice(0, border), "generated": slice(border, None)}[tokens]

    def by_hand(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        edited = output.clone()
        edited[:, rows] += add
        return edited

    handle = model.model.layers[1].register_forward_hook(by_hand)
    expected = logits(model, ids)
    handle.remove()
    with steered(model, [Intervention(1, add, tokens)], border):
        assert torch.equal(logits(model, ids), expected)


def test_patch_identity(model: PreTrainedModel) -> None:
    """With p- and p+ that differ in their last token, adding a(p+) - a(p-) there turns p- into p+ (CAA, check i)."""
    plus = torch.tensor([[5, 9, 33, 70]])
    minus = torch.tensor([[5, 9, 33, 71]])
    for layer in range(LAYERS):
        with torch.inference_mode(), reading(model, [layer]) as seen:
            model(input_ids=plus)
            high = seen[layer][0, -1]
            model(input_ids=minus)
            low = seen[layer][0, -1]
        with steered(model, [Intervention(layer, high - low, "generated")], 3):
            patched = logits(model, minus)[0, -1]
        # at layers below the last, later blocks still attend to the same earlier tokens
        torch.testing.assert_close(patched, logits(model, plus)[0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
def test_cached_and_uncached_generation_agree(model: PreTrainedModel, ids: torch.Tensor, tokens: str) -> None:
    parts = [Intervention(0, vector(3, 2.0), tokens), Intervention(2, vector(4, 2.0), tokens)]
    settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 256}
    mask = torch.ones_like(ids)
    with torch.inference_mode(), steered(model, parts, ids.shape[1]):
        cached = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **settings)
        uncached = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(cached, uncached)
    assert cached.shape[1] == ids.shape[1] + 16
    by_hand = ids  # and both are greedy steps of whole passes
    for _ in range(16):
        with steered(model, parts, ids.shape[1]):
            by_hand = torch.cat([by_hand, logits(model, by_hand)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, by_hand)


def test_scopes_add_up_to_all(model: PreTrainedModel, ids: torch.Tensor) -> None:
    add = vector(6)
    with steered(model, [Intervention(1, add, "prompt"), Intervention(1, add, "generated")], 5):
        both = logits(model, ids)
    with steered(model, [Intervention(1, add, "all")], 5):
        assert torch.equal(logits(model, ids), both)


def test_fold_is_linear_and_order_does_not_matter(model: PreTrainedModel, ids: torch.Tensor) -> None:
    a, b = vector(7), vector(8)
    parts = [Intervention(1, a), Intervention(1, b), Intervention(2, b, "prompt"), Intervention(1, 2 * a)]
    folded = fold(parts)
    assert list(folded) == [1, 2]
    torch.testing.assert_close(folded[1].vector, 3 * a + b)
    assert all(torch.equal(edit.vector, fold(parts[::-1])[layer].vector) for layer, edit in folded.items())
    with steered(model, parts, 5):
        one = logits(model, ids)
    with steered(model, [Intervention(1, folded[1].vector), Intervention(2, folded[2].vector, "prompt")], 5):
        assert torch.equal(logits(model, ids), one)
    made = variants(parts)  # all tokens are in the first scope, those of the prompt in both
    assert {mask: sorted(edits) for mask, edits in made.edits.items()} == {1: [1], 3: [1, 2]}
    assert made.layers == {1, 2}


def test_rows_of_a_batch_have_their_own_prompt_length(model: PreTrainedModel, ids: torch.Tensor) -> None:
    other = ids.flip(1)
    parts = [Intervention(1, vector(9), "prompt")]
    alone = []
    for row, length in ((ids, 3), (other, 9)):
        with steered(model, parts, length):
            alone.append(logits(model, row)[0])
    with steered(model, parts, [3, 9]):
        batch = logits(model, torch.cat([ids, other]))
    torch.testing.assert_close(batch, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(model: PreTrainedModel, ids: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="layers 0 to 2"), steered(model, [Intervention(3, vector(1))], 1):
        pass
    with pytest.raises(BadInput, match="width 7"), steered(model, [Intervention(0, torch.ones(7))], 1):
        logits(model, ids)
    with pytest.raises(BadInput, match="not all among 0 to 2"), reading(model, [0, 3]):
        pass


def test_reading_gives_the_block_outputs(model: PreTrainedModel, ids: torch.Tensor) -> None:
    with torch.inference_mode(), reading(model, range(LAYERS)) as seen:
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(LAYERS - 1):  # the last entry of hidden_states is after the final norm
        assert torch.equal(seen[layer], states[layer + 1])
    with torch.inference_mode():
        torch.testing.assert_close(model.model.norm(seen[LAYERS - 1]), states[LAYERS])


def test_adapted_model_is_plain_again(new_model, make_adapter, ids: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    model = new_model()
    plain = logits(model, ids)
    with adapted(model, make_adapter("a", 1)) as wrapped:
        changed = logits(wrapped, ids)
        with steered(wrapped, [Intervention(1, vector(3))], 4):  # layers are found under PEFT's wrapping too
            assert not torch.allclose(logits(wrapped, ids), changed)
    assert not torch.allclose(changed, plain)
    assert torch.equal(logits(model, ids), plain)
    with adapted(model, None) as same:
        assert same is model


@torch.no_grad()
@pytest.mark.parametrize(
    ("old", "new", "rows", "says"),
    [
        ("1.mlp.down_proj", "1.mlp.down_proj", 3, r"layers.1.mlp.down_proj is \[32, 48\].*changes \[35, 48\]"),
        ("1.mlp.down_proj", "1.mlp.fc_extra", 0, "layers.1.mlp.fc_extra, which the model does not have"),
        ("1.mlp.down_proj", "9.mlp.down_proj", 0, "layers.9.mlp.down_proj, which the model does not have"),
        ("1.mlp.down_proj", "1.mlp", 0, "layers.1.mlp is no linear layer"),
    ],
)
def test_an_adapter_that_does_not_fit_leaves_the_model_alone(
    new_model: Callable[..., PreTrainedModel],
    make_adapter: Callable[..., Path],
    edit: Callable[..., None],
    ids: torch.Tensor,
    old: str,
    new: str,
    rows: int,
    says: str,
) -> None:
    model = new_model()
    plain, parts = logits(model, ids), [name for name, _ in model.named_modules()]
    folder = make_adapter("a", 1)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for half in "AB":
            tensor = tensors.pop(f"base_model.model.model.layers.{old}.lora_{half}.weight")
            more = torch.zeros(rows, tensor.shape[1]) if half == "B" else torch.zeros(0, tensor.shape[1])
            tensors[f"base_model.model.model.layers.{new}.lora_{half}.weight"] = torch.cat([tensor, more])

    edit(folder / "adapter_model.safetensors", spoil)
    with pytest.raises(BadInput, match=says), adapted(model, folder):
        pass
    assert [name for name, _ in model.named_modules()] == parts
    assert torch.equal(logits(model, ids), plain)


@torch.no_grad()
def test_an_adapter_that_fails_half_way_is_taken_off_again(
    new_model: Callable[..., PreTrainedModel],
    make_adapter: Callable[..., Path],
    ids: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model()
    plain, parts = logits(model, ids), [name for name, _ in model.named_modules()]

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the disk went away\nand so on")

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "load_adapter", fail)  # PEFT has put its layers in by then
        with pytest.raises(BadInput, match=r"does not fit the model \(the disk went away\)"):
            wear(model, make_adapter("a", 1))
    assert [name for name, _ in model.named_modules()] == parts
    assert torch.equal(logits(model, ids), plain)
    worn = wear(model, make_adapter("b", 2), name="b")
    changed = logits(worn, ids)
    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.set_peft_model_state_dict", fail)
        with pytest.raises(BadInput, match="the disk went away"):
            wear(worn, make_adapter("a", 1), name="other")
    assert list(worn.peft_config) == ["b"]
    assert torch.equal(logits(worn, ids), changed)


@torch.no_grad()
@pytest.mark.parametrize("above", [True, False])
def test_a_held_condition_is_asked_of_a_prompt_token_that_is_left_alone(
    model: PreTrainedModel, ids: torch.Tensor, above: bool
) -> None:
    """Only answers are edited; whether they are hangs on the last prompt token, which has no edit of its own."""
    vector = torch.ones(model.config.hidden_size)
    part = Intervention(1, vector, "generated")
    state = model(ids, output_hidden_states=True).hidden_states[1][
        0, 7
    ]  # of the last of 8 prompt tokens, after block 0
    plain = model(ids).logits
    with steered(model, [part], 8):
        edited = model(ids).logits
    for condition, passing in ((state, above), (-state, not above)):
        with steered(model, [part], 8, gate=Gate(0, condition.clone(), 0.5, above=above, hold=True)) as run:
            found = model(ids).logits
        torch.testing.assert_close(found, edited if passing else plain)
        assert run.edited == (4 if passing else 0)
