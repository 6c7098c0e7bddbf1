"""Training a LoRA adapter: on a family of the corpus, or on a user's own conversations."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...errors import BadInput, FailedRun
from ...home import file_sha256, write_atomic
from .base import chunked
from .data import data_hash, encode
from .loop import Point, fit
from .recipe import Recipe

SEEDS = 3
"""How many initial weights an adapter is tried with when its run fails; the order of the data stays."""


def read_examples(file: Path, also: Callable[[dict[str, Any]], str | None] = lambda row: None) -> list[dict[str, Any]]:
    """Read conversations from JSONL, one `{"messages": [...], "tools": [...]}` in OpenAI's form a line.

    Args:
        also: a further check of a well-formed row; says why it is bad, or None.

    Raises:
        BadInput: any row is bad; the message lists every bad row with line number and reason, and nothing is trained
            on.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read: {error}", where=str(file)) from error
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            wrong.append(f"line {number}: not JSON ({error})")
            continue
        reason = _reason_against(row) or also(row)
        if reason is None:
            rows.append(row)
        else:
            wrong.append(f"line {number}: {reason}")
    if wrong:
        shown = "; ".join(wrong[:20]) + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise BadInput(shown, where=str(file), fix="Mend or remove these rows; nothing was trained")
    if not rows:
        raise BadInput("has no conversations", where=str(file))
    return rows


def _reason_against(row: Any) -> str | None:
    """Why a row cannot be trained on, or None."""
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        return "no list `messages`"
    if not isinstance(row.get("tools", []), list):
        return "`tools` is not a list"
    for i, message in enumerate(row["messages"]):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant", "tool"):
            return f"messages[{i}] has no known role"
        calls = message.get("tool_calls") or []
        if not calls and not isinstance(message.get("content"), str):
            return f"messages[{i}] has neither content nor tool calls"
        for call in calls:
            try:
                arguments = call["function"]["arguments"]
                call["function"]["name"]
                if isinstance(arguments, str) and not isinstance(json.loads(arguments), dict):
                    return f"messages[{i}]: the arguments of a call are not an object"
            except (KeyError, TypeError, ValueError):
                return f"messages[{i}] has a broken tool call"
    if not any(m["role"] == "assistant" for m in row["messages"]):
        return "the assistant never speaks, so there is nothing to learn"
    return None


def fits(tokenizer: Any, length: int) -> Callable[[dict[str, Any]], str | None]:
    """A check for `read_examples`: whether the base's chat template can show a row, and in at most `length` tokens."""

    def check(row: dict[str, Any]) -> str | None:
        try:
            size = len(encode(tokenizer, row).ids)
        except Exception as error:  # a template may raise whatever it likes
            return f"the chat template cannot show it ({error})"
        return None if size <= length else f"{size} tokens, more than the recipe's length of {length}"

    return check


def repeated(rows: list[dict[str, Any]], seed: int) -> Callable[[int], Iterator[dict[str, Any]]]:
    """The rows again and again, in a new order each time; endless, and the same for the same chunk."""

    def documents(chunk: int) -> Iterator[dict[str, Any]]:
        rng = random.Random(seed * 1_000_003 + chunk)
        while True:
            yield from rng.sample(rows, len(rows))

    return documents


def train_adapter(
    base: Path,
    base_name: str,
    documents: Callable[[int], Iterable[dict[str, Any]]],
    source: dict[str, Any],
    recipe: Recipe,
    directory: Path,
    *,
    work: Path | None = None,
    report: Callable[[list[Point], float], None] | None = None,
) -> dict[str, Any]:
    """Train a LoRA adapter on `documents` and write it in PEFT's form, with a card, into `directory`.

    Args:
        base: folder of the base model.
        documents: the number of a chunk -> its documents, endless.
        source: what the data is, for the card.
        work: folder for checkpoints; an interrupted run goes on from there.

    Returns:
        The adapter's card.

    Raises:
        BadInput: the base is not a model, or its chat template cannot be trained on.
        FailedRun: the run failed from `SEEDS` seeds in a row.
    """
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
    )
    sample = list(itertools.islice(documents(0), 200))
    for document in sample[:3]:
        encode(tokenizer, document)  # a template that cannot be trained on is told before the training starts
    batches = chunked(recipe, tokenizer, documents)
    failed: list[dict[str, Any]] = []
    for seed in range(recipe.seed, recipe.seed + SEEDS):
        torch.manual_seed(seed)
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        try:
            curve = fit(tuned, recipe, batches, checkpoint=work if not failed else None, report=report)
            break
        except FailedRun as error:
            failed.append({"seed": seed, "why": str(error)})
            print(f"{error}: starting again from seed {seed + 1}", file=sys.stderr, flush=True)
    else:
        raise FailedRun(
            f"failed from {SEEDS} seeds: {failed[-1]['why']}",
            fix="Lower the learning rate in the recipe, or warm up longer",
        )
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.replace(".default.weight", ".weight"): parameter.detach().contiguous()
        for name, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }
    fresh = directory / "adapter_model.safetensors.new"
    save_file(tensors, fresh, {"format": "pt"})
    fresh.replace(directory / "adapter_model.safetensors")
    settings = config.to_dict()
    settings |= {"base_model_name_or_path": base_name, "target_modules": sorted(recipe.targets), "inference_mode": True}
    write_atomic(directory / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n")
    card = {
        "base": base_name,
        "base_sha256": file_sha256(base / "model.safetensors"),
        "sha256": file_sha256(directory / "adapter_model.safetensors"),
        "parameters": sum(t.numel() for t in tensors.values()),
        "recipe": recipe.model_dump(mode="json") | {"seed": seed},
        "failed": failed,
        "data": {**source, "sample_sha256": data_hash(sample)},
        "tokens": curve[-1].tokens,
        "seconds": round(curve[-1].seconds),
        "first_loss": round(curve[0].loss, 4),
        "final_loss": round(sum(p.loss for p in curve[-3:]) / len(curve[-3:]), 4),
    }
    write_atomic(directory / "card.json", json.dumps(card, indent=2) + "\n")
    return card
