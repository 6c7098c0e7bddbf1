"""Text files below one folder. Paths come from a model: every one is taken to be hostile."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import ToolFailure
from ...home import write_atomic
from ..tool import Tool, tool
from .database import near
from .numbers import short

LARGEST = 1_000_000  # bytes of a file, read or written
LONGEST_NAME = 200  # bytes: below the file system's 255, so that a temporary name beside it still fits
LONGEST_PATH = 1000
DEEPEST = 16
MOST = 1000  # names in one listing
SEPARATORS = re.compile(r"[/._-]+")
LOOKED_AT = 2000  # names at most, to find the file that a misspelled path means


def file_tools(root: Path) -> list[Tool]:
    """`list_files`, `read_file`, `write_file`, `delete_file`, all below `root`."""

    def list_files(folder: str = ".") -> dict[str, Any]:
        """List the files in a folder."""
        place = inside(root, folder)
        with _told("list", folder):
            if not place.exists() and place == root.resolve():
                return {"files": []}
            if not place.is_dir():
                raise ToolFailure(f"no folder named {short(folder)}")
            with os.scandir(place) as entries:
                # Not entry.is_dir(), which raises for a link that leads to itself.
                names = [entry.name + "/" * os.path.isdir(entry.path) for entry in entries if _shown(entry.name)]
        if len(names) > MOST:
            raise ToolFailure(f"{short(folder)} holds more than {MOST} files")
        return {"files": sorted(names)}

    def read_file(path: str) -> dict[str, Any]:
        """Read a text file."""
        place = inside(root, path)
        with _told("read", path):
            if not place.exists():
                raise _no_such(root, path)
            if not place.is_file():
                raise ToolFailure(f"{short(path)} is not a file")
            # Not following links (`inside` has), and not waiting: a pipe without a writer would wait for ever.
            handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ToolFailure(f"{short(path)} is larger than {LARGEST} bytes")
        try:
            return {"content": raw.decode()}
        except UnicodeDecodeError:
            raise ToolFailure(f"{short(path)} is not a text file") from None

    def write_file(path: str, content: str) -> dict[str, Any]:
        """Write text to a file."""
        place = inside(root, path)
        try:
            raw = content.encode()
        except UnicodeEncodeError:
            raise ToolFailure("the content holds half of a Unicode character") from None
        if len(raw) > LARGEST:
            raise ToolFailure(f"the content is larger than {LARGEST} bytes")
        with _told("write", path):
            if path.endswith("/") or place == root.resolve() or (place.exists() and not place.is_file()):
                raise ToolFailure(f"{short(path)} is not a file")
            write_atomic(place, raw)
        return {"written": path}

    def delete_file(path: str) -> dict[str, Any]:
        """Delete a file."""
        place = inside(root, path)
        with _told("delete", path):
            # A link is not followed: what it leads to has another name, and that one was not asked for.
            if path.endswith("/") or os.path.islink(root.resolve().joinpath(*_parts(path))):
                raise ToolFailure(f"{short(path)} is not a file")
            if not place.exists():
                raise _no_such(root, path)
            if not place.is_file():
                raise ToolFailure(f"{short(path)} is not a file")
            place.unlink()
        return {"deleted": path}

    return [tool(list_files), tool(read_file), tool(changes=True)(write_file), tool(destructive=True)(delete_file)]


def inside(root: Path, path: str) -> Path:
    """`path` below `root`, with every symbolic link followed, and still below `root`.

    No part may be `..` or begin with a dot: what is hidden (`.git`, `.ssh`, `.env`) is not for a model.

    Raises:
        ToolFailure: the path is absolute, leaves `root`, is hidden, too long or cannot be a path.
    """
    if "\0" in path or "\\" in path or not path.isprintable():
        raise ToolFailure(f"{short(path.replace(chr(0), '?'))} is not a path")
    if path.startswith(("/", "~")) or path[1:2] == ":":
        raise ToolFailure(f"{short(path)} must be relative, such as notes/plan.txt")
    parts = _parts(path)
    if ".." in parts:
        raise ToolFailure(f"{short(path)} leaves the folder")
    if any(part.startswith(".") for part in parts):
        raise ToolFailure(f"{short(path)} is hidden")
    if len(path) > LONGEST_PATH or len(parts) > DEEPEST or any(len(p.encode()) > LONGEST_NAME for p in parts):
        raise ToolFailure(f"{short(path)} is too long")
    base = root.resolve()
    try:
        place = base.joinpath(*parts).resolve()
    except (OSError, RuntimeError):  # a loop of symbolic links, a folder that may not be read
        raise ToolFailure(f"cannot reach {short(path)}") from None
    # Nothing here makes links, so none can appear between this check and the use of the path by a tool's doing.
    if not place.is_relative_to(base):
        raise ToolFailure(f"{short(path)} leaves the folder")
    return place


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _no_such(root: Path, path: str) -> ToolFailure:
    """The error for a file that is not there; it names one that is near, if there is one."""
    known = {SEPARATORS.sub(" ", one): one for one in _known(root)} if len(path) <= LONGEST_NAME else {}
    # Compared part by part: with one ending and one folder, a.txt and b.txt would look much the same as a whole.
    right = near(SEPARATORS.sub(" ", path), known)
    return ToolFailure(
        f"no file named {path}; did you mean {known[right]}?" if right else f"no file named {short(path)}"
    )


def _known(root: Path) -> Iterator[str]:
    """The paths of the files below `root`, folder by folder; no link is followed, nothing hidden named."""
    base, left = root.resolve(), LOOKED_AT
    folders = deque([""])
    while folders:
        folder = folders.popleft()
        try:
            with os.scandir(base / folder) as entries:
                found = sorted(islice((e for e in entries if _shown(e.name)), left), key=lambda e: e.name)
        except OSError:  # a folder that may not be read, or has just gone
            continue
        left -= len(found)
        for entry in found:
            path = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False) and path.count("/") < DEEPEST:
                folders.append(f"{path}/")
            elif entry.is_file(follow_symlinks=False) and len(path) <= LONGEST_NAME:
                yield path


@contextmanager
def _told(doing: str, path: str) -> Iterator[None]:
    """What the system refuses, in words that name the model's path and not the machine's."""
    try:
        yield
    except OSError as error:
        raise ToolFailure(f"cannot {doing} {short(path)}: {error.strerror}") from None


def _shown(name: str) -> bool:
    return not name.startswith(".") and name.isprintable()
