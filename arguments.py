"""What commands share in reading their arguments: numbers, for argparse's `type`, and files to draw."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def need_png(file: Path | None, option: str, what: str = "picture") -> None:
    """Refuse a file that is not named as a PNG, before any work is done for it.

    Raises:
        BadInput: it is not.
    """
    if file is not None and file.suffix.lower() != ".png":
        from .errors import BadInput

        raise BadInput(f"the {what} is drawn as PNG", where=f"{option} {file}", fix="Name a .png file")
