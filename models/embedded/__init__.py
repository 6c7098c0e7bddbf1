"""The models that travel with Trimtab, and everything they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...steering.store import ProfileStore

HERE = Path(__file__).parent
MODELS = HERE / "weights"
"""Folders of the embedded base models, in Hugging Face form."""
PROFILES = HERE / "profiles"
"""The profiles that ship with Trimtab."""
ROUTER = HERE / "router"
"""The trained request classifier."""
SMALL = "trimtab-nano"
LARGE = "trimtab-large"


def default_store() -> ProfileStore:
    """The profiles of this user, then those that ship with Trimtab."""
    from ...home import home
    from ...steering.store import ProfileStore

    return ProfileStore(home() / "profiles", PROFILES)
