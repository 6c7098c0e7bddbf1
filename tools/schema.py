"""From a function's type hints and docstring to a JSON schema, and from a model's arguments to checked values."""

from __future__ import annotations

import functools
import inspect
import json
import operator
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import BadInput

LONGEST_ARGUMENTS = 1_000_000  # characters of JSON text
DEEPEST_ARGUMENTS = 100
"""Lists and objects inside one another. Far more than a call needs, far less than what makes Python's recursion end."""
LONGEST_ECHO = 60
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic says of a name that nobody asked for: in a model, in a dataclass."""
WANTED = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
PLAIN: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
    "null": type(None),
}


class Parameter(NamedTuple):
    """One parameter of a tool. `default` is shown in the schema if JSON can hold it."""

    name: str
    hint: Any
    required: bool
    default: Any = None
    description: str | None = None


class Arguments:
    """The arguments a function takes: their JSON schema, and the check of what a model wrote."""

    def __init__(self, parameters: tuple[Parameter, ...]) -> None:
        from pydantic import ConfigDict, Field, TypeAdapter
        from typing_extensions import TypedDict  # before Python 3.12 pydantic does not take the one of typing

        hints: dict[str, Any] = {}
        for name, hint, required, _, description in parameters:
            described = hint if description is None else typing.Annotated[hint, Field(description=description)]
            hints[name] = typing.Required[described] if required else typing.NotRequired[described]
        # A TypedDict and not a model: any parameter name is fine, and what was not given stays away.
        make: Any = TypedDict  # known only at run time, which mypy does not follow
        shape = make("arguments", hints)
        shape.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
        self._adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(shape)
        self._extra, self._strict = _own_rules(self._adapter.core_schema)
        self._names = tuple(hints)
        self._none = tuple(p.name for p in parameters if not p.required and p.default is None)
        made = _tidy(self._adapter.json_schema(), closed=not self._extra)
        properties = made.get("properties", {})
        for name in set(self._names) - set(properties):
            raise BadInput(f"parameter '{name}' has an alias", fix="Name the parameter as the model is to write it.")
        for parameter in parameters:
            part = properties[parameter.name]
            if parameter.name in self._none:
                _drop_null(part)
            elif isinstance(parameter.default, str | int | float):
                part["default"] = parameter.default
        self._whole = tuple(name for name, part in properties.items() if part.get("type") == "integer")
        self._schema = {
            "type": "object",
            "properties": properties,
            "required": [p.name for p in parameters if p.required],
            "additionalProperties": False,
        }
        if "$defs" in made:
            self._schema["$defs"] = made["$defs"]
        try:
            json.dumps(self._schema, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise BadInput(f"a default is not JSON: {error}", fix="Take None for what has no limit.") from None

    def schema(self) -> dict[str, Any]:
        """A fresh copy of the JSON schema."""
        copy: dict[str, Any] = json.loads(json.dumps(self._schema))
        return copy

    def check(self, tool: str, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as the function takes them. Raises `BadInput` in one line; see `Tool.validate`."""
        from pydantic import ValidationError

        given = _parsed(tool, arguments)
        for name in self._whole:
            value = given.get(name)
            if isinstance(value, float) and value.is_integer():
                given[name] = int(value)
        for name in self._none:
            if name in given and given[name] is None:
                del given[name]
        try:
            text = json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
        except RecursionError:
            raise BadInput("arguments are nested too deeply", where=tool) from None
        except UnicodeEncodeError:
            raise BadInput("arguments hold half of a Unicode character", where=tool) from None
        except (TypeError, ValueError) as error:
            raise BadInput(f"arguments are not JSON: {error}", where=tool) from None
        if too_deep(given):
            raise BadInput("arguments are nested too deeply", where=tool)
        try:
            # What goes for the arguments goes for the models inside them, unless one of them has rules of its own.
            return self._adapter.validate_json(
                text, strict=None if self._strict else True, extra=None if self._extra else "forbid"
            )
        except ValidationError as error:
            raise BadInput(self._line(tool, error), where=tool) from None

    def _line(self, tool: str, error: Any) -> str:
        problems = error.errors(include_url=False, include_context=False)
        first = problems[0]
        # Unknown and missing arguments say more about what went wrong than a type does.
        for kind in (*UNKNOWN, "missing"):
            first = next((p for p in problems if p["type"] == kind and len(p["loc"]) == 1), first)
        where = ".".join(str(part) for part in first["loc"])[:LONGEST_ECHO]
        takes = f": {tool} takes {', '.join(self._names) or 'no arguments'}" if len(first["loc"]) == 1 else ""
        if first["type"] in UNKNOWN:
            return f"unknown argument '{where}'{takes}"
        if first["type"] == "missing":
            return f"missing argument '{where}'{takes}"
        top = self._schema["properties"].get(first["loc"][0], {}) if first["loc"] else {}
        wanted = _wanted(top) if len(first["loc"]) == 1 else None
        if wanted is not None and first["type"].endswith(("_type", "_parsing", "literal_error", "enum")):
            return f"argument '{where}' must be {wanted}, not {_echo(first['input'])}"
        said = re.sub(r"^\w+ should ", "must ", first["msg"].split("\n")[0])
        return f"argument '{where}' {said}, not {_echo(first['input'])}"


