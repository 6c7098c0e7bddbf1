"""Constrained decoding: a grammar under which a call names an offered tool and holds arguments that fit its schema.

The grammar is a structural tag of xgrammar, which vLLM takes as `response_format`: text is free until `<tool_call>`,
then a call of one of the offered tools must follow, in the Hermes form that the embedded models are trained on. It
works on bytes, so tokens may span its borders. Arguments stand in the schema's order; whether to call stays free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BadInput
from .hermes import CLOSE, OPEN

MOST_SPACES = 1
"""White space in a row inside a call: what `", "` and `": "` need, and no endless line of it."""

_SAID = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$schema"})
_KEPT: dict[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
"""Keywords that xgrammar 0.2 keeps to, by type. Others it passes over in silence (`uniqueItems`, a second `allOf`)."""
_EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}


def response_format(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `response_format` that holds a vLLM server to these tools' schemas.

    Args:
        tools: OpenAI tool specifications, at least one.

    Raises:
        BadInput: a schema says something that the grammar would not keep; names tool and field.
    """
    tags = []
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadInput("a tool has no name", where="tools", fix="Give OpenAI tool specifications")
        name, schema = function["name"], function.get("parameters") or _EMPTY
        if schema.get("type") != "object":
            raise _refused("is no object's schema", f"tool '{name}': parameters")
        _check(schema, f"tool '{name}': parameters")
        begin = f'{OPEN}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        content = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MOST_SPACES}
        tags.append({"type": "tag", "begin": begin, "content": content, "end": f"}}\n{CLOSE}"})
    return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": [OPEN], "tags": tags}}


def holdable(tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are tools, and decoding can be held to all their schemas."""
    try:
        return bool(tools) and bool(response_format(tools))
    except BadInput:
        return False


def unstrict(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools without `strict`: beside it vLLM would allow its own, looser grammar, too."""
    return [
        {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
        for tool in tools
    ]


def _check(schema: Any, where: str) -> None:
    """Raises BadInput for what the grammar would not keep."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise _refused("is no schema", where)
    for group in ("$defs", "definitions"):
        for name, part in (schema.get(group) or {}).items():
            _check(part, f"{where}.{group}.{name}")
    keys = set(schema) - _SAID - {"$defs", "definitions"}
    kind = schema.get("type")
    if "$ref" in keys or "anyOf" in keys:
        _only(keys, {"$ref"} if "$ref" in keys else {"anyOf"}, where)
        for i, part in enumerate(schema.get("anyOf") or ()):
            _check(part, f"{where}.anyOf[{i}]")
    elif "enum" in keys or "const" in keys:
        _only(keys, {"enum", "type"} if "enum" in keys else {"const", "type"}, where)
        values = schema["enum"] if "enum" in keys else [schema["const"]]
        kinds = [kind] if isinstance(kind, str) else kind
        if kinds is not None and not all(any(_is(value, one) for one in kinds) for value in values):
            raise _refused("holds a value that is not of its type", where)
    elif isinstance(kind, str):
        _only(keys, {"type", *_KEPT.get(kind, ())}, where)
        _check_kind(schema, kind, keys, where)
    else:
        _only(keys, {"type"}, where)  # several types, or anything


def _check_kind(schema: Mapping[str, Any], kind: str, keys: set[str], where: str) -> None:
    if kind == "object":
        properties = schema.get("properties") or {}
        for name, part in properties.items():
            _check(part, f"{where}.{name}")
        _check(schema.get("additionalProperties", False), f"{where}.additionalProperties")
        unknown = [name for name in schema.get("required") or () if name not in properties]
        if unknown:
            raise _refused(f"requires {unknown[0]!r}, which is no property", where)
    elif kind == "array":
        _check(schema.get("items", True), f"{where}.items")
    elif kind == "string":
        if len(keys & {"pattern", "format"}) and len(keys) > 2:
            raise _refused("has a pattern or format beside another bound", where)
        pattern = schema.get("pattern")
        if pattern is not None and not (pattern.startswith("^") and pattern.endswith("$")):
            raise _refused("has a pattern that is not of the whole text (^...$)", where)


def _only(keys: set[str], allowed: set[str], where: str) -> None:
    extra = sorted(keys - allowed)
    if extra:
        raise _refused(f"says {extra[0]!r}", where)


def _is(value: Any, kind: Any) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and kind == "number")
        return whole and not isinstance(value, bool)
    types: dict[Any, Any] = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return isinstance(value, types.get(kind, ()))


def _refused(what: str, where: str) -> BadInput:
    return BadInput(
        f"the schema {what}, to which decoding cannot be held",
        where=where,
        fix="Say it in a simpler schema, or ask without `constrained`",
    )
