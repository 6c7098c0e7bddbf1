"""The engines of an agent, opened when they are first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from ..errors import BadInput
from ..models.embedded import LARGE, SMALL
from ..models.engine import Engine
from .steps import Where

STAND_IN = "stand-in"
"""As an agent's `large`: the embedded large model on the same kind of engine; beside a URL or an `Engine`, none."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine that is not open yet: `vllm`, `transformers` or a URL, and the model to serve."""

    kind: str
    model: str | None = None


def engine_spec(engine: str | Engine, model: str | None) -> EngineSpec | Engine:
    """What an agent's `engine` means."""
    if isinstance(engine, str):
        return EngineSpec(engine, model or (None if is_url(engine) else SMALL))
    if model is not None:
        raise BadInput("an Engine object has its model already", where="agent: model", fix="Leave `model` out")
    return engine


def large_spec(large: str | Engine | None, model: str | None, small: EngineSpec | Engine) -> EngineSpec | Engine | None:
    """What an agent's `large` means, beside its own engine."""
    if large is None or large == "none":
        return None
    if large == STAND_IN:
        if not isinstance(small, EngineSpec) or is_url(small.kind):
            return None
        return EngineSpec(small.kind, model or LARGE)
    if isinstance(large, str):
        return EngineSpec(large, model or (None if is_url(large) else LARGE))
    return large


def is_url(spec: str) -> bool:
    """Whether the engine is somebody else's server."""
    return spec.startswith(("http://", "https://"))


class EngineRoom:
    """An agent's engines in one event loop. What it opened it closes; an `Engine` object stays its owner's to close."""

    def __init__(
        self,
        small: EngineSpec | Engine,
        large: EngineSpec | Engine | None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._specs: dict[Where, EngineSpec | Engine | None] = {"small": small, "large": large}
        self._progress = progress
        self._open: dict[Where, Engine] = {}
        self._stack = AsyncExitStack()
        self._locks: dict[Where, asyncio.Lock] = {"small": asyncio.Lock(), "large": asyncio.Lock()}
        self._profiles: frozenset[str] | None = None

    @property
    def has_large(self) -> bool:
        """Whether there is a large engine, open or not."""
        return self._specs["large"] is not None

    async def get(self, which: Where) -> Engine:
        """The engine, opened at the first call.

        Raises:
            EngineUnavailable, NotFound, BadInput: it cannot be opened.
        """
        async with self._locks[which]:
            if which not in self._open:
                spec = self._specs[which]
                if spec is None:
                    raise BadInput("there is no large engine", where="agent: large")
                self._open[which] = await self._enter(spec) if isinstance(spec, EngineSpec) else spec
        return self._open[which]

    async def profiles(self, *, fresh: bool) -> frozenset[str]:
        """What the agent's own engine can serve; asked once, and again when `fresh`."""
        if self._profiles is None or fresh:
            self._profiles = frozenset(await (await self.get("small")).profiles())
        return self._profiles

    async def aclose(self) -> None:
        """Close what was opened here."""
        stack, self._stack = self._stack, AsyncExitStack()
        self._open.clear()
        self._profiles = None
        await stack.aclose()

    async def _enter(self, spec: EngineSpec) -> Engine:
        from ..models.engines import open_engine

        engine = open_engine(spec.kind, model=spec.model, progress=self._progress)
        return await self._stack.enter_async_context(engine)
