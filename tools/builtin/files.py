"""Text files below one folder. Paths come from a model: every one is taken to be hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ToolFailure
from ...home import write_atomic
from ..tool import Tool, tool
from .numbers import short

LARGEST = 1_000_000  # bytes of a file, read or written
LONGEST_NAME = 200  # bytes: below the file system's 255, so that a temporary name beside it still fits
LONGEST_PATH = 1000
DEEPEST = 16
MOST = 1000  # names in one listing


def file_tools(root: Path) -> list[Tool]:
    """`list_files`, `read_file`, `write_file`, all below `root`."""

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
                raise ToolFailure(f"no file named {short(path)}")
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

    return [tool(list_files), tool(read_file), tool(write_file)]


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
    parts = [part for part in path.split("/") if part not in ("", ".")]
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


@contextmanager
def _told(doing: str, path: str) -> Iterator[None]:
    """What the system refuses, in words that name the model's path and not the machine's."""
    try:
        yield
    except OSError as error:
        raise ToolFailure(f"cannot {doing} {short(path)}: {error.strerror}") from None


def _shown(name: str) -> bool:
    return not name.startswith(".") and name.isprintable()
