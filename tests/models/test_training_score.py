"""`trimtab train score`: the losses are those that transformers and PEFT give, token by token."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trimtab.cli import main
from trimtab.models.embedded import MODELS, SMALL, default_store
from trimtab.models.embedded.corpus import family_documents, open_world

OPEN, END = "<|im_start|>assistant\n", "<|im_end|>"


def _by_hand(model: Any, tokenizer: Any, text: str) -> tuple[list[float], list[float]]:
    """The losses of all replies' tokens in a conversation, and of those of replies with calls."""
    encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        logits = model(encoded.input_ids).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, encoded.input_ids[0, 1:], reduction="none").tolist()
    every: list[float] = []
    calls: list[float] = []
    at = text.find(OPEN)
    while at >= 0:
        start = at + len(OPEN)
        stop = text.index(END, start) + len(END)
        inside = [
            loss
            for loss, (low, high) in zip(losses, encoded.offset_mapping[0, 1:].tolist(), strict=True)
            if start <= low and high <= stop
        ]
        every += inside
        calls += inside if "<tool_call>" in text[start:stop] else []
        at = text.find(OPEN, stop)
    return every, calls


def test_the_scores_are_the_losses_of_transformers_and_peft(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rendered: Callable[[Any, dict[str, Any]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trimtab.models.train.loop.bfloat16_is_fast", lambda: False)
    with open_world() as world:
        drawn = family_documents(3, world, "calendar")
        rows = [{k: v for k, v in next(drawn).items() if k != "family"} for _ in range(6)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", "score", "calendar", "--data", str(data), "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["held_out"]["documents"] == 6

    tokenizer = AutoTokenizer.from_pretrained(MODELS / SMALL)
    bare, base = (AutoModelForCausalLM.from_pretrained(MODELS / SMALL, dtype=torch.float32) for _ in range(2))
    texts = [rendered(tokenizer, row) for row in rows]
    profile = default_store().get("calendar")
    for model, name in ((bare, SMALL), (PeftModel.from_pretrained(base, profile.adapter), profile.id)):
        by_hand = [_by_hand(model, tokenizer, text) for text in texts]
        every, calls = (list(itertools.chain.from_iterable(part)) for part in zip(*by_hand, strict=True))
        told = next(one for one in printed["scores"] if one["name"] == name)
        assert told["loss"] == pytest.approx(sum(every) / len(every), rel=1e-4)
        assert told["call_loss"] == pytest.approx(sum(calls) / len(calls), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["calc-terse", "--family", "calc"], "steers besides its adapter"),
        (["calc", "--family", "calc", "--base", "trimtab-large"], "was made for other weights"),
        (["calc", "--family", "nobody"], "no family 'nobody'"),
        (["nobody", "--family", "calc"], "unknown profile 'nobody'"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "score", *arguments]) == 2
    assert told in capsys.readouterr().err
