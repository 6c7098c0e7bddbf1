"""Trimtab: agents on small, steered, proven language models.

    from trimtab import Agent, tool

The names below are looked up when they are first used, so `import trimtab` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent import Agent, Limits, Result, Step
    from .errors import BadInput, EngineError, LimitExceeded, NotFound, TrimtabError, Unknown
    from .models.engines import open_engine
    from .steering.profile import Profile, load_profile
    from .steering.store import ProfileStore
    from .tools import Tool, Toolset, tool

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "BadInput",
    "EngineError",
    "LimitExceeded",
    "Limits",
    "NotFound",
    "Profile",
    "ProfileStore",
    "Result",
    "Step",
    "Tool",
    "Toolset",
    "TrimtabError",
    "Unknown",
    "__version__",
    "load_profile",
    "open_engine",
    "tool",
]

_HOMES = {
    "Agent": "agent",
    "Limits": "agent",
    "Result": "agent",
    "Step": "agent",
    "BadInput": "errors",
    "EngineError": "errors",
    "LimitExceeded": "errors",
    "NotFound": "errors",
    "TrimtabError": "errors",
    "Unknown": "errors",
    "open_engine": "models.engines",
    "Profile": "steering.profile",
    "load_profile": "steering.profile",
    "ProfileStore": "steering.store",
    "Tool": "tools",
    "Toolset": "tools",
    "tool": "tools",
}


def __getattr__(name: str) -> Any:
    """Look a public name up in the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
