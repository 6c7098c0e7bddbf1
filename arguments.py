"""What commands share in reading their arguments: numbers, for argparse's `type`, and places to write to."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

LONGEST_NAME = 240
"""Bytes of a file's name: while it is written it has a longer one, and 255 is the most."""


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def need_png(file: Path | None, option: str, what: str = "picture") -> None:
    """Refuse a file that is not named as a PNG or cannot be written, before any work is done for it.

    Raises:
        BadInput: it is not, or cannot.
    """
    if file is not None and file.suffix.lower() != ".png":
        from .errors import BadInput

        raise BadInput(f"the {what} is drawn as PNG", where=f"{option} {file}", fix="Name a .png file")
    need_place(file, option)


def need_place(path: Path | None, option: str, *, folder: bool = False) -> None:
    """Refuse a file, or a folder to put files into, that could not be written later on.

    Raises:
        BadInput: something else is there or on the way, or may not be written to. Nothing is made to find out.
    """
    if path is None:
        return
    wrong = _against(path, folder)
    if wrong is not None:
        from .errors import BadInput

        raise BadInput(wrong, where=f"{option} {path}", fix="Name another place")


def _against(path: Path, folder: bool) -> str | None:
    """Why a file or folder cannot be written, or None."""
    if str(path).startswith("~"):
        return "`~` was not replaced by a user's folder"
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        return "the name is too long"
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    if not folder and path.is_dir():
        return "is a folder, not a file"
    # A file is first written beside its place: what counts is the folder.
    start = path.absolute() if folder else path.absolute().parent
    above = next(place for place in (start, *start.parents) if os.path.lexists(place))
    if not above.is_dir():
        return f"{above} is no folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"{above} cannot be written to"
