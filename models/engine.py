"""The one protocol behind which every model runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from .chat import ChatRequest, Delta, Reply


@runtime_checkable
class Engine(Protocol):
    """Where a model runs.

    Cancelling the task that awaits `chat`, or closing the iterator of `stream`, cancels the work on the engine.

    Attributes:
        name: `vllm`, `transformers` or `openai`, as it appears in receipts and journals.
        model: the base model's id.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer one request.

        Raises:
            NotFound: the profile or model is unknown.
            EngineUnavailable: the engine cannot be reached or went away.
            EngineRefused: the engine refused the request, or cannot constrain its calls.
            BadInput: the request does not hold together, or the engine cannot apply it.
        """
        ...

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Answer one request in pieces; the last piece carries the whole reply. Raises as `chat` does."""
        ...

    async def profiles(self) -> list[str]:
        """Names under which requests can be made, the base model excluded."""
        ...

    async def aclose(self) -> None:
        """Give back what the engine holds; it answers nothing afterwards."""
        ...
