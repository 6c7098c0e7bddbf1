"""Would training again change what users see? The calls that adapters of several seeds make, and how many differ.

Churn is the mean pairwise disagreement of predictions over seeds (arXiv 2302.07778, section 3.1), taken on the tool
calls of the first assistant turn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..engines import hermes

NEW_TOKENS = 64
"""Longest reply; a first call is shorter."""
BATCH = 32

Calls = tuple[tuple[str, str], ...]
"""The calls of one turn: names, and arguments as canonical JSON; empty where it makes none."""


def first_prompt(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages before the assistant first speaks."""
    return list(itertools.takewhile(lambda m: m["role"] != "assistant", document["messages"]))


def first_calls(document: Mapping[str, Any]) -> Calls:
    """The calls of the assistant's first turn as the document has them."""
    turn = next(m for m in document["messages"] if m["role"] == "assistant")
    return tuple(_call(c["function"]["name"], c["function"]["arguments"]) for c in turn.get("tool_calls") or ())


def _call(name: str, arguments: Any) -> tuple[str, str]:
    value = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    return name, json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The same JSON value with whole numbers as integers: 5.0 and 5 are one argument."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@torch.inference_mode()
def replies(model: Any, tokenizer: Any, documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the model says first in each conversation: greedy, at most `NEW_TOKENS` tokens, in batches padded left."""
    prompts = [
        tokenizer(
            tokenizer.apply_chat_template(
                first_prompt(d), tools=list(d.get("tools") or []) or None, tokenize=False, add_generation_prompt=True
            ),
            add_special_tokens=False,
        ).input_ids
        for d in documents
    ]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    training = model.training
    model.eval()
    said = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of a length share a batch
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in chosen], device=model.device)
        seen = torch.tensor(
            [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=model.device
        )
        drawn = model.generate(
            input_ids=ids,
            attention_mask=seen,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )
        for i, row in zip(chosen, drawn[:, width:].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            said[i] = tokenizer.decode(row[:end])
    model.train(training)
    return said


def calls_in(text: str) -> Calls:
    """The calls of a reply, read as the engines read them."""
    return tuple(_call(name, arguments) for name, arguments in hermes.parse(text)[1])


def churn(seeds: Sequence[Sequence[Calls]]) -> float | None:
    """Mean over pairs of seeds of the share of turns whose calls differ.

    Two turns without a call agree, whatever they say. A pair is two different seeds: a seed paired with itself would
    pull the mean towards 0.

    Args:
        seeds: for each seed, the calls of the same turns.

    Returns:
        0 to 1; None for fewer than two seeds, or where no seed calls anything.
    """
    if len(seeds) < 2 or not any(turn for turns in seeds for turn in turns):
        return None
    pairs = list(itertools.combinations(seeds, 2))
    return sum(sum(a != b for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs) / len(pairs)


def exact_share(said: Sequence[Calls], documents: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of conversations whose first turn calls, in which the reply makes just these calls; None without."""
    wanted = [first_calls(d) for d in documents]
    right = [a == b for a, b in zip(said, wanted, strict=True) if b]
    return sum(right) / len(right) if right else None
