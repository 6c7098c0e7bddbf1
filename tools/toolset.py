"""A set of tools, looked up by the name a model writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import BadInput, NotFound
from .tool import Tool


class Toolset(Mapping[str, Tool]):
    """Tools by name, in the order given.

    Unlike a dictionary's, `get` and `[]` raise `NotFound` for an unknown name: its text lists the known tools, which
    is what a model needs to repair the call.

    Raises:
        BadInput: two tools share a name.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for one in tools:
            if not isinstance(one, Tool):
                raise BadInput(
                    f"{one!r:.80} is not a tool", where="tools", fix="Decorate the function with @trimtab.tools.tool."
                )
            if one.name in self._tools:
                raise BadInput(
                    f"two tools are named '{one.name}'", where="tools", fix="Give one another name: @tool(name=...)."
                )
            self._tools[one.name] = one

    def __getitem__(self, name: str) -> Tool:
        try:
            return self._tools[name]
        except (KeyError, TypeError):
            known = ", ".join(self._tools) or "none"
            raise NotFound(f"no tool named '{name!s:.60}'", fix=f"Known tools: {known}.") from None

    def get(self, name: str, default: Any = None) -> Tool:
        """The tool of that name.

        Raises:
            NotFound: no tool has it; the error names the known ones. `default` is not used.
        """
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"Toolset({', '.join(self._tools)})"

    def specs(self) -> list[dict[str, Any]]:
        """All tools as OpenAI tool specifications, in order."""
        return [one.spec() for one in self._tools.values()]

    def only(self, names: Iterable[str]) -> Toolset:
        """A smaller set with these tools, in the order asked for. Raises `NotFound` for an unknown name."""
        return Toolset(self[name] for name in names)
