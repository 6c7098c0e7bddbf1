"""A profile that a server serves, and how its requests are told apart."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..profile import Profile
from ..scope import prompt_end_reach

SALT_PREFIX = "trimtab:"
"""How the salts of steered requests begin; a client's own salt may not."""


@dataclass
class ServedAdapter:
    """A merged adapter inside vLLM, shared by the profiles with the same weights.

    Attributes:
        scratch: its folder, where nobody needs that once the adapter is given up; else None.
    """

    name: str
    sha256: str
    scratch: Path | None = None
    users: int = 0


@dataclass(eq=False)
class LiveProfile:
    """A profile requests can name.

    Attributes:
        profile: as loaded; at another strength than 1, as `at_strength` makes it.
        adapter: what vLLM serves for its weights, or None.
        own_sha256: the profile's identity, whatever the strength.
        strength: what its steering is multiplied by.
        loaded: when it went live, seconds since the epoch.
        in_flight: requests that run under it now.
    """

    profile: Profile
    adapter: ServedAdapter | None
    own_sha256: str
    strength: float = 1.0
    loaded: float = field(default_factory=time.time)
    in_flight: int = 0
    closing: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def scoped(self) -> int:
        """0 where every token is treated alike. Else, 1 more than the number of tokens at the prompt's end whose
        treatment depends on where it ends."""
        return prompt_end_reach(
            (part.scope for part in self.profile.interventions),
            held=self.profile.gate is not None and self.profile.gate.hold,
        )

    def enter(self) -> None:
        """A request starts."""
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        """A request ended."""
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    def cache_salt(self, given: str | None) -> str:
        """The salt of the prefix cache: this profile's own, kept apart by the client's salt where there is one."""
        mixed = hashlib.sha256(f"{self.profile.sha256}\n{given or ''}".encode()).hexdigest()
        return f"{SALT_PREFIX}{mixed}"

    def describe(self) -> dict[str, Any]:
        """The profile as JSON-ready fields."""
        p = self.profile
        return {
            "id": p.id,
            "name": p.name,
            "version": p.version,
            "description": p.description,
            "sha256": p.sha256,
            "adapter_sha256": self.adapter.sha256 if self.adapter else None,
            "layers": list(p.layers),
            "decoding": p.decoding.model_dump(exclude_none=True),
            "in_flight": self.in_flight,
        }
