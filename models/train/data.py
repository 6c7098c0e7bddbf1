"""From conversations to rows of tokens: what is learned, what is only read, and no document sees another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One document as tokens. `learn[i]` says whether token i is the assistant's and its loss counts."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]


@dataclass(frozen=True)
class Rows:
    """Packed rows, all [rows, length]: token ids, targets (`IGNORE` where nothing is learned), positions within the
    document, and the number of the document within the row (0 is padding)."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    documents: NDArray[np.int64]


def _with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with tool-call arguments as objects, as chat templates want them."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append({**call, "function": {**call["function"], "arguments": parsed}})
    return {**message, "tool_calls": calls}


def encode(tokenizer: Any, document: Mapping[str, Any]) -> Example:
    """One conversation as an example: the chat template says what the model reads, the assistant's turns are learned.

    Raises:
        BadInput: the template does not extend a conversation turn by turn, so the learned part cannot be told.
    """
    messages = [_with_objects(m) for m in document["messages"]]
    tools = list(document.get("tools") or []) or None
    ids: list[int] = []
    learn: list[bool] = []
    done = ""

    def take(text: str, learned: bool) -> None:
        nonlocal done
        if not text.startswith(done):
            raise BadInput("the chat template rewrites earlier turns", fix="use a template that only appends")
        piece = tokenizer(text[len(done) :], add_special_tokens=False).input_ids
        ids.extend(piece)
        learn.extend([learned] * len(piece))
        done = text

    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        take(
            tokenizer.apply_chat_template(messages[:i], tools=tools, tokenize=False, add_generation_prompt=True), False
        )
        whole = tokenizer.apply_chat_template(messages[: i + 1], tools=tools, tokenize=False)
        end = tokenizer.eos_token
        stop = whole.rfind(end) + len(end) if end and end in whole[len(done) :] else len(whole)
        take(whole[:stop], True)
    return Example(tuple(ids), tuple(learn))


def pack(examples: Iterable[Example], length: int, open_rows: int = 24) -> Iterator[list[Example]]:
    """Fill rows of `length` tokens with whole documents, best fit over a few open rows; longer ones are left out."""
    rows: list[tuple[int, list[Example]]] = []
    for example in examples:
        size = len(example.ids)
        if size > length or not any(example.learn):
            continue
        fitting = [i for i, (left, _) in enumerate(rows) if left >= size]
        if fitting:
            best = min(fitting, key=lambda i: rows[i][0])
            left, members = rows[best]
            members.append(example)
            rows[best] = (left - size, members)
        else:
            rows.append((length - size, [example]))
        if len(rows) > open_rows:
            yield rows.pop(min(range(len(rows)), key=lambda i: rows[i][0]))[1]
    yield from (members for _, members in rows)


def to_rows(batch: Sequence[Sequence[Example]], length: int) -> Rows:
    """A batch of packed rows as arrays. The target of a position is the next token of the same document."""
    shape = (len(batch), length)
    rows = Rows(
        np.zeros(shape, np.int64),
        np.full(shape, IGNORE, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
    )
    for r, members in enumerate(batch):
        at = 0
        for number, example in enumerate(members, 1):
            size = len(example.ids)
            ids = np.asarray(example.ids)
            rows.ids[r, at : at + size] = ids
            rows.positions[r, at : at + size] = np.arange(size)
            rows.documents[r, at : at + size] = number
            rows.targets[r, at : at + size - 1] = np.where(example.learn[1:], ids[1:], IGNORE)
            at += size
    return rows


def data_hash(documents: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over the canonical JSON of the documents, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
