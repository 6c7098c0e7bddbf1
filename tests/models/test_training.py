"""Training: a fresh model copies, a grown model computes what it grew from, a killed run goes on as the same run."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trimtab.cli import main
from trimtab.errors import BadInput, FailedRun
from trimtab.models.embedded import MODELS, SMALL, families
from trimtab.models.embedded.template import root_of
from trimtab.models.train import attention, attention_rows, base, loop, sizes
from trimtab.models.train.attention import BLOCK, blocks, faster, sight
from trimtab.models.train.base import grown_model, new_model, train_base
from trimtab.models.train.data import IGNORE, Clump, Example, Rows, to_rows
from trimtab.models.train.health import failure
from trimtab.models.train.held import Held, of_base
from trimtab.models.train.loop import Point, fit, learning_rate, loss_of, of_steps, optimizers
from trimtab.models.train.recipe import Recipe, load_recipe
from trimtab.models.train.variants import Variants

RECIPE = Recipe(steps=6, batch=2, length=16, lr=1e-3, warmup=2, decay=2, hidden=256)


def _repeats(
    model: Any, once: torch.Tensor, twice: torch.Tensor | None = None, piece: torch.Tensor | None = None
) -> float:
    """Share of tokens predicted right when a list of tokens is read for the second time.

    Args:
        twice: the same list in other variants.
        piece: [V], the piece that a token is a variant of; where given, a piece is right in any variant.
    """
    ids = torch.cat([once, once if twice is None else twice])[None]
    with torch.inference_mode():
        guessed = model(ids).logits[0].argmax(-1)
    at = torch.arange(len(once) + 4, 2 * len(once))
    pair = guessed[at - 1], ids[0, at]
    return float((pair[0] == pair[1] if piece is None else piece[pair[0]] == piece[pair[1]]).float().mean())


def test_a_fresh_model_copies_and_plain_random_weights_do_not() -> None:
    model = new_model(RECIPE, 3072).eval()
    torch.manual_seed(0)
    plain = Qwen3ForCausalLM(Qwen3Config(**model.config.to_dict())).eval()
    for seed in range(4):
        once = torch.randint(30, 3000, (40,), generator=torch.Generator().manual_seed(seed))
        assert _repeats(model, once) > 0.9
        assert _repeats(plain, once) < 0.1


def test_a_fresh_model_with_variants_copies_words_whatever_stands_before_them(words_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words_tokenizer)
    variants = Variants(tokenizer, RECIPE.hidden)
    model = new_model(RECIPE, len(tokenizer), variants).eval()
    torch.testing.assert_close(model.get_input_embeddings().weight, variants())
    known = tokenizer.get_vocab()
    pieces = [t for t in known if t.isascii() and t.isalpha() and t.islower() and root_of(t, known)[0] == t]
    for seed in range(4):
        drawn = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))[:40].tolist()
        plain = torch.tensor([known[pieces[i]] for i in drawn])
        spaced = torch.tensor([known["\u0120" + pieces[i]] for i in drawn])
        for pair in ((plain, plain), (spaced, spaced), (spaced, plain), (plain, spaced)):
            assert _repeats(model, *pair, piece=variants.index) > 0.85  # type: ignore[arg-type]


def test_the_variants_of_a_word_differ_by_shifts_that_all_share(words_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words_tokenizer)
    torch.manual_seed(1)
    variants = Variants(tokenizer, 24)
    with torch.no_grad():
        variants.roots.normal_()
        variants.shifts.normal_()
    assert len(variants.roots) < 0.6 * len(tokenizer)
    whole = variants().detach()
    known = tokenizer.get_vocab()
    row = {word: whole[known[word.replace(" ", "\u0120")]] for word in ("the", " the", "The", " The")}
    torch.testing.assert_close(row[" the"] - row["the"], variants.shifts[0])
    torch.testing.assert_close(row["The"] - row["the"], variants.shifts[1])
    torch.testing.assert_close(row[" The"] - row["the"], variants.shifts.sum(0))
    special = [known["<|im_end|>"], known["<tool_call>"]]
    torch.testing.assert_close(whole[special], variants.roots[variants.index[special]])  # type: ignore[index]

    again = Variants(tokenizer, 24)
    again.read(whole)
    torch.testing.assert_close(again(), whole, atol=1e-5, rtol=0)
    coarse = Variants(tokenizer, 24)
    coarse.read(whole.to(torch.bfloat16))  # as it is written to disk
    torch.testing.assert_close(coarse(), whole, atol=0.03, rtol=0)


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
    assert all(card["recipe"][size] == card["before"]["recipe"][size] for size in ("layers", "hidden", "heads"))
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


def test_a_base_does_not_go_on_from_a_checkpoint_of_another_start_or_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "of_base", lambda world: Held(()))
    start, work = tmp_path / "start", tmp_path / "work"
    shutil.copytree(MODELS / SMALL, start)
    recipe = RECIPE.model_copy(update={"steps": 1, "length": 640})
    first = train_base("more", recipe, tmp_path / "more", work, go_on_from=start)
    told: list[Any] = []
    again = train_base("more", recipe, tmp_path / "more", work, go_on_from=start, report=lambda *a: told.append(a))
    assert (again["sha256"], told) == (first["sha256"], [])  # it is done, and is not trained again

    known = families.phrasings("train")
    intent, texts = next(iter(known["calc"].items()))
    more = {**known, "calc": {**known["calc"], intent: (*texts, texts[0])}}
    with monkeypatch.context() as patch:
        patch.setattr(families, "phrasings", lambda split: more)
        with pytest.raises(BadInput, match="other data"):
            train_base("more", recipe, tmp_path / "none", work, go_on_from=start)
    tensors = load_file(start / "model.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * 2}, start / "model.safetensors")
    with pytest.raises(BadInput, match="another start"):
        train_base("more", recipe, tmp_path / "none", work, go_on_from=start)
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
    for step in itertools.count(start):
        rng = np.random.default_rng(step)
        ids = rng.integers(1, 64, (2, 16))
        targets = np.full((2, 16), IGNORE)
        targets[:, 4:15] = ids[:, 5:]
        ones = np.ones((2, 16), np.int64)
        yield Rows(ids, targets, np.tile(np.arange(16), (2, 1)), ones, ones)


def test_a_time_limit_chooses_the_steps_and_their_number_gives_the_same_run_again() -> None:
    endless = RECIPE.model_copy(update={"steps": 10**6, "decay": 500_000})
    timed = fit(_tiny(), endless, _batches, minutes=0.06)
    steps = timed[-1].step
    assert 100 < steps < endless.steps
    # The learning rate has fallen as at the end of any run: the last step's is the smallest there is.
    assert timed[-1].learning_rate == pytest.approx(endless.lr / round(steps / 2), rel=0.02)
    again = fit(_tiny(), of_steps(endless, steps), _batches)
    assert [(p.step, p.loss) for p in again] == [(p.step, p.loss) for p in timed]


@pytest.mark.parametrize(("steps", "decay", "cut"), [(10**6, 500_000, 200), (60, 10, 120)])
def test_a_timed_run_that_goes_on_keeps_to_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, decay: int, cut: int
) -> None:
    # A clock that is a second on whenever it is read: each step takes a little more than two.
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=partial(next, itertools.count())))
    monkeypatch.setattr(loop, "PLANNED", 20)
    recipe = RECIPE.model_copy(update={"steps": steps, "decay": decay})

    def cut_off(start: int) -> Iterator[Rows]:
        yield from itertools.islice(_batches(start), cut + 5)
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        fit(_tiny(), recipe, cut_off, minutes=10, checkpoint=tmp_path, every=20)
    curve = fit(_tiny(), recipe, _batches, minutes=10, checkpoint=tmp_path, every=20)
    assert 260 < curve[-1].step < 300
    rates = [point.learning_rate for point in curve]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(recipe.lr / round(decay * curve[-1].step / steps), rel=0.02)


def test_a_run_tells_how_long_it_waited_for_data() -> None:
    def slow(start: int) -> Iterator[Rows]:
        for rows in _batches(start):
            time.sleep(0.05)
            yield rows

    last = fit(_tiny(), RECIPE, slow)[-1]
    # However fast the steps are, that many batches are not made sooner; and some of the time goes into the steps.
    assert last.seconds > 0.05 * (RECIPE.steps - 1)
    assert 0 < last.waited < last.seconds


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


LONG = RECIPE.model_copy(update={"steps": 50, "decay": 10, "optimizer": "muon"})


def hang_after(folder: Path, steps: int) -> None:
    """Train, with checkpoints, and stand still after so many steps: what a test kills. Runs in a process of its own."""

    def batches(start: int) -> Iterator[Rows]:
        for number, rows in enumerate(_batches(start), start):
            if number == steps:
                (folder / "stands").touch()
                time.sleep(600)
            yield rows

    fit(_tiny(), LONG, batches, checkpoint=folder, every=20)


def test_a_killed_run_goes_on_as_the_run_it_was(tmp_path: Path) -> None:
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('worker', sys.argv[1])\n"
        "worker = importlib.util.module_from_spec(spec)\n"
        "sys.modules['worker'] = worker\n"
        "spec.loader.exec_module(worker)\n"
        "worker.hang_after(pathlib.Path(sys.argv[2]), 33)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, __file__, str(tmp_path)])
    try:
        while not (tmp_path / "stands").exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    whole, resumed = _tiny(), _tiny()
    curve = fit(whole, LONG, _batches)
    started: list[int] = []

    def batches(start: int) -> Iterator[Rows]:
        started.append(start)
        yield from _batches(start)

    again = fit(resumed, LONG, batches, checkpoint=tmp_path, every=20)
    assert started == [20]
    told = [[(p.step, p.loss, p.learning_rate, p.tokens) for p in points] for points in (curve, again)]
    assert told[0] == told[1]
    assert [step for step, *_ in told[0]] == [20, 40, 50]
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    fit(_tiny(), RECIPE, _batches, checkpoint=tmp_path)
    with pytest.raises(BadInput, match="another recipe"):
        fit(_tiny(), RECIPE.model_copy(update={"lr": 2e-3}), _batches, checkpoint=tmp_path)
    with pytest.raises(BadInput, match="other data"):
        fit(_tiny(), RECIPE, _batches, checkpoint=tmp_path, of="rows of somebody else")


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


def _example(rng: np.random.Generator, opening: list[int], size: int) -> Example:
    """An opening, three tokens of the user, and `size` of the assistant."""
    own = rng.integers(1, 64, 3 + size).tolist()
    return Example((*opening, *own), (False,) * (len(opening) + 3) + (True,) * size, len(opening))


def _need_kernel(dtype: torch.dtype = torch.float32) -> None:
    if (why := attention_rows.why_not(dtype)) is not None:
        pytest.skip(f"no attention kernel: {why}")


@pytest.mark.parametrize("kernel", [True, False])
def test_packed_conversations_and_shared_openings_change_no_loss(monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    if kernel:
        _need_kernel()
    for module in (loop, attention):
        monkeypatch.setattr(module, "bfloat16_is_fast", lambda: False)
    if not kernel:
        monkeypatch.setattr(attention_rows, "why_not", lambda *_: "not wanted")
    model = _tiny().eval()
    rng = np.random.default_rng(0)
    opening, other = rng.integers(1, 64, 6).tolist(), rng.integers(1, 64, 4).tolist()
    first, second, third = _example(rng, opening, 5), _example(rng, opening, 9), _example(rng, other, 7)
    alone = []
    for example in (first, second, third):
        ids = torch.tensor([example.ids])
        start = len(example.ids) - sum(example.learn)
        with torch.no_grad():
            logits = model(ids).logits[0, start - 1 : -1]
        alone.append(float(torch.nn.functional.cross_entropy(logits, ids[0, start:])))
    clumps = [Clump(tuple(opening), (first, second)), Clump(tuple(other), (third,))]
    for members, weights in (
        (clumps[:1], (5, 9, 0)),
        (clumps, (5, 9, 7)),
        (clumps[::-1], (5, 9, 7)),
    ):
        rows = to_rows([members], 48)
        mean = sum(w * loss for w, loss in zip(weights, alone, strict=True)) / sum(weights)
        assert float(loss_of(model, model.model, rows)) == pytest.approx(mean, abs=1e-5)
        with faster(model):
            assert model.config._attn_implementation == (attention_rows if kernel else attention).NAME
            assert float(loss_of(model, model.model, rows)) == pytest.approx(mean, abs=1e-5)


def test_attention_in_blocks_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    length = 2 * BLOCK + 37
    query = torch.randn(2, 4, length, 16, generator=generator, requires_grad=True)
    key, value = (torch.randn(2, 2, length, 16, generator=generator, requires_grad=True) for _ in range(2))
    numbers = np.sort(np.random.default_rng(0).integers(1, 4, (2, length)), 1)
    branches = np.random.default_rng(1).integers(0, 3, (2, length))
    mask = sight(torch.from_numpy(numbers), torch.from_numpy(branches))
    mine, _ = blocks(None, query, key, value, mask, scaling=0.3)
    wide = [t.repeat_interleave(2, 1) for t in (key, value)]
    whole = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(mine, whole.transpose(1, 2))
    graded = [torch.autograd.grad(out.square().sum(), (query, key, value)) for out in (mine, whole)]
    for a, b in zip(*graded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def _packed(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Clumps and branches of random packed rows, padding at the end; openings and conversations are of any length."""
    clumps, branches = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int64)
    for row in range(rows):
        at, number = 0, 0
        while at < length and (number == 0 or rng.random() < 0.8):
            number += 1
            end = at + int(rng.integers(1, length - at + 1))
            clumps[row, at:end] = number
            at += int(rng.integers(0, end - at + 1))
            for branch in range(1, length):
                if at >= end:
                    break
                size = int(rng.integers(1, end - at + 1))
                branches[row, at : at + size] = branch
                at += size
    return clumps, branches


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from([(4, 2, 16), (3, 1, 32), (6, 2, 64), (2, 2, 128)])
)
def test_the_attention_kernel_is_attention(seed: int, length: int, shape: tuple[int, int, int]) -> None:
    _need_kernel()
    heads, kv, dim = shape
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    # As the projections give them: the heads of a token side by side.
    query, key, value = (
        torch.randn(2, length, n, dim, generator=generator).transpose(1, 2).requires_grad_() for n in (heads, kv, kv)
    )
    clumps, branches = _packed(rng, 2, length)
    mask = sight(torch.from_numpy(clumps), torch.from_numpy(branches))
    wide = [t.repeat_interleave(heads // kv, 1) for t in (key, value)]
    whole = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.3).transpose(1, 2)
    mine, _ = attention_rows.rows(None, query, key, value, attention_rows.bounds(clumps, branches), scaling=0.3)
    torch.testing.assert_close(mine, whole, atol=2e-5, rtol=1e-4)
    weight = torch.randn(whole.shape, generator=generator)
    graded = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (mine, whole)]
    for a, b in zip(*graded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from([(4, 2, 32), (3, 1, 32), (6, 2, 64), (2, 2, 128)])
)
def test_the_attention_kernel_for_bfloat16_is_attention(seed: int, length: int, shape: tuple[int, int, int]) -> None:
    _need_kernel(torch.bfloat16)
    heads, kv, dim = shape
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    query, key, value = (
        torch.randn(2, length, n, dim, generator=generator).bfloat16().float().transpose(1, 2).requires_grad_()
        for n in (heads, kv, kv)
    )
    clumps, branches = _packed(rng, 2, length)
    mask = sight(torch.from_numpy(clumps), torch.from_numpy(branches))
    wide = [t.repeat_interleave(heads // kv, 1) for t in (key, value)]
    whole = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.3).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        mine, _ = attention_rows.rows(None, query, key, value, attention_rows.bounds(clumps, branches), scaling=0.3)
    assert mine.dtype == torch.bfloat16
    weight = torch.randn(whole.shape, generator=generator).bfloat16().float()
    graded = [torch.autograd.grad((out.float() * weight).sum(), (query, key, value)) for out in (mine, whole)]
    for a, b in ((mine.float(), whole), *zip(*graded, strict=True)):
        # bfloat16 has eight bits: what is multiplied and what comes out are off by up to 0.4 % each.
        assert float((a - b).norm()) <= 0.01 * float(b.norm()) + 0.01 * b.numel() ** 0.5 * 0.3


def test_the_attention_kernel_refuses_what_it_does_not_read() -> None:
    _need_kernel()
    seen = attention_rows.bounds(np.ones((1, 3), np.int64), np.zeros((1, 3), np.int64))
    query, narrow = torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 8)
    for tensors in ((narrow,) * 3, (query, query, narrow), (query.double(),) * 3, (query, query[:, :1], query)):
        with pytest.raises(ValueError, match="attention of"):
            attention_rows.attend(*tensors, seen, 1.0)


