"""`@tool`: a typed Python function becomes something a model may call, and no call of it ever raises."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

from ..errors import BadInput, ToolFailure
from .result import encode, failure
from .schema import Arguments, arguments_of, arguments_of_schema, description_of, name_of


@dataclass(frozen=True)
class ToolResult:
    """What a call came to.

    Attributes:
        content: JSON text for the model: the result, or `{"error": "..."}`.
        ok: False if the arguments were bad, or the tool raised, hung or gave no JSON.
        error: the text inside `{"error": ...}`, or None.
        seconds: wall time.
        truncated: True if the result was longer than the limit and only its beginning is in `content`.
    """

    content: str
    ok: bool
    error: str | None
    seconds: float
    truncated: bool


@dataclass(frozen=True, eq=False)
class Tool:
    """A function with a name, a description and a JSON schema.

    Usually made by `@tool`. Made by hand, only the outer level of `parameters` is checked before a call: names, which
    are required, and the JSON type of each.

    Attributes:
        parameters: JSON schema of the arguments, an object with `additionalProperties` false.
        function: takes the arguments by keyword; plain or async. Its result must be something JSON can hold.
        destructive: True if a call takes away something that the tool cannot bring back.
        changes: True if a call changes something; of a destructive tool it always is. Calls of one message run side by
            side, but these each alone and in place: two items are then added in the order in which they were said.
        timeout: seconds of wall time a call may take.
        limit: bytes of JSON text a result may have.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any]
    destructive: bool = False
    changes: bool = False
    timeout: float = 20.0
    limit: int = 16_000
    arguments: Arguments | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        name_of(self.name)
        if self.destructive:
            object.__setattr__(self, "changes", True)
        if not self.timeout > 0:
            raise BadInput(f"timeout is {self.timeout!r}", where=f"tool '{self.name}'", fix="Give seconds above 0.")
        if self.limit < 200:
            raise BadInput(f"limit is {self.limit!r}", where=f"tool '{self.name}'", fix="Give at least 200 bytes.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The plain function, so that a decorated function can still be called from Python."""
        return self.function(*args, **kwargs)

    def spec(self) -> dict[str, Any]:
        """The tool as an OpenAI tool specification."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def validate(self, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
        """Check arguments as a model wrote them and give them as the function takes them.

        Values are checked strictly: the text "3" is no integer. A whole float (3.0) is taken for an integer, as in JSON
        schema, and an integer for a number. null counts as absent where the parameter's default is None.

        Args:
            arguments: JSON text, or an already parsed object. Empty text is an object without members.

        Returns:
            The given arguments by name, converted to the function's types; those left out are not filled in.

        Raises:
            BadInput: not JSON, not an object, an argument missing, unknown or of the wrong type: one line that names
                the argument and says what is wanted.
        """
        checker = self.arguments or arguments_of_schema(self.name, self.parameters)
        return checker.check(self.name, arguments)

    async def call(self, arguments: str | Mapping[str, Any]) -> ToolResult:
        """Validate, run and encode. Whatever the tool does, the answer is a `ToolResult`; only cancelling the awaiting
        task raises (`asyncio.CancelledError`, passed on at once).

        A plain function runs in a thread of its own. A thread cannot be stopped from outside: after `timeout` seconds
        it is abandoned, and what it does later still happens. An async function is cancelled; one that blocks the event
        loop cannot be timed out.
        """
        from .run import run

        started = time.perf_counter()
        try:
            values = self.validate(arguments)
        except BadInput as error:
            content, text = failure(error.what)
            return ToolResult(content, False, text, time.perf_counter() - started, False)
        try:
            content, truncated = await run(
                self.function, values, self._encoded, name=self.name, timeout=self.timeout, changes=self.changes
            )
        except Exception as error:  # whatever a tool raises is for the model to read
            content, text = failure(error)
            return ToolResult(content, False, text, time.perf_counter() - started, False)
        return ToolResult(content, True, None, time.perf_counter() - started, truncated)

    def _encoded(self, value: Any) -> tuple[str, bool]:
        try:
            return encode(value, self.limit)
        except ToolFailure as error:
            if not self.changes:
                raise
            # A plain error would be read as "it did not happen", and the call made again.
            raise ToolFailure(f"{self.name} was done, do not repeat it; but {error.what}") from None


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    destructive: bool = False,
    changes: bool = False,
    timeout: float = 20.0,
    limit: int = 16_000,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    destructive: bool = False,
    changes: bool = False,
    timeout: float = 20.0,
    limit: int = 16_000,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool from a function: schema from its type hints, words from its docstring (Google style).

    The description is the docstring's first paragraph; the lines under `Args:` describe the parameters.

        @tool
        def add(a: int, b: int) -> int:
            '''Add two numbers.'''
            return a + b

    Raises:
        BadInput: a parameter without type hint, `*args` or `**kwargs`, no docstring, a name that is not 1 to 64
            letters, digits, `_` or `-`.
    """

    def make(function: Callable[..., Any]) -> Tool:
        called = name_of(name or str(getattr(function, "__name__", "")))
        arguments = arguments_of(function)
        return Tool(
            called,
            description_of(inspect.getdoc(function), called),
            arguments.schema(),
            function,
            destructive,
            changes,
            timeout,
            limit,
            arguments,
        )

    return make if function is None else make(function)
