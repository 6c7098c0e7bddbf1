"""Calls and their schemas: whether each call that a model writes is one that it was offered, counted as it writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..models.chat import ChatRequest, Delta, Message, Reply
from ..models.engines.hermes import OPEN
from .arms import dtype_of
from .families_bars import Share

if TYPE_CHECKING:
    from ..models.engine import Engine
    from .run import Progress


class Watched:
    """An engine that counts the calls in its replies, and those that fit the schema of a tool that was offered.

    What stands in a reply's text because the engine could not read it as a call counts as a call that does not fit.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._fitting = self._calls = 0
        self.misfits: list[str] = []

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def model(self) -> str:
        return self._engine.model

    @property
    def dtype(self) -> str | None:
        return dtype_of(self._engine)

    @property
    def valid(self) -> Share:
        """The calls so far, and those that fit."""
        return Share(self._fitting, self._calls)

    async def chat(self, request: ChatRequest) -> Reply:
        """As the engine's."""
        reply = await self._engine.chat(request)
        self._count(request, reply.message)
        return reply

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """As the engine's."""
        async for piece in self._engine.stream(request):
            if piece.reply is not None:
                self._count(request, piece.reply.message)
            yield piece

    async def profiles(self) -> list[str]:
        """As the engine's."""
        return await self._engine.profiles()

    async def aclose(self) -> None:
        """The engine is not this one's to close."""

    def _count(self, request: ChatRequest, message: Message) -> None:
        fitting = [call_fits(call.name, call.arguments, request.tools) for call in message.tool_calls]
        written = [f"{call.name} {call.arguments}" for call in message.tool_calls]
        if not fitting and OPEN in (message.content or ""):
            fitting, written = [False], [str(message.content)]
        self._calls += len(fitting)
        self._fitting += sum(fitting)
        self.misfits += [text for text, good in zip(written, fitting, strict=True) if not good]


def call_fits(name: str, arguments: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call names an offered tool and its arguments, JSON text, fit that tool's schema."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    value = parsed(arguments)
    return name in schemas and isinstance(value, dict) and fits(value, {"type": "object", **schemas[name]})


def silent(message: Message) -> bool:
    """Whether a reply answers without a call: it says something, and no call stands in it, a broken one neither."""
    text = message.content or ""
    return not message.tool_calls and OPEN not in text and bool(text.strip())


def parsed(arguments: str) -> Any:
    """The JSON value of a call's arguments; None for what is none."""
    try:
        return json.loads(arguments or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value fits a schema, as far as tools' schemas here go: types, enums, properties, items."""
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return False
    kind = schema.get("type")
    if kind is not None and not any(_is(value, one) for one in ([kind] if isinstance(kind, str) else kind)):
        return False
    if isinstance(value, dict):
        known = schema.get("properties") or {}
        if any(name not in value for name in schema.get("required") or ()):
            return False
        if schema.get("additionalProperties") is False and any(name not in known for name in value):
            return False
        return all(fits(part, known[name]) for name, part in value.items() if name in known)
    if isinstance(value, list):
        return all(fits(part, schema.get("items") or {}) for part in value)
    return True


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: 5 and 5.0 are, 1 and true are not, the order of members does not count."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (kind == "number" or isinstance(value, int) or value.is_integer())
    types: dict[str, Any] = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return isinstance(value, types.get(kind, ()))


async def ask_all(engine: Engine, requests: Sequence[ChatRequest], concurrency: int, told: Progress) -> list[Message]:
    """The replies to all requests, in their order, `concurrency` at once.

    Raises:
        EngineError: a request could not be answered.
    """
    replies: dict[int, Message] = {}
    queue = iter(enumerate(requests))
    told(0, len(requests), None)

    async def worker() -> None:
        for i, request in queue:
            replies[i] = (await engine.chat(request)).message
            told(len(replies), len(requests), None)

    tasks = [asyncio.create_task(worker()) for _ in range(min(concurrency, len(requests)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [replies[i] for i in range(len(requests))]