def arguments_of(function: Callable[..., Any]) -> Arguments:
    """The arguments of a function, from its type hints and its docstring.

    Raises:
        BadInput: a parameter without type hint, with an alias, positional-only, `*args` or `**kwargs`, of a type that
            JSON schema cannot describe, or with a default that JSON cannot hold.
    """
    name = getattr(function, "__name__", repr(function))
    where = f"tool '{name}'"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # a hint in quotes is code, and may raise anything
        said = str(error).split("\n")[0]
        raise BadInput(
            f"type hints cannot be read: {said}", where=where, fix="Define the types at the top of a module."
        ) from None
    words = descriptions_of(inspect.getdoc(function))
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise BadInput(f"parameter '{parameter}' has no fixed name", where=where, fix="Name every parameter.")
        if parameter.name not in hints:
            raise BadInput(
                f"parameter '{parameter.name}' has no type hint",
                where=where,
                fix=f"Write {parameter.name}: str, or the like.",
            )
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        name = parameter.name
        found.append(Parameter(name, hints[name], required, default, words.get(name)))
    return _arguments(tuple(found), where)


def arguments_of_schema(name: str, parameters: Mapping[str, Any]) -> Arguments:
    """The arguments an outer-level JSON schema asks for. Deeper levels are not checked."""
    required = parameters.get("required") or ()
    found = []
    for key, part in (parameters.get("properties") or {}).items():
        part = part if isinstance(part, Mapping) else {}
        choices, kind = part.get("enum"), part.get("type")
        kinds = [kind] if isinstance(kind, str) else list(kind or ())
        hint: Any = functools.reduce(operator.or_, [PLAIN.get(one, Any) for one in kinds]) if kinds else Any
        if choices and all(isinstance(choice, str | int) for choice in choices):
            hint = typing.cast(Any, typing.Literal)[tuple(choices)]
        # Left out rather than null, unless the schema names null: then it is passed on.
        default = None if "null" not in kinds else ...
        found.append(Parameter(str(key), hint, key in required, default))
    return _arguments(tuple(found), f"tool '{name}'")


def _arguments(parameters: tuple[Parameter, ...], where: str) -> Arguments:
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        try:
            return _cached(parameters, repr(parameters))
        except TypeError:  # an unhashable hint
            return Arguments(parameters)
    except BadInput as error:
        raise BadInput(error.what, where=where, fix=error.fix) from None
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        said = str(error).split("\n")[0]
        raise BadInput(
            f"a parameter's type has no JSON schema: {said}", where=where, fix="Use str, int, float, bool, list, dict."
        ) from None


@functools.lru_cache(maxsize=256)
def _cached(parameters: tuple[Parameter, ...], shown: str) -> Arguments:
    """Compiling a schema takes about a millisecond, and the built-in tools are made again for every task.

    `shown` tells apart what Python holds equal: a default of 1 is not one of True.
    """
    return Arguments(parameters)


