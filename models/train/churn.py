"""Would training again change what users see? The calls that adapters of several seeds make, and how many differ.

Churn is the mean pairwise disagreement of predictions over seeds (arXiv 2302.07778, section 3.1), taken on the tool
calls of the assistant's first answer: what it says before a user spoke, such as a greeting, is only read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..engines import hermes
from .data import learned, with_objects

NEW_TOKENS = 64
"""A reply may have so many tokens, and `MARGIN` more than the longest that is wanted."""
MARGIN = 32
BATCH = 32

Calls = tuple[tuple[str, str], ...]
"""The calls of one turn: names, and arguments as canonical JSON; empty where it makes none."""


def first_turn(document: Mapping[str, Any]) -> int | None:
    """The place of the assistant's first answer that is to be learned; None where it answers nobody."""
    asked = False
    for i, message in enumerate(document["messages"]):
        asked = asked or message["role"] == "user"
        if asked and learned(message):
            return i
    return None


def first_calls(document: Mapping[str, Any]) -> Calls:
    """The calls of that answer as the document has them."""
    turn = first_turn(document)
    calls = () if turn is None else document["messages"][turn].get("tool_calls") or ()
    return tuple(_call(c["function"]["name"], c["function"]["arguments"]) for c in calls)


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


def _tokens(tokenizer: Any, document: Mapping[str, Any], count: int, *, prompt: bool) -> list[int]:
    """The first messages of a conversation, and if it is a prompt the opening of the assistant's turn."""
    messages = [with_objects(m) for m in document["messages"][:count]]
    tools = list(document.get("tools") or []) or None
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a reply: the tokenizer's, and those of the model's own settings, which may be others."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


@torch.inference_mode()
def replies(model: Any, tokenizer: Any, documents: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """What the model says in place of each conversation's first answer: greedy, in batches padded left.

    Returns:
        None for a reply that is longer than any wanted one, so that its end is not known, and where there is no first
        answer.
    """
    prompts: dict[int, list[int]] = {}
    limit = NEW_TOKENS
    for i, document in enumerate(documents):
        turn = first_turn(document)
        if turn is not None:
            prompts[i] = _tokens(tokenizer, document, turn, prompt=True)
            wanted = len(_tokens(tokenizer, document, turn + 1, prompt=False)) - len(prompts[i])
            limit = max(limit, wanted + MARGIN)
    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    training = model.training
    model.eval()
    said: list[str | None] = [None] * len(documents)
    order = sorted(prompts, key=lambda i: len(prompts[i]))  # prompts of a length share a batch
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
            max_new_tokens=limit,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends,
            pad_token_id=pad,
        )
        for i, row in zip(chosen, drawn[:, width:].tolist(), strict=True):
            end = next((at for at, token in enumerate(row) if token in ends), None)
            said[i] = None if end is None else tokenizer.decode(row[:end])
    model.train(training)
    return said


def calls_in(text: str) -> Calls:
    """The calls of a reply, read as the engines read them."""
    return tuple(_call(name, arguments) for name, arguments in hermes.parse(text)[1])


def said_calls(model: Any, tokenizer: Any, documents: Sequence[Mapping[str, Any]]) -> list[Calls | None]:
    """The calls of `replies`; None where the reply is."""
    return [None if text is None else calls_in(text) for text in replies(model, tokenizer, documents)]


def known(seeds: Sequence[Sequence[Calls | None]]) -> list[tuple[Calls, ...]]:
    """What all seeds call, turn by turn, without the turns in which that of any seed is not known."""
    return [turn for turn in zip(*seeds, strict=True) if None not in turn]


def churn(seeds: Sequence[Sequence[Calls | None]]) -> float | None:
    """Mean over pairs of seeds of the share of turns whose calls differ, among the turns that are `known`.

    Two turns without a call agree, whatever they say. A pair is two different seeds: a seed paired with itself would
    pull the mean towards 0.

    Args:
        seeds: for each seed, the calls of the same turns.

    Returns:
        0 to 1; None for fewer than two seeds, or where no seed calls anything.
    """
    turns = known(seeds)
    if len(seeds) < 2 or not any(calls for turn in turns for calls in turn):
        return None
    pairs = list(itertools.combinations(range(len(seeds)), 2))
    return sum(sum(turn[a] != turn[b] for turn in turns) / len(turns) for a, b in pairs) / len(pairs)


def exact_share(said: Sequence[Calls | None], documents: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of conversations whose first answer calls, in which the reply makes just these calls, among those whose
    reply is known; None without."""
    wanted = [first_calls(d) for d in documents]
    right = [a == b for a, b in zip(said, wanted, strict=True) if b and a is not None]
    return sum(right) / len(right) if right else None