def test_every_parameter_is_in_one_group_and_values_learn_at_their_own_rate() -> None:
    model = _tiny()
    named = dict(model.named_parameters())
    names = {id(p): n for n, p in named.items()}
    for optimizer in ("adamw", "muon"):
        recipe = RECIPE.model_copy(update={"optimizer": optimizer, "value_ratio": 4.0})
        steppers = optimizers(named, recipe)
        shares = {names[id(p)]: g["share"] for s in steppers for g in s.param_groups for p in g["params"]}
        assert sum(len(g["params"]) for s in steppers for g in s.param_groups) == len(named)
        assert shares.keys() == named.keys()
        assert {n for n, share in shares.items() if share == 4.0} == {n for n in named if "v_proj" in n}
        if optimizer == "muon":
            inside = {names[id(p)] for g in steppers[1].param_groups for p in g["params"]}
            assert inside == {n for n, p in named.items() if ".layers." in n and p.ndim == 2}
        decayed = {names[id(p)] for g in steppers[0].param_groups if g["weight_decay"] for p in g["params"]}
        assert all(named[n].ndim > 1 for n in decayed)


def test_a_larger_rate_for_values_moves_them_that_much_further() -> None:
    moved = []
    for ratio in (1.0, 4.0):
        model = _tiny()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        fit(model, RECIPE.model_copy(update={"steps": 1, "weight_decay": 0.0, "value_ratio": ratio}), _batches)
        moved.append({n: float((p - before[n]).detach().abs().max()) for n, p in model.named_parameters()})
    for name in moved[0]:
        expected = 4.0 if "v_proj" in name else 1.0
        assert moved[1][name] == pytest.approx(expected * moved[0][name], rel=1e-3), name


