"""The training benchmark: what counts as met, what TRL is given, and that both sides are counted alike."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from trimtab.cli import main
from trimtab.evals.bench.bars import Bar, card_bars, provenances, size_bars
from trimtab.evals.bench.picture import train_png
from trimtab.evals.bench.train import Measured
from trimtab.evals.bench.trl import Block, Setting, settings


def test_an_unknown_number_meets_no_bar() -> None:
    assert Bar("a", 1.5, 1.5, "least").met
    assert not Bar("a", 1.4, 1.5, "least").met
    assert Bar("a", 0.05, 0.05, "most").met
    assert not Bar("a", 0.06, 0.05, "most").met
    assert Bar("a", None, 1.0, "most").to_json() == {"name": "a", "value": None, "bar": 1.0, "at": "most", "met": False}


def test_bars_come_from_the_cards_and_the_files(tmp_path: Path) -> None:
    for name, text in {
        "calc": "{method: lora, seconds: 120, scores: {churn: 0.02}, recipe: {steps: 360, lr: 0.1}}",
        "mail": "{method: lora, seconds: 900, scores: {churn: null}, recipe: {steps: 360}}",
        "fast": "{method: lora, seconds: 9999, device: NVIDIA H200, recipe: {steps: 360}}",
        "long": "{method: lora, seconds: 9999, recipe: {steps: 3000}}",
        "terse": "{method: means}",
    }.items():
        (tmp_path / f"{name}@1").mkdir()
        (tmp_path / f"{name}@1" / "profile.yaml").write_text(f"name: {name}\nprovenance: {text}\n")
    made = provenances(tmp_path)
    bars = {b.name: b for b in card_bars(made, {"calc": (), "mail": (), "todos": ()}, {"steps": 360})}
    assert bars["train.adapter_minutes"].value == 15
    assert [bars[f"churn.{f}"].value for f in ("calc", "mail", "todos")] == [0.02, None, None]
    assert [bars[f"churn.{f}"].met for f in ("calc", "mail", "todos")] == [True, False, False]
    assert card_bars({}, {}, {})[0].value is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 3_000_000)
    (tmp_path / "model" / "tokenizer.json").write_bytes(b"x" * 500_000)
    (tmp_path / "other.safetensors").write_bytes(b"x" * 1_000_000)
    assert [b.value for b in size_bars(tmp_path / "model", tmp_path)] == [3.5, 4.0]
    assert [b.value for b in size_bars(tmp_path / "none", tmp_path / "none")] == [None, None]


def test_the_ratio_is_that_of_conversations_tokens() -> None:
    ours = (Block(100, 400, 1.0), Block(100, 300, 1.0), Block(100, 500, 1.0))
    theirs = (Block(200, 200, 1.0), Block(200, 200, 1.0), Block(200, 200, 2.0))
    found = Measured("m", "calc", {}, 1, 1, {}, {}, Setting("padded", None, 2), ours, theirs)
    assert found.ratios == [2.0, 1.5, 5.0]
    assert found.bar() == Bar("train.vs_trl", 2.0, 1.5, "least")
    document = found.to_json([found.bar()])
    assert document["ratio_as_read"]["median"] == 0.5
    assert document["ratio"] == {"median": 2.0, "sd": pytest.approx(1.893, abs=1e-3), "low": 1.5, "high": 5.0, "n": 3}
    assert document["bars"][0]["met"]
    assert train_png(found, [found.bar(), Bar("x", None, 1.0, "most")]).startswith(b"\x89PNG")


def test_without_trl_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else real(name, *rest))
    assert main(["bench", "train"]) == 2
    said = capsys.readouterr().err
    assert "trl not installed" in said
    assert "pip install 'trimtab[bench]'" in said
    assert main(["bench", "train", "--plot", "x.svg"]) == 2
    assert main(["bench", "train", "--family", "nothing"]) == 2


def test_both_sides_train_in_turns_on_the_same_conversations(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    from trimtab.evals.bench import train, trl

    monkeypatch.setattr(train, "POOL", 40)
    monkeypatch.setattr(trl, "settings", lambda rows, conversations: settings(rows, conversations)[:1])
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{steps: 1, batch: 2, length: 1536, lr: 0.001, rank: 2}")
    options = ["--model", str(tiny_model), "--recipe", str(recipe), "--steps", "1", "--rounds", "2", "--threads", "1"]
    assert main(["bench", "train", *options, "--json", "--plot", str(tmp_path / "b.png")]) == 0
    document = json.loads(capsys.readouterr().out)
    mine, other = document["trimtab"]["blocks"], document["trl"]["blocks"]
    assert len(mine) == len(other) == document["ratio"]["n"] == 2
    assert all(b["conversation_tokens"] >= b["tokens"] > 0 for b in mine)  # a shared opening is read once
    assert all(b["conversation_tokens"] == b["tokens"] <= 2 * 2 * 1536 for b in other)
    assert {"train.vs_trl", "train.adapter_minutes", "size.nano_mb", "size.all_mb", "churn.calc"} <= {
        bar["name"] for bar in document["bars"]
    }
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
