"""A trained adapter becomes a profile in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import __version__
from ...steering.document import AdapterEntry, BaseEntry, Document
from ...steering.profile import save_profile
from ...steering.store import ProfileStore
from ..card import ModelCard


def adapter_profile(
    name: str, adapter: Path, base: ModelCard, card: dict[str, Any], store: ProfileStore, version: str = "1"
) -> Path:
    """Save a profile with nothing but an adapter; one of that name and version in the store's own root is replaced.

    Args:
        adapter: the PEFT folder; it is copied.
        card: what training says of it; becomes the profile's provenance.

    Returns:
        The profile's folder.
    """
    document = Document(
        format=1,
        name=name,
        version=version,
        description=f"LoRA adapter trained on {card['data'].get('family') or card['data'].get('file')}",
        base=BaseEntry(model=base.name, sha256=base.sha256),
        adapter=AdapterEntry(path="adapter", sha256=card["sha256"]),
        provenance={"method": "lora", "tool_version": __version__, **{k: v for k, v in card.items() if k != "sha256"}},
    )
    place = store.place(name, document.version)
    return save_profile(place, document, adapters={"adapter": adapter}, replace=True).directory
