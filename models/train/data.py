"""From conversations to rows of tokens: what is learned, what is only read, and no document sees another.

Conversations that open alike, with the same tools and system message, share that opening: a row holds it once and the
conversations side by side behind it, each seeing the opening and itself. A long list of tools is then read once for
many requests.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ..embedded.template import CHAT_TEMPLATE, turns

IGNORE = -100
MARK, CALL = "<|im_", "<tool_call>"
"""In the embedded models' template: how its marks begin, and what stands before a call."""


@dataclass(frozen=True)
class Example:
    """One conversation as tokens.

    Attributes:
        ids: its tokens.
        learn: whether each token is the assistant's and its loss counts.
        opening: how many tokens at the start are the system message and the tools; none of these is learned.
    """

    ids: tuple[int, ...]
    learn: tuple[bool, ...]
    opening: int = 0


@dataclass(frozen=True)
class Clump:
    """Conversations with one opening, which a row holds once."""

    opening: tuple[int, ...]
    members: tuple[Example, ...]

    @property
    def size(self) -> int:
        """Tokens in a row."""
        return len(self.opening) + sum(len(m.ids) - m.opening for m in self.members)


@dataclass(frozen=True)
class Rows:
    """Packed rows, all [rows, length]: token ids, targets (`IGNORE` where nothing is learned), positions within the
    conversation, the number of the clump within the row (0 is padding), and the number of the conversation within the
    clump (0 is the shared opening)."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    clumps: NDArray[np.int64]
    branches: NDArray[np.int64]


def learned(message: Mapping[str, Any]) -> bool:
    """Whether a message is the assistant's and its loss counts: a turn of OpenAI's `weight` 0 is only read."""
    return bool(message["role"] == "assistant" and message.get("weight") != 0)


def with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with tool-call arguments as objects, as chat templates want them."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append({**call, "function": {**call["function"], "arguments": parsed}})
    return {**message, "tool_calls": calls}


class Encoder:
    """Conversations into examples, by the base's own chat template.

    The template says what the model reads; the assistant's turns are `learned`. The opening is rendered once for
    conversations that follow one another with the same one.

    Args:
        calls_only: let nothing count but replies with calls.
    """

    def __init__(self, tokenizer: Any, *, calls_only: bool = False) -> None:
        self._tokenizer = tokenizer
        self._calls_only = calls_only
        # The embedded models' template only appends, whatever the turns: it need not be asked turn by turn.
        self._appends = (tokenizer.chat_template or "").strip() == CHAT_TEMPLATE.strip()
        self._key: str | None = None
        self._opening: tuple[str, tuple[int, ...]] | None = None

    def __call__(self, document: Mapping[str, Any]) -> Example:
        """One conversation, `{"messages": [...], "tools": [...]}` in OpenAI's form.

        Raises:
            BadInput: the template does not extend a conversation turn by turn, so the learned part cannot be told.
        """
        messages = [with_objects(m) for m in document["messages"]]
        tools = list(document.get("tools") or []) or None
        head = list(itertools.takewhile(lambda m: m["role"] == "system", messages))
        # Written out to compare them: to Python, 1 and true are equal.
        key = json.dumps([head, tools])
        if key != self._key:
            self._key, self._opening = key, self._open(messages, head, tools)
        if self._opening is not None:
            _, ids = self._opening
            rest, learn = self._turns(messages[len(head) :], None)
            return Example((*ids, *rest), (*(False for _ in ids), *learn), len(ids))
        ids, learn = self._turns(messages, tools)
        return Example(ids, learn)

    def _render(self, messages: list[dict[str, Any]], tools: Any, *, prompt: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt
        )
        return text

    def _open(self, messages: list[dict[str, Any]], head: list[dict[str, Any]], tools: Any) -> Any:
        """(text, tokens) of the opening, where the template writes it first and the turns independently of it."""
        if not head and not tools:
            return None
        whole = self._render(messages, tools)
        try:
            rest = self._render(messages[len(head) :], None)
        except Exception:  # a template may refuse to show a conversation without its system message
            return None
        if not rest or not whole.endswith(rest):
            return None
        text = whole[: len(whole) - len(rest)]
        return text, tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _turns(self, messages: list[dict[str, Any]], tools: Any) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        ids: list[int] = []
        learn: list[bool] = []
        spans = list(self._spans(messages, tools))
        pieces = self._tokenizer([text for text, _ in spans], add_special_tokens=False).input_ids if spans else []
        for piece, (_, counts) in zip(pieces, spans, strict=True):
            ids.extend(piece)
            learn.extend([counts] * len(piece))
        return tuple(ids), tuple(learn)

    def _spans(self, messages: list[dict[str, Any]], tools: Any) -> Iterator[tuple[str, bool]]:
        """The text up to the end of the last assistant turn, in pieces, and whether each is learned."""
        # Content that spells the template's own marks is left to the slow way, and so is an opening.
        opens = bool(tools) or any(m["role"] == "system" for m in messages[:1])
        if self._appends and not opens and MARK not in json.dumps(messages):
            spoken = (m for m in messages if m["role"] == "assistant")
            for text, reply in turns(messages):
                counts = reply and learned(next(spoken))
                yield text, counts and (not self._calls_only or CALL in text)
            return
        done = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:i], tools, prompt=True)
            whole = self._render(messages[: i + 1], tools)
            end = self._tokenizer.eos_token
            stop = whole.rfind(end) + len(end) if end and end in whole[len(asked) :] else len(whole)
            counts = learned(message) and (not self._calls_only or bool(message.get("tool_calls")))
            for text, learn in ((asked, False), (whole[:stop], counts)):
                if not text.startswith(done):
                    raise BadInput("the chat template rewrites earlier turns", fix="use a template that only appends")
                yield text[len(done) :], learn
                done = text


def encode(tokenizer: Any, document: Mapping[str, Any]) -> Example:
    """One conversation as an example (`Encoder`, for a single one)."""
    return Encoder(tokenizer)(document)


def clumps(examples: Iterable[Example], length: int) -> Iterator[Clump]:
    """Put conversations that follow one another with the same opening together, `length` tokens at most.

    Longer conversations, and those with nothing to learn, are left out.
    """
    opening: tuple[int, ...] = ()
    members: list[Example] = []
    size = 0
    for example in examples:
        if len(example.ids) > length or not any(example.learn):
            continue
        own = example.ids[: example.opening]
        more = len(example.ids) - example.opening
        if members and (not own or own != opening or size + more > length):
            yield Clump(opening, tuple(members))
            members = []
        if not members:
            opening, size = own, len(own)
        members.append(example)
        size += more
    if members:
        yield Clump(opening, tuple(members))


def pack(examples: Iterable[Example], length: int, open_rows: int = 64) -> Iterator[list[Clump]]:
    """Fill rows of `length` tokens with whole clumps, best fit over a few open rows."""
    rows: list[tuple[int, list[Clump]]] = []
    for clump in clumps(examples, length):
        fitting = [i for i, (left, _) in enumerate(rows) if left >= clump.size]
        if fitting:
            best = min(fitting, key=lambda i: rows[i][0])
            left, members = rows[best]
            members.append(clump)
            rows[best] = (left - clump.size, members)
        else:
            rows.append((length - clump.size, [clump]))
        if len(rows) > open_rows:
            yield rows.pop(min(range(len(rows)), key=lambda i: rows[i][0]))[1]
    yield from (members for _, members in rows)


def to_rows(batch: Sequence[Sequence[Clump]], length: int) -> Rows:
    """A batch of packed rows as arrays. The target of a position is the next token of the same conversation."""
    shape = (len(batch), length)
    ids, positions, numbers, branches = (np.zeros(shape, np.int64) for _ in range(4))
    targets = np.full(shape, IGNORE, np.int64)
    for r, members in enumerate(batch):
        at = 0
        for number, clump in enumerate(members, 1):
            trunk = len(clump.opening)
            parts: list[tuple[int, NDArray[np.int64], tuple[bool, ...] | None]]
            parts = [(0, np.asarray(clump.opening, np.int64), None)]
            parts += [(b, np.asarray(m.ids[m.opening :]), m.learn[m.opening :]) for b, m in enumerate(clump.members, 1)]
            for branch, part, learn in parts:
                here = slice(at, at + len(part))
                ids[r, here] = part
                positions[r, here] = np.arange(len(part)) + (trunk if branch else 0)
                numbers[r, here] = number
                branches[r, here] = branch
                if learn is not None:
                    targets[r, at : at + len(part) - 1] = np.where(learn[1:], part[1:], IGNORE)
                at += len(part)
    return Rows(ids, targets, positions, numbers, branches)


def data_hash(documents: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over the canonical JSON of the documents, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()
