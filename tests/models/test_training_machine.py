"""Training by the clock, with data made by other processes, and on a device that may not be there."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trimtab.cli import main
from trimtab.models.embedded import MODELS, SMALL
from trimtab.models.embedded.corpus import open_world
from trimtab.models.train.ahead import made_by_processes
from trimtab.models.train.base import LARGE_BATCH, LARGE_CHUNK, chunked, corpus, train_base
from trimtab.models.train.data import IGNORE, Rows
from trimtab.models.train.loop import fit, of_steps
from trimtab.models.train.recipe import Recipe

ENDLESS = Recipe(steps=10**6, batch=2, length=16, lr=1e-3, warmup=2, decay=500_000)


def _tiny() -> Qwen3ForCausalLM:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Qwen3ForCausalLM(config)


def _batches(start: int) -> itertools.chain[Rows]:
    def batch(step: int) -> Rows:
        ids = np.random.default_rng(step).integers(1, 64, (2, 16))
        targets = np.full_like(ids, IGNORE)
        targets[:, :-1] = ids[:, 1:]
        one = np.ones_like(ids)
        return Rows(ids, targets, np.broadcast_to(np.arange(16), ids.shape).copy(), one, one)

    return itertools.chain.from_iterable([batch(step)] for step in itertools.count(start))


def test_a_time_limit_chooses_the_steps_and_their_number_gives_the_same_run_again() -> None:
    timed = fit(_tiny(), ENDLESS, _batches, minutes=0.06)
    steps = timed[-1].step
    assert 100 < steps < ENDLESS.steps
    # The learning rate has fallen as at the end of any run: the last step's is the smallest there is.
    assert timed[-1].learning_rate == pytest.approx(ENDLESS.lr / round(steps / 2), rel=0.02)
    again = fit(_tiny(), of_steps(ENDLESS, steps), _batches)
    assert [(p.step, p.loss) for p in again] == [(p.step, p.loss) for p in timed]


def test_processes_make_the_same_batches_in_the_same_order() -> None:
    tokenizer_home = MODELS / SMALL
    recipe = ENDLESS.model_copy(update={"batch": LARGE_BATCH, "length": 512, "made_up": LARGE_CHUNK})
    start = LARGE_CHUNK + 3  # within the first chunk that has families
    theirs = made_by_processes(recipe, tokenizer_home, fresh=True, processes=2)(start)
    with open_world() as world:
        mine = chunked(recipe, AutoTokenizer.from_pretrained(tokenizer_home), corpus(recipe, world))(start)
        for _ in range(LARGE_CHUNK):
            expected, got = next(mine), next(theirs)
            for field in fields(Rows):
                np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name))
                assert getattr(got, field.name).dtype == np.int64
    theirs.close()


def test_a_base_is_trained_for_so_long_on_a_given_tokenizer(tmp_path: Path) -> None:
    recipe = ENDLESS.model_copy(update={"length": 512, "steps": 4, "decay": 2})
    card = train_base("b", recipe, tmp_path / "b", tmp_path / "work", tokenizer_from=MODELS / SMALL, minutes=5)
    assert (tmp_path / "b/tokenizer.json").read_bytes() == (MODELS / SMALL / "tokenizer.json").read_bytes()
    assert card["recipe"]["steps"] == 4  # shorter than the time it was given
    assert card["device"] == "cpu"
    assert len(card["tokenizer_sha256"]) == 64


@pytest.mark.parametrize("device", ["cuda:99", "quantum", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "adapter", "x", "--family", "calc", "--device", device]) == 2
    printed = capsys.readouterr()
    assert f"--device {device}" in printed.err
    assert printed.out == ""
