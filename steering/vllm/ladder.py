"""Profiles at other strengths than their own, made live on demand: the least recently used give way.

Each such rung takes rows of the bank and, where the profile has weight deltas, an adapter. They are served as long as
there is room, and given up only while no request runs under them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

from ...errors import LimitExceeded
from ...home import home
from .served import LiveProfile

MOST_RUNGS = 64
"""Strengths kept live at most, of all profiles together."""

Make = Callable[[], Awaitable[LiveProfile]]
GiveUp = Callable[[LiveProfile], Awaitable[None]]


class Ladder:
    """The rungs of all profiles, least recently used first."""

    def __init__(self, limit: int = MOST_RUNGS) -> None:
        self.limit = limit
        self._rungs: OrderedDict[tuple[str, float], LiveProfile] = OrderedDict()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def scratch(self) -> Path:
        """The folder for the rungs' adapters. It goes with this process, and takes along those of killed ones."""
        if self._scratch is None:
            import psutil

            cache = home() / "cache"
            cache.mkdir(parents=True, exist_ok=True)
            for old in cache.glob("strengths-*-*"):
                if not psutil.pid_exists(int(old.name.split("-")[1])):
                    shutil.rmtree(old, ignore_errors=True)
            self._scratch = tempfile.TemporaryDirectory(prefix=f"strengths-{os.getpid()}-", dir=cache)
        return Path(self._scratch.name)

    def get(self, own_sha256: str, strength: float) -> LiveProfile | None:
        """A rung that is live, now the most recently used; None when it is not."""
        rung = self._rungs.get((own_sha256, strength))
        if rung is None or rung.closing:
            return None
        self._rungs.move_to_end((own_sha256, strength))
        return rung

    def add(self, rung: LiveProfile) -> None:
        """Keep a rung."""
        self._rungs[rung.own_sha256, rung.strength] = rung

    def of(self, own_sha256: str) -> list[LiveProfile]:
        """The rungs of a profile."""
        return [rung for rung in self._rungs.values() if rung.own_sha256 == own_sha256]

    def remove(self, rung: LiveProfile) -> None:
        """Forget a rung."""
        del self._rungs[rung.own_sha256, rung.strength]

    async def with_room(self, make: Make, give_up: GiveUp, *, counts: bool = False) -> LiveProfile:
        """Make something live, giving up rungs that nobody uses as long as there is no room for it.

        Args:
            make: raises LimitExceeded where there is no room.
            give_up: takes a rung out of the engine.
            counts: whether it will be a rung itself.

        Raises:
            LimitExceeded: there is no room, and every rung is in use.
        """
        while True:
            try:
                if counts and len(self._rungs) >= self.limit:
                    raise LimitExceeded(
                        f"{self.limit} strengths are live, and requests run under all of them",
                        where="strength",
                        fix="Try again later",
                    )
                return await make()
            except LimitExceeded:
                idle = next((r for r in self._rungs.values() if not r.in_flight and not r.closing), None)
                if idle is None:
                    raise
                self.remove(idle)
                await give_up(idle)
