"""YAML from anywhere, without what could hurt: objects of Python, aliases, repeated keys, endless nesting."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .errors import BadInput

DEEPEST = 100
"""Mappings and lists inside one another."""

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there: ten times as fast


class _Loader(_Parser):  # type: ignore[misc]
    """Refuses repeated keys: YAML would keep the last one, and what was written twice would silently be once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def load_yaml(text: str, where: str) -> Any:
    """What a YAML text says, as plain Python.

    Args:
        where: for errors: the file.

    Raises:
        BadInput: and only that, for any text; with the line, where one is to blame.
    """
    try:
        _refuse(text)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = where if mark is None else f"{where}: line {mark.line + 1}"
        raise BadInput(f"not valid YAML ({error.problem})", where=line, fix="Correct the file") from None
    except Exception as error:  # YAML constructors raise almost anything on odd scalars, e.g. IndexError on !!int ""
        problem = re.sub(r"\s+", " ", str(error))[:200]
        raise BadInput(
            f"not valid YAML ({type(error).__name__}: {problem})", where=where, fix="Correct the file"
        ) from None


def _refuse(text: str) -> None:
    """Raise a MarkedYAMLError for aliases, a few lines of which can stand for gigabytes, and for nesting so deep that
    libyaml's reader, which calls itself, would run out of stack."""
    depth = 0
    event: Any
    for event in yaml.parse(text, _Parser):
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not allowed"
        else:
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            problem = "nested too deeply"
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
