"""Training: a fresh model copies, a grown model computes what it grew from, a resumed run is the same run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trimtab.cli import main
from trimtab.errors import BadInput, FailedRun
from trimtab.models.embedded import MODELS, SMALL
from trimtab.models.train.base import grown_model, new_model, train_base
from trimtab.models.train.data import IGNORE, Rows
from trimtab.models.train.health import failure
from trimtab.models.train.loop import Point, fit, learning_rate, loss_of
from trimtab.models.train.recipe import Recipe, load_recipe
from trimtab.models.train.respread import closest, respread

RECIPE = Recipe(steps=6, batch=2, length=16, lr=1e-3, warmup=2, decay=2, hidden=256)


def _repeats(model: Any, seed: int) -> float:
    """Share of tokens predicted right when a list of random tokens is read for the second time."""
    once = torch.randint(30, 3000, (40,), generator=torch.Generator().manual_seed(seed))
    ids = once.repeat(2)[None]
    with torch.inference_mode():
        guessed = model(ids).logits[0].argmax(-1)
    at = torch.arange(len(once) + 4, 2 * len(once))
    return float((guessed[at - 1] == ids[0, at]).float().mean())


def test_a_fresh_model_copies_and_plain_random_weights_do_not() -> None:
    model = new_model(RECIPE, 3072).eval()
    torch.manual_seed(0)
    plain = Qwen3ForCausalLM(Qwen3Config(**model.config.to_dict())).eval()
    for seed in range(4):
        assert _repeats(model, seed) > 0.9
        assert _repeats(plain, seed) < 0.1


def test_a_grown_model_starts_as_the_small_one() -> None:
    small = AutoModelForCausalLM.from_pretrained(MODELS / SMALL, dtype=torch.float32).eval()
    deep = RECIPE.model_copy(update={"layers": 9, "intermediate": small.config.intermediate_size})
    grown = grown_model(MODELS / SMALL, deep).eval()
    ids = torch.randint(30, 3000, (1, 50), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(grown(ids).logits, small(ids).logits, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in grown.parameters()) > 1.3 * sum(p.numel() for p in small.parameters())


def test_training_goes_on_from_a_trained_model_and_its_card_says_so(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"steps": 1, "length": 640})
    card = train_base("more", recipe, tmp_path / "more", tmp_path / "work", go_on_from=MODELS / SMALL)
    assert card["before"] == json.loads((MODELS / SMALL / "card.json").read_text())
    assert (tmp_path / "more/tokenizer.json").read_bytes() == (MODELS / SMALL / "tokenizer.json").read_bytes()
    before, after = (load_file(d / "model.safetensors") for d in (MODELS / SMALL, tmp_path / "more"))
    moved = [float((after[name].float() - tensor.float()).abs().max()) for name, tensor in before.items()]
    # One warmed-up step of Adam moves a weight by at most about the learning rate; bfloat16 rounds what is written.
    assert 0 < max(moved) < 0.05
    assert before.keys() == after.keys()

    shutil.copytree(MODELS / SMALL, tmp_path / "bare", ignore=shutil.ignore_patterns("card.json"))
    with pytest.raises(BadInput, match="card"):
        train_base("more", recipe, tmp_path / "none", tmp_path / "work", go_on_from=tmp_path / "bare")
    assert not (tmp_path / "none").exists()


def _tiny() -> Any:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def _batches(start: int) -> Iterator[Rows]:
    for step in range(start, 100):
        rng = np.random.default_rng(step)
        ids = rng.integers(1, 64, (2, 16))
        targets = np.full((2, 16), IGNORE)
        targets[:, 4:15] = ids[:, 5:]
        ones = np.ones((2, 16), np.int64)
        yield Rows(ids, targets, np.tile(np.arange(16), (2, 1)), ones)


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = _tiny()
    fit(whole, RECIPE, _batches)
    cut = _tiny()
    fit(cut, RECIPE.model_copy(update={"steps": 4, "decay": 0}), _batches, checkpoint=tmp_path, every=4)
    # The cut run had no decay phase yet, so its learning rates are those of the whole run's first four steps.
    assert [learning_rate(RECIPE, s) for s in range(4)] == [
        learning_rate(RECIPE.model_copy(update={"steps": 4, "decay": 0}), s) for s in range(4)
    ]
    resumed = _tiny()
    fit(resumed, RECIPE, _batches, checkpoint=tmp_path, every=100)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_collapsed_embeddings_get_directions_of_their_own() -> None:
    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "7" if ids == [3] else "w"

    model = _tiny()
    before = model.get_input_embeddings().weight
    with torch.no_grad():
        before[:12] = before[0] + 0.001 * torch.randn(12, 32)
    start = before.detach().clone()
    assert float(closest(start)[:12].min()) > 0.9
    assert float(closest(start)[12:].max()) < 0.8
    assert len(respread(model, Letters(), 0.9, seed=1)) == 11
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after[3], start[3])  # not of letters
    assert torch.equal(after[12:], start[12:])  # never collapsed
    assert float(closest(after)[:12].max()) < 0.9
    moved = (after - start)[[0, 1, 2, *range(4, 12)]].norm(dim=1)
    usual = (start[12:] - start.mean(0)).norm(dim=1)
    assert 0.5 < float(moved.mean() / usual.mean()) < 2


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    fit(_tiny(), RECIPE, _batches, checkpoint=tmp_path)
    with pytest.raises(BadInput, match="another recipe"):
        fit(_tiny(), RECIPE.model_copy(update={"lr": 2e-3}), _batches, checkpoint=tmp_path)


def test_a_run_that_diverges_is_stopped_and_leaves_no_checkpoint_of_it(tmp_path: Path) -> None:
    wild = RECIPE.model_copy(update={"lr": 1e4, "steps": 200, "clip": 1e9})
    seen: list[Point] = []
    with pytest.raises(FailedRun, match="loss"):
        fit(_tiny(), wild, _batches, checkpoint=tmp_path, every=1000, report=lambda curve, left: seen.append(curve[-1]))
    assert seen[-1].step < 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("losses", "norms", "done", "failed"),
    [
        ([0.7, 0.5, 0.4, 0.3, 0.2], [1.0, 0.5, 0.3, 0.2, 1e-6], 0.5, False),  # learned all there is
        ([0.7, 0.7, 0.7, 0.7, 0.7], [1.0, 0.9, 0.9, 0.9, 0.9], 0.5, False),  # slow, but it moves
        ([0.7, 0.7, 0.7, 0.7, 0.7], [1.0, 0.9, 0.9, 0.1, 1e-4], 0.1, False),  # too early to judge
        ([0.7, 0.7, 0.7, 0.7, 0.7], [1.0, 0.9, 0.9, 0.1, 1e-4], 0.3, True),
        ([0.1, 0.15, 0.2], [1.0, 1.0, 1.0], 0.1, False),  # a warm restart
        ([0.1, 0.2, 0.4], [1.0, 1.0, 1.0], 0.1, True),
        ([0.1, float("nan")], [1.0, float("nan")], 0.1, True),
        ([], [], 0.0, False),
    ],
)
def test_what_counts_as_a_failed_run(losses: list[float], norms: list[float], done: float, failed: bool) -> None:
    assert (failure(losses, norms, done) is not None) == failed


def test_an_adapter_that_fails_is_tried_from_other_seeds_and_then_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, recipe, store = tmp_path / "mine.jsonl", tmp_path / "wild.yaml", tmp_path / "s"
    said = [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]
    data.write_text(json.dumps({"messages": said}) + "\n")
    recipe.write_text("{steps: 60, batch: 1, length: 32, lr: 1.0e+4, warmup: 1, clip: 1.0e+9}")
    options = ["--data", str(data), "--recipe", str(recipe), "--store", str(store)]
    assert main(["train", "adapter", "mine", *options]) == 7
    told = capsys.readouterr().err
    assert "starting again from seed 1" in told
    assert "starting again from seed 2" in told
    assert "failed from 3 seeds" in told
    assert not store.exists()


def test_packed_documents_do_not_see_each_other() -> None:
    model = _tiny().eval()
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 64, 7), rng.integers(1, 64, 9)

    def rows(*parts: np.ndarray) -> Rows:
        ids = np.concatenate(parts)[None]
        targets = np.full_like(ids, IGNORE)
        at = ids.shape[1] - len(parts[-1])
        targets[0, at:-1] = ids[0, at + 1 :]
        positions = np.concatenate([np.arange(len(p)) for p in parts])[None]
        documents = np.concatenate([np.full(len(p), i) for i, p in enumerate(parts, 1)])[None]
        return Rows(ids, targets, positions, documents)

    alone = loss_of(model, model.model, rows(second))
    packed = loss_of(model, model.model, rows(first, second))
    assert abs(float(alone) - float(packed)) < 2e-2  # bfloat16 autocast
    with torch.inference_mode():
        exact = model(torch.from_numpy(second)[None]).logits[0, :-1]
    reference = torch.nn.functional.cross_entropy(exact, torch.from_numpy(second[1:]))
    assert abs(float(reference) - float(alone)) < 2e-2


def test_bad_recipes_say_which_field(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("steps: 10\nlr: 0.1\nsteeps: 3\n")
    with pytest.raises(BadInput, match="steeps"):
        load_recipe(file)
    file.write_text("steps: -1\nlr: 0.1\n")
    with pytest.raises(BadInput, match="steps"):
        load_recipe(file)
    with pytest.raises(BadInput, match="no such recipe"):
        load_recipe(tmp_path / "nothing.yaml")


def test_one_command_makes_a_profile_of_a_users_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"ping {i}"}, {"role": "assistant", "content": f"pong {i}"}]}
        for i in range(30)
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ["--data", str(data), "--steps", "4", "--store", str(tmp_path / "s"), "--json"]
    options += ["--curve", str(tmp_path / "curve.png")]
    arguments = ["train", "adapter", "mine", *options]
    assert main(arguments) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["data"]["file"] == "mine.jsonl"
    assert card["failed"] == []
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--curve", str(tmp_path / "curve.svg")]) == 2
    assert "Name a .png file" in capsys.readouterr().err
    assert (tmp_path / "s" / "mine@1" / "profile.yaml").exists()
    data.write_text(data.read_text() + "\n{broken")
    assert main([*arguments[:2], "other", *arguments[3:]]) == 2
    assert not (tmp_path / "s" / "other@1").exists()


def test_an_example_longer_than_a_row_is_named_and_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(words: int) -> str:
        said = [{"role": "user", "content": "milk " * words}, {"role": "assistant", "content": "done"}]
        return json.dumps({"messages": said})

    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join([row(3), row(5000), row(4)]))
    assert main(["train", "adapter", "mine", "--data", str(data), "--steps", "2", "--store", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    assert "line 2: " in said
    assert "tokens, more than the recipe's length of 640" in said
    assert "line 1" not in said
    assert not (tmp_path / "s").exists()
