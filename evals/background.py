"""An engine that comes up in the background: it can be used at once, and its first request waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..models.chat import ChatRequest, Delta, Reply
from ..models.engine import Engine
from .arms import Side, open_side


class ComingEngine:
    """Stands for an engine that is not up yet. Every request raises what kept it from coming up, if anything did."""

    def __init__(self, name: str, model: str, coming: asyncio.Future[Engine]) -> None:
        self.name, self.model, self._coming = name, model, coming

    @property
    def up(self) -> bool:
        """Whether requests would not have to wait."""
        return self._coming.done()

    async def ready(self) -> Engine:
        """The engine itself, as soon as it is up."""
        # One waiter that is cancelled must not cancel the engine for the others.
        return await asyncio.shield(self._coming)

    async def chat(self, request: ChatRequest) -> Reply:
        """See `Engine.chat`."""
        return await (await self.ready()).chat(request)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """See `Engine.stream`."""
        async for piece in (await self.ready()).stream(request):
            yield piece

    async def profiles(self) -> list[str]:
        """See `Engine.profiles`."""
        return await (await self.ready()).profiles()

    async def aclose(self) -> None:
        """Nothing: the block that started it closes it."""


@asynccontextmanager
async def in_background(
    chosen: Side, model: str, progress: Callable[[str], None] | None = None
) -> AsyncIterator[ComingEngine]:
    """Start a side's engine now and go on without waiting; at the end of the block it is stopped, up or not.

    Args:
        model: the id it will have.
    """
    coming: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def keep() -> None:
        try:
            async with open_side(chosen, progress) as engine:
                coming.set_result(engine)
                await over.wait()
        except Exception as error:
            if coming.done():
                raise
            coming.set_exception(error)

    keeper = asyncio.create_task(keep())
    try:
        yield ComingEngine(chosen.engine, model, coming)
    finally:
        over.set()
        if not coming.done():
            keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        if not coming.done():
            coming.cancel()
        elif not coming.cancelled():
            coming.exception()  # seen: it was told to those who asked, and nobody else wants to hear of it
