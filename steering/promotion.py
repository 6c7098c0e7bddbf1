"""Which version a profile's bare name stands for: the newest, or the one that was promoted.

A store's first root keeps one small JSON file a name, `.promoted/<name>.json`, with the promoted versions in order;
the last is in use, and `rollback` goes back to the one before. A new version that is saved changes nothing for those
who ask by name until it is promoted, once a name has been promoted at all.
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
    """The promoted versions of a name, the one in use last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    versions: tuple[str, ...]


def promoted(root: Path, name: str) -> tuple[str, ...]:
    """The promoted versions of a name, the one in use last; empty where none ever was.

    Raises:
        BadInput: the record cannot be read.
    """
    file = root / FOLDER / f"{name}.json"
    if not file.is_file():
        return ()
    try:
        return Promotions.model_validate_json(read_text(file)).versions
    except ValidationError as error:
        raise BadInput(first_problem(error), where=str(file), fix="Delete it and promote again") from None


def promote(root: Path, name: str, version: str) -> tuple[str, ...]:
    """Let a name stand for this version; returns the promoted versions. Nothing changes if it does already."""
    with _held(root):
        before = promoted(root, name)
        if before[-1:] == (version,):
            return before
        return _write(root, name, (*before, version)[-KEPT:])


def rollback(root: Path, name: str) -> tuple[str, ...]:
    """Let a name stand for what it stood for before its last promotion; returns the promoted versions.

    Raises:
        BadInput: there is nothing to go back to.
    """
    with _held(root):
        before = promoted(root, name)
        if len(before) < 2:
            had = f"only {name}@{before[0]} was ever promoted" if before else f"no version of {name} was ever promoted"
            raise BadInput(had, where="rollback", fix="Promote the version that you want: `trimtab profiles promote`")
        return _write(root, name, before[:-1])


def _write(root: Path, name: str, versions: tuple[str, ...]) -> tuple[str, ...]:
    write_atomic(root / FOLDER / f"{name}.json", Promotions(versions=versions).model_dump_json(indent=2) + "\n")
    return versions


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """Only one process at a time reads and writes the records."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
