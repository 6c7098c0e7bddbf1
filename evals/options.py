"""What these commands ask of their options beyond `arguments.py`, before an engine starts."""

from __future__ import annotations

import argparse
import os
from urllib.parse import urlsplit

from ..arguments import positive
from ..errors import BadInput

MOST = 1_000_000
"""Of anything that is counted."""


def count(text: str) -> int:
    """A whole number from 1 to `MOST`."""
    return _few(positive(text))


def count_or_none(text: str) -> int:
    """A whole number from 0 to `MOST`."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return _few(value)


def _few(value: int) -> int:
    if value > MOST:
        raise argparse.ArgumentTypeError(f"{value} is more than {MOST}")
    return value


def threads(text: str) -> int:
    """A number of CPU threads: as many as there are processors at most."""
    value, most = positive(text), os.cpu_count() or MOST
    if value > most:
        raise argparse.ArgumentTypeError(f"{text} is more than the {most} processors here")
    return value


def need_url(text: str, option: str) -> None:
    """Refuse what is no http(s) URL of a server.

    Raises:
        BadInput: it is none.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # `port` raises ValueError, too
    except ValueError:
        good = False
    if not good:
        raise BadInput(f"{text!r} is no http(s) URL", where=option, fix="Such as http://127.0.0.1:8000")
