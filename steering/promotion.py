"""Which version a profile's bare name stands for: the newest, or the one that was promoted.

A store's first root keeps one small JSON file a name, `.promoted/<name>.json`, with the promoted versions in order;
the last is in use, and `rollback` goes back to the one before: from the first to none, when the newest version is in
use again. A new version that is saved changes nothing for those who ask by name until it is promoted, as long as a
promoted one is in use.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import BadInput
from ..home import write_atomic
from .files import first_problem, read_text

FOLDER = ".promoted"
KEPT = 100
"""Promotions that are remembered."""


class Promotions(BaseModel):
    """The promoted versions of a name, the one in use last; `forgotten` says that there were more before these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    versions: tuple[str, ...]
    forgotten: bool = False


def promoted(root: Path, name: str) -> tuple[str, ...]:
    """The promoted versions of a name, the one in use last; empty where the newest version is in use.

    Raises:
        BadInput: the record cannot be read.
    """
    return _read(root, name).versions


def _read(root: Path, name: str) -> Promotions:
    file = root / FOLDER / f"{name}.json"
    if not file.is_file():
        return Promotions(versions=())
    try:
        return Promotions.model_validate_json(read_text(file))
    except ValidationError as error:
        raise BadInput(first_problem(error), where=str(file), fix="Delete it and promote again") from None


def promote(root: Path, name: str, version: str) -> tuple[str, ...]:
    """Let a name stand for this version; returns the promoted versions. Nothing changes if it does already."""
    with _held(root):
        before = _read(root, name)
        if before.versions[-1:] == (version,):
            return before.versions
        versions = (*before.versions, version)
        return _write(
            root, name, Promotions(versions=versions[-KEPT:], forgotten=before.forgotten or len(versions) > KEPT)
        )


def rollback(root: Path, name: str) -> tuple[str, ...]:
    """Let a name stand for what it stood for before its last promotion; returns the promoted versions, none of them
    where that was the newest version.

    Raises:
        BadInput: there is nothing to go back to.
    """
    with _held(root):
        before = _read(root, name)
        if not before.versions or (before.forgotten and len(before.versions) == 1):
            had = f"no version of {name} is promoted"
            if before.versions:
                had = f"what was promoted before {name}@{before.versions[0]} is forgotten"
            raise BadInput(had, where="rollback", fix="Promote the version that you want: `trimtab profiles promote`")
        return _write(root, name, before.model_copy(update={"versions": before.versions[:-1]}))


def _write(root: Path, name: str, record: Promotions) -> tuple[str, ...]:
    write_atomic(root / FOLDER / f"{name}.json", record.model_dump_json(indent=2) + "\n")
    return record.versions


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """Only one process at a time reads and writes the records."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
