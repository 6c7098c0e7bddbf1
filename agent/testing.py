"""An engine that answers from a list or a function: for testing agents and policies without a model.

    engine = ReplayEngine([call("calculate", expression="2 * 21"), "It is 42."])
    result = Agent(tools=[calculate], engine=engine).run("What is twice 21?")
    engine.requests[1].messages        # what the model was shown at its second step

It is a public part: use it in tests of your own tools and agents.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from ..errors import EngineUnavailable, NotFound
from ..models.chat import ChatRequest, Delta, Message, Receipt, Reply, ToolCall, Usage

Line = Reply | Message | str | BaseException
"""One answer: a whole reply, a message, a text, or an error to raise."""
Script = Callable[[ChatRequest], Line | Awaitable[Line]]


class ReplayEngine:
    """An `Engine` that plays answers back.

    Args:
        script: answers in order, or a function (plain or async) of the request.
        profiles: the profiles it says it can serve; others are refused as an engine must.
        usage: the usage of answers that do not bring their own.

    Attributes:
        requests: every request so far.
        closed: whether `aclose` was called.
    """

    def __init__(
        self,
        script: Script | Iterable[Line],
        *,
        name: str = "replay",
        model: str = "replay",
        profiles: Iterable[str] = (),
        usage: Usage | None = None,
    ) -> None:
        self._script: Script | Iterator[Line] = script if callable(script) else iter(script)
        self._name, self._model, self._profiles = name, model, list(profiles)
        self._usage = usage or Usage()
        self.requests: list[ChatRequest] = []
        self.closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def model(self) -> str:
        return self._model

    async def chat(self, request: ChatRequest) -> Reply:
        """The next answer.

        Raises:
            EngineUnavailable: the list is used up.
            NotFound: the profile is not one of its own.
        """
        self.requests.append(request)
        if request.profile is not None and request.profile.partition("@")[0] not in self._profiles:
            raise NotFound(f"no profile {request.profile!r}", where=self._name)
        began = time.monotonic()
        line = await self._next(request)
        if isinstance(line, BaseException):
            raise line
        if isinstance(line, Reply):
            return line
        message = Message("assistant", line) if isinstance(line, str) else line
        return Reply(
            message,
            "tool_calls" if message.tool_calls else "stop",
            self._usage,
            time.monotonic() - began,
            Receipt(self._name, self._model, request.profile),
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """The next answer in two pieces: its text, then the whole reply."""
        reply = await self.chat(request)
        if reply.message.content:
            yield Delta(reply.message.content)
        yield Delta(reply=reply)

    async def profiles(self) -> list[str]:
        """The profiles given."""
        return list(self._profiles)

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True

    async def _next(self, request: ChatRequest) -> Line:
        if callable(self._script):
            line = self._script(request)
            return await line if inspect.isawaitable(line) else line
        try:
            return next(self._script)
        except StopIteration:
            raise EngineUnavailable(f"the replay has no answer number {len(self.requests)}", where=self._name) from None


def call(name: str, /, **arguments: Any) -> Message:
    """A message that calls one tool."""
    return calls((name, arguments))


def calls(*made: tuple[str, dict[str, Any] | str]) -> Message:
    """A message that calls several tools. Arguments given as text are passed on as they are, broken or not."""
    out = []
    for i, (name, arguments) in enumerate(made):
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        out.append(ToolCall(f"call_{i}", name, text))
    return Message("assistant", None, tuple(out))
