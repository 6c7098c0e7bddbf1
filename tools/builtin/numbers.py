"""How the built-in tools write a number."""

from __future__ import annotations

import math

LARGEST = 1e100


def tidy(value: int | float) -> int | float:
    """Rounded to 4 decimals, and an integer where nothing stands behind the point: 143.0 is 143.

    A number too small for 4 decimals keeps 4 significant digits instead: it is not zero, and must not read so.
    """
    if isinstance(value, int):
        return value
    rounded = round(value, 4)
    if rounded == 0 and value != 0:
        return float(f"{value:.3e}")
    return int(rounded) if rounded.is_integer() else rounded


def finite(value: int | float) -> bool:
    """True for a number of ordinary size: finite, and at most `LARGEST` away from 0."""
    return -LARGEST <= value <= LARGEST and not math.isnan(value)


def short(text: str) -> str:
    """What was asked for, in the quotes of an error message, cut short."""
    text = " ".join(str(text).split())
    return f"'{text if len(text) <= 60 else text[:57] + '...'}'"
