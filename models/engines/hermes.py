"""Tool calls in Hermes form, read exactly as vLLM's `hermes` parser reads them, so that engines cannot disagree."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..chat import Message, ToolCall, whole, whole_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALLS = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


def parse(text: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Split a model's answer into content and calls.

    Returns:
        The text before the first call (None when blank) and each call's (name, arguments as JSON text). When any call
        is broken, the whole text is content and there are no calls.
    """
    if OPEN not in text:
        return text or None, []
    calls = []
    try:
        for closed, unclosed in _CALLS.findall(text):
            call = json.loads(closed or unclosed)
            name = call["name"]
            if not isinstance(name, str):
                return text, []
            calls.append((whole(name), whole_json(json.dumps(call["arguments"], ensure_ascii=False))))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return text, []
    before = text[: text.index(OPEN)]
    return (before if before.strip() else None), calls


def speakable(text: str) -> int:
    """How many characters of an unfinished answer are surely content: none of a call or of a mark's beginning."""
    if OPEN in text:
        return text.index(OPEN)
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if text.endswith(OPEN[:length]):
            return len(text) - length
    return len(text)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as vLLM hands them to a chat template: no content is "", a call's arguments are an object."""
    out = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.tool_calls:
            entry["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _object(c)}}
                for c in message.tool_calls
            ]
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        out.append(entry)
    return out


def template_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Tools as vLLM hands them to a chat template: its fields in its order, absent ones None, others left out."""
    if not tools:
        return None
    out = []
    for tool in tools:
        given = tool["function"]
        function = {key: given.get(key) for key in ("name", "description", "parameters")}
        if given.get("strict") is not None:
            function["strict"] = given["strict"]
        out.append({"type": "function", "function": function})
    return out


def _object(call: ToolCall) -> dict[str, Any]:
    try:
        value = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
