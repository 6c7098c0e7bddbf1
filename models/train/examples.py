"""A user's own conversations: read whole or refused row by row, part of them held back, the rest learned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import BadInput
from .data import data_hash, encode, learned

Row = dict[str, Any]
HELD_BACK = 0.1
"""Share of a user's conversations that is scored on and never trained on."""


def read_examples(place: Path, also: Callable[[Row], str | None] = lambda row: None) -> list[Row]:
    """Read conversations from JSONL, one `{"messages": [...], "tools": [...]}` in OpenAI's form a line. The role
    `developer`, OpenAI's newer name, is read as `system`, the one that chat templates know.

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
            text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of its encoding
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot be read: {error}", where=str(file)) from error
        # JSON may hold other line ends, such as U+2028, within a string.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = _parsed(line)
            except (ValueError, RecursionError) as error:
                wrong.append(f"{file.name}:{number}: not JSON ({error})")
                continue
            reason = _reason_against(row)
            if reason is None:
                row["messages"] = [_as_templates_say(message) for message in row["messages"]]
                reason = also(row)
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


def _parsed(text: str) -> Any:
    """JSON without what only Python takes for it.

    Raises:
        ValueError: it is not JSON, or holds what no JSON or no text can.
    """
    value = json.loads(text, parse_constant=_refused, parse_float=_finite)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair, {error.object[error.start]!a}, is no text") from None
    return value


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _as_templates_say(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _reason_against(row: Any) -> str | None:
    """Why a row cannot be trained on, or None."""
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        return "no list `messages`"
    if row.get("functions"):
        return "has `functions`, the older form: write them as `tools`"
    tools = row.get("tools")
    if tools is not None and not isinstance(tools, list):
        return "`tools` is not a list"
    for i, tool in enumerate(tools or ()):
        reason = _reason_against_tool(tool)
        if reason is not None:
            return f"tools[{i}] {reason}"
    for i, message in enumerate(row["messages"]):
        reason = _reason_against_message(message, first=i == 0)
        if reason is not None:
            return f"messages[{i}] {reason}"
    if not any(m["role"] == "assistant" for m in row["messages"]):
        return "the assistant never speaks, so there is nothing to learn"
    if not any(map(learned, row["messages"])):
        return "all that the assistant says has `weight` 0, so there is nothing to learn"
    return None if tools is None else _reason_against_names(row["messages"], tools)


def _reason_against_tool(tool: Any) -> str | None:
    """Why a tool cannot be shown, or None."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return "is no `function` with a `name`"
    parameters = function.get("parameters")
    if parameters is None:
        return None
    whole = isinstance(parameters, dict) and parameters.get("type", "object") == "object"
    if not whole or not isinstance(parameters.get("properties", {}), dict):
        return f"({function['name']}) has `parameters` that are no JSON schema of an object"
    return None


def _reason_against_names(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str | None:
    """Why the calls do not go with the tools that are shown, or None."""
    known = {tool.get("function", tool)["name"] for tool in tools}
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            if call["function"]["name"] not in known:
                return f"messages[{i}] calls {call['function']['name']}, which is not in `tools`"
    return None


def _reason_against_message(message: Any, *, first: bool) -> str | None:
    """Why a message cannot be trained on, or None."""
    roles = ("system", "developer", "user", "assistant", "tool")
    if not isinstance(message, dict) or message.get("role") not in roles:
        return "has no known role"
    role = message["role"]
    if role in ("system", "developer") and not first:
        return f"is a {role} message that is not the first, which templates pass over"
    calls, content, weight = message.get("tool_calls"), message.get("content"), message.get("weight")
    if message.get("function_call") is not None:
        return "has a `function_call`, the older form: write it as `tool_calls`"
    if weight is not None and (role != "assistant" or isinstance(weight, bool) or weight not in (0, 1)):
        return "has a `weight` that is not 0 or 1, or is not the assistant's"
    if calls is not None and not isinstance(calls, list):
        return "has `tool_calls` that are no list"
    if content is not None and not isinstance(content, str):
        return "has `content` that is no text: write parts as one string"
    if calls and role != "assistant":
        return "has tool calls, and is not the assistant's"
    if not calls and (content is None or (role == "assistant" and not content.strip())):
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
    why = ""
    try:
        parsed = _parsed(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        parsed, why = None, f" ({error})"
    return None if isinstance(parsed, dict) else f"has a tool call whose arguments are not an object{why}"


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
    """The rows to train on and those held back: a tenth of the different conversations, at least one; none of a single
    one. Rows that say the same are on one side, whatever else they hold, such as an id.

    Which ones is decided by what they say, not by a seed: an adapter that is trained further on the same rows is not
    scored on what it learned before.
    """
    said = [data_hash([{key: row[key] for key in ("messages", "tools") if key in row}]) for row in rows]
    different = sorted(set(said))
    if len(different) < 2:
        return rows, []
    chosen = set(different[: max(1, round(HELD_BACK * len(different)))])
    return [r for r, s in zip(rows, said, strict=True) if s not in chosen], [
        r for r, s in zip(rows, said, strict=True) if s in chosen
    ]