def test_adam_is_bias_corrected() -> None:
    """With a constant gradient every corrected step is the learning rate; an uncorrected one is larger by
    (1 - beta1^t) / sqrt(1 - beta2^t), 3.2 at first (arXiv 2006.04884, section 5)."""
    weight = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    recipe = RECIPE.model_copy(update={"weight_decay": 0.0, "lr": 1e-2, "beta2": 0.999})
    (stepper,) = optimizers({"w": weight}, recipe)
    for step in range(1, 31):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, -0.5)
        stepper.step()
        taken = float((weight - before).detach().mean())
        assert taken == pytest.approx(1e-2, rel=1e-5)
        uncorrected = 1e-2 * (1 - 0.9**step) / math.sqrt(1 - 0.999**step)
        assert abs(taken - uncorrected) > 2e-3


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


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"\xff: 1", "not UTF-8"),
        (b"1: 2", "1: Keys should be strings"),
        (b"rank: 0", "rank: "),
        (b"targets: []", "targets: "),
        (b"clip: .inf", "clip: "),
        (b"seed: -1", "seed: "),
        (b"warmup: -1", "warmup: "),
        (b"beta2: 1", "beta2: "),
        (b"heads: 0", "heads: "),
    ],
)
def test_a_recipe_that_nothing_can_be_trained_by_names_file_and_field(tmp_path: Path, line: bytes, field: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"steps: 10\nlr: 0.1\n" + line)
    with pytest.raises(BadInput, match=f"r.yaml: {field}"):
        load_recipe(file)


