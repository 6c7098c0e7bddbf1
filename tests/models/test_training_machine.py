"""Training with data made by other processes, and on a device that may not be there."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer
from trimtab.cli import main
from trimtab.models.embedded import MODELS, SMALL
from trimtab.models.embedded.corpus import open_world
from trimtab.models.train import again
from trimtab.models.train.ahead import made_by_processes
from trimtab.models.train.base import LARGE_BATCH, LARGE_CHUNK, chunked, corpus, train_base
from trimtab.models.train.data import Rows
from trimtab.models.train.recipe import Recipe

ENDLESS = Recipe(steps=10**6, batch=2, length=16, lr=1e-3, warmup=2, decay=500_000)


@pytest.mark.parametrize("repeat", [1, 2])
def test_processes_make_the_same_batches_in_the_same_order(repeat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "SHELF", 1)
    tokenizer_home = MODELS / SMALL
    about = {"batch": LARGE_BATCH, "length": 512, "made_up": LARGE_CHUNK, "repeat": repeat}
    recipe = ENDLESS.model_copy(update=about)
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
