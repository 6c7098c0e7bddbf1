"""A trained adapter becomes a profile in the store."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ... import __version__
from ...arguments import need_place
from ...errors import BadInput
from ...steering.document import AdapterEntry, BaseEntry, Document, document_of
from ...steering.profile import check_free, save_profile
from ...steering.store import ProfileStore
from ..card import ModelCard


def profile_place(name: str, version: str, base: ModelCard, store: ProfileStore, *, replace: bool = False) -> Path:
    """Where `adapter_profile` will save, found out before the work that leads there.

    Args:
        replace: whether a profile of that name and version in the store's own root may be replaced.

    Raises:
        BadInput: no profile can have that name or version, the place is taken, or nothing can be written there.
    """
    document_of({"format": 1, "name": name, "version": version, "base": {"model": base.name, "sha256": base.sha256}})
    place = store.place(name, version)
    try:
        check_free(place, replace=replace)
    except BadInput as error:
        if replace:
            raise
        raise BadInput(error.what, where=error.where, fix="Give another --version, or --replace") from None
    need_place(place.parent, "--store", folder=True)
    return place


def adapter_profile(
    name: str,
    adapter: Path,
    base: ModelCard,
    card: dict[str, Any],
    place: Path,
    version: str = "1",
    *,
    replace: bool = False,
) -> Path:
    """Save a profile with nothing but an adapter.

    Args:
        adapter: the PEFT folder; it is copied.
        card: what training says of it; becomes the profile's provenance.
        place: the profile's folder (`profile_place`).
        replace: whether a profile that is there may be replaced.

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
    return save_profile(place, document, adapters={"adapter": adapter}, replace=replace).directory


@contextmanager
def passing_folder() -> Iterator[Path]:
    """A folder for an adapter on its way into a profile. It goes in the end; where the adapter is whole and could not
    be saved it stays, and is told."""
    folder = Path(tempfile.mkdtemp(prefix="trimtab-adapter-"))
    try:
        yield folder
    except BaseException:
        if (folder / "card.json").exists():  # which is written last
            print(
                f"the trained adapter is kept in {folder}; `trimtab profiles make --adapter {folder}` saves it",
                file=sys.stderr,
                flush=True,
            )
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
