"""A user's own conversations: read whole or refused row by row, part of them held back, the rest learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import BadInput
from .data import data_hash, encode

Row = dict[str, Any]
HELD_BACK = 0.1
"""Share of a user's rows that is scored on and never trained on."""


def read_examples(place: Path, also: Callable[[Row], str | None] = lambda row: None) -> list[Row]:
    """Read conversations from JSONL, one `{"messages": [...], "tools": [...]}` in OpenAI's form a line.

    Args:
        place: a file, or a folder whose `.jsonl` files are read in the order of their names.
        also: a further check of a well-formed row; says why it is bad, or None.

    Raises:
        BadInput: any row is bad; the message lists bad rows as `file:line: reason`, and nothing is trained on.
    """
    files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not files:
        raise BadInput("there are no .jsonl files", where=str(place), fix="Put conversations there, one a line")
    rows: list[Row] = []
    wrong: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot be read: {error}", where=str(file)) from error
        # JSON may hold other line ends, such as U+2028, within a string.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                wrong.append(f"{file.name}:{number}: not JSON ({error})")
                continue
            reason = _reason_against(row) or also(row)
            if reason is None:
                rows.append(row)
            else:
                wrong.append(f"{file.name}:{number}: {reason}")
    if wrong:
        shown = "; ".join(wrong[:20]) + (f"; and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise BadInput(shown, where=str(place), fix="Mend or remove these rows; nothing was trained")
    if not rows:
        raise BadInput("has no conversations", where=str(place))
    return rows


def _reason_against(row: Any) -> str | None:
    """Why a row cannot be trained on, or None."""
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        return "no list `messages`"
    if not isinstance(row.get("tools") or [], list):
        return "`tools` is not a list"
    for i, message in enumerate(row["messages"]):
        reason = _reason_against_message(message, first=i == 0)
        if reason is not None:
            return f"messages[{i}] {reason}"
    if not any(m["role"] == "assistant" for m in row["messages"]):
        return "the assistant never speaks, so there is nothing to learn"
    return None


def _reason_against_message(message: Any, *, first: bool) -> str | None:
    """Why a message cannot be trained on, or None."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant", "tool"):
        return "has no known role"
    if message["role"] == "system" and not first:
        return "is a system message that is not the first, which templates pass over"
    calls, content = message.get("tool_calls"), message.get("content")
    if calls is not None and not isinstance(calls, list):
        return "has `tool_calls` that are no list"
    if content is not None and not isinstance(content, str):
        return "has `content` that is no text: write parts as one string"
    if calls and message["role"] != "assistant":
        return "has tool calls, and is not the assistant's"
    if not calls and content is None:
        return "has neither content nor tool calls"
    return next((reason for reason in map(_reason_against_call, calls or ()) if reason is not None), None)


def _reason_against_call(call: Any) -> str | None:
    """Why a tool call cannot be trained on, or None."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return "has a broken tool call: no `function` with `name` and `arguments`"
    if not isinstance(function.get("name"), str) or not function["name"]:
        return "has a tool call without a name"
    arguments = function["arguments"]
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        parsed = None
    return None if isinstance(parsed, dict) else "has a tool call whose arguments are not an object"


def fits(tokenizer: Any, length: int) -> Callable[[Row], str | None]:
    """A check for `read_examples`: whether the base's chat template can show a row, and in at most `length` tokens."""

    def check(row: Row) -> str | None:
        try:
            size = len(encode(tokenizer, row).ids)
        except Exception as error:  # a template may raise whatever it likes
            return f"the chat template cannot show it ({error})"
        return None if size <= length else f"{size} tokens, more than the recipe's length of {length}"

    return check


def hold_back(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those held back: a tenth, at least one; none of a single row.

    Which ones is decided by what they say, not by a seed: an adapter that is trained further on the same rows is not
    scored on what it learned before.
    """
    if len(rows) < 2:
        return rows, []
    count = max(1, round(HELD_BACK * len(rows)))
    chosen = set(sorted(range(len(rows)), key=lambda i: data_hash([rows[i]]))[:count])
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]