def name_of(name: str) -> str:
    """The name, if it is one that every engine accepts. Raises `BadInput` otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise BadInput(
            f"'{name:.80}' is not a tool's name", where="tool", fix="Use 1 to 64 letters, digits, '_' or '-'."
        )
    return name


def description_of(docstring: str | None, name: str) -> str:
    """The first paragraph as one line, without its last full stop. Raises `BadInput` if there is none."""
    text = " ".join((docstring or "").strip().split("\n\n")[0].split())
    if not text:
        raise BadInput("no docstring", where=f"tool '{name}'", fix="Say in one line what the tool does.")
    return text.removesuffix(".")


def descriptions_of(docstring: str | None) -> dict[str, str]:
    """The parameters' descriptions from the `Args:` section of a Google-style docstring."""
    lines = (docstring or "").split("\n")
    heads = [i for i, line in enumerate(lines) if line.strip() in ("Args:", "Arguments:", "Parameters:")]
    found: dict[str, str] = {}
    if not heads:
        return found
    base = _indent(lines[heads[0]])
    step: int | None = None
    current = ""
    for line in lines[heads[0] + 1 :]:
        if not line.strip():
            continue
        depth = _indent(line)
        if depth <= base:
            break
        step = depth if step is None else step
        match = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", line)
        if depth == step and match:
            current = match[1]
            found[current] = match[2].strip()
        elif current:
            found[current] = f"{found[current]} {line.strip()}".strip()
    return found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _own_rules(schema: Any) -> tuple[bool, bool]:
    """Whether a pydantic model or dataclass within a core schema says itself what becomes of unknown fields, and how
    strictly its values are read. Both can be said for a whole validation only, and would overrule it."""
    extra = strict = False
    todo = [schema]
    while todo:
        part = todo.pop()
        if isinstance(part, list | tuple):
            todo.extend(part)
        elif isinstance(part, dict):
            todo.extend(part.values())
            of = part.get("cls") if part.get("type") in ("model", "dataclass") else None
            said = getattr(of, "model_config", None) or getattr(of, "__pydantic_config__", None) or {}
            extra, strict = extra or "extra" in said, strict or "strict" in said or part.get("strict") is False
    return extra, strict


def _tidy(schema: Any, *, closed: bool) -> Any:
    """Without pydantic's generated titles: they only cost tokens. A *property* named title is left alone.

    Args:
        closed: objects take no other fields than theirs.
    """
    if isinstance(schema, list):
        return [_tidy(part, closed=closed) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, part in schema.items():
        if key == "title" and isinstance(part, str):
            continue
        named = key in ("properties", "$defs") and isinstance(part, dict)
        if named:
            out[key] = {name: _tidy(inner, closed=closed) for name, inner in part.items()}
        else:
            out[key] = _tidy(part, closed=closed)
    if closed and out.get("type") == "object" and isinstance(out.get("properties"), dict):
        out.setdefault("additionalProperties", False)
    return out


def _drop_null(part: dict[str, Any]) -> None:
    """Show `X | None = None` as X: a model leaves the argument out rather than writing null (which is taken too)."""
    choices = [choice for choice in part.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del part["anyOf"]
        part.update(choices[0])
    elif choices:
        part["anyOf"] = choices


def _parsed(tool: str, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return {str(key): value for key, value in arguments.items()}
    if not isinstance(arguments, str):
        raise BadInput(f"arguments must be a JSON object, not {_echo(arguments)}", where=tool)
    if len(arguments) > LONGEST_ARGUMENTS:
        raise BadInput(f"arguments are longer than {LONGEST_ARGUMENTS} characters", where=tool)
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        raise BadInput(f"arguments are not JSON: {error.msg} at character {error.pos + 1}", where=tool) from None
    except RecursionError:
        raise BadInput("arguments are nested too deeply", where=tool) from None
    except ValueError as error:
        raise BadInput(f"arguments are not JSON: {error}", where=tool) from None
    if not isinstance(value, dict):
        raise BadInput(f"arguments must be a JSON object, not {_echo(value)}", where=tool)
    return value


def too_deep(value: Any, most: int = DEEPEST_ARGUMENTS) -> bool:
    """Whether lists and objects of a JSON value stand inside one another more than `most` deep."""
    level = [value]
    for _ in range(most):
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for part in parts for inner in part]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("an argument is given twice")
    return out


def _wanted(part: Mapping[str, Any]) -> str | None:
    if "enum" in part:
        return "one of " + ", ".join(json.dumps(choice, ensure_ascii=False) for choice in part["enum"])
    if "const" in part:
        return json.dumps(part["const"], ensure_ascii=False)
    if "anyOf" in part:
        each = [_wanted(choice) for choice in part["anyOf"]]
        return " or ".join(one for one in each if one) if all(each) else None
    kind = part.get("type")
    return WANTED.get(kind) if isinstance(kind, str) and "format" not in part else None


def _echo(value: Any) -> str:
    """A value as JSON, cut short, on one line."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "..."