def test_sizes_are_compared_by_one_command(
    words_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, "MARKS", 2)
    monkeypatch.setattr(sizes, "of_base", lambda world: of_base(world, 6))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{steps: 1, made_up: 9, batch: 1, length: 640, lr: 0.004, optimizer: muon}")
    options = ["--shapes", "2x192", "3x256", "--minutes", "0.0001", "--recipe", str(recipe), "--work"]
    plot = tmp_path / "sizes.png"
    before = torch.get_num_threads()
    try:
        assert main(["train", "sizes", *options, str(words_tokenizer), "--plot", str(plot), "--json"]) == 0
    finally:
        torch.set_num_threads(before)
    document = json.loads(capsys.readouterr().out)
    small, large = document["runs"]
    assert (small["shape"], large["shape"]) == ("2x192", "3x256")
    assert small["parameters"] < large["parameters"]
    for run in (small, large):
        first, last = run["marks"]
        assert first["tokens"] < last["tokens"]
        assert last["loss"] < math.log(5000)  # what a guess among all tokens costs is about that
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [["--shapes", "6"], ["--shapes", "6x250"], ["--shapes", "1x256"]])
def test_a_shape_that_is_none_is_told(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sizes", *options]) == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize("given", ["--minutes=0", "--minutes=-1", "--minutes=nan", "--minutes=inf", "--minutes=soon"])
def test_minutes_that_are_none_are_told(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "sizes", given])
    assert ended.value.code == 2
    assert "--minutes" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1"])
def test_threads_that_are_none_are_told(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "place", "--family", "calc", f"--threads={threads}"])
    assert ended.value.code == 2
    assert "--threads" in capsys.readouterr().err


def test_what_was_found_is_printed_although_its_picture_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run = sizes.Run(sizes.Shape(2, 192), 1000, (sizes.Mark(1.0, 100, 2.5),))
    monkeypatch.setattr(sizes, "compare", lambda *_, **__: [run])
    monkeypatch.setattr("trimtab.home.write_atomic", full)
    before = torch.get_num_threads()
    try:
        assert main(["train", "sizes", "--plot", str(tmp_path / "sizes.png")]) == 1
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr()
    assert "2x192" in printed.out
    assert "No space left" in printed.err
