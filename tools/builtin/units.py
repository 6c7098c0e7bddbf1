"""Units by the words people use, through pint."""

from __future__ import annotations

import difflib
import functools
import re
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .numbers import finite, short, tidy

LONGEST = 40  # characters of a unit

# Everyday words that pint does not know, or knows as something else ("c" is its speed of light, "h" Planck's constant).
ALIASES = {
    "c": "degC", "°c": "degC", "℃": "degC", "celsius": "degC", "centigrade": "degC", "degrees celsius": "degC",
    "degree c": "degC", "degree f": "degF",
    "degree celsius": "degC", "degrees centigrade": "degC", "degrees c": "degC", "deg c": "degC",
    "f": "degF", "°f": "degF", "℉": "degF", "fahrenheit": "degF", "degrees fahrenheit": "degF",
    "degree fahrenheit": "degF", "degrees f": "degF", "deg f": "degF",
    "k": "kelvin", "°k": "kelvin", "degrees kelvin": "kelvin",
    "g": "gram", "gm": "gram", "gms": "gram", "kilo": "kilogram", "kilos": "kilogram", "kgs": "kilogram",
    "t": "metric_ton", "tonne": "metric_ton", "tonnes": "metric_ton",
    "imperial ton": "long_ton", "us ton": "short_ton",
    "st": "stone", "lbs": "pound", "ozs": "ounce",
    "m": "metre", "kms": "kilometre", "\"": "inch", "'": "foot", "ft.": "foot", "in.": "inch",
    "sq m": "metre**2", "sqm": "metre**2", "sq km": "kilometre**2", "sq ft": "foot**2", "sqft": "foot**2",
    "sq in": "inch**2", "sq yd": "yard**2", "sq mi": "mile**2", "sq miles": "mile**2", "cc": "centimetre**3",
    "acre": "international_acre", "acres": "international_acre", "ac": "international_acre",
    "fl oz": "fluid_ounce", "pts": "pint", "gals": "gallon", "qts": "quart", "teacup": "cup", "teacups": "cup",
    "mph": "mile/hour", "kph": "kilometre/hour", "kmh": "kilometre/hour", "kmph": "kilometre/hour",
    "mps": "metre/second", "fps": "foot/second", "kn": "knot", "kt": "knot", "kts": "knot",
    "s": "second", "sec": "second", "secs": "second", "min": "minute", "mins": "minute", "h": "hour", "hr": "hour",
    "hrs": "hour", "d": "day", "wk": "week", "wks": "week", "mo": "month", "yr": "year", "yrs": "year",
    "b": "byte", "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte", "pb": "petabyte",
    "kib": "kibibyte", "mib": "mebibyte", "gib": "gibibyte", "tib": "tebibyte",
    "mbit": "megabit", "gbit": "gigabit", "kbit": "kilobit", "mbps": "megabit/second", "gbps": "gigabit/second",
    "cal": "calorie", "cals": "calorie", "kcals": "kilocalorie", "kj": "kilojoule", "j": "joule",
    "kwh": "kilowatt_hour", "w": "watt", "kw": "kilowatt", "mw": "megawatt", "hp": "horsepower",
    "pa": "pascal", "hpa": "hectopascal", "kpa": "kilopascal", "mmhg": "mmHg", "n": "newton", "hz": "hertz",
    "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "newton metre": "newton*metre",
    "newton metres": "newton*metre", "kbps": "kilobit/second",
    "amp": "ampere", "amps": "ampere",  # pint reads attometres per second
    "mpg": "mile/gallon",
}  # fmt: skip

CASED = {
    "mW": "milliwatt", "mHz": "millihertz", "Mb": "megabit", "Gb": "gigabit", "Tb": "terabit",
    "kBps": "kilobyte/second", "KBps": "kilobyte/second", "MBps": "megabyte/second", "GBps": "gigabyte/second",
}  # fmt: skip
"""Symbols whose lower case, above, is another unit: a thousandth or a million, a bit or a byte."""

USUAL = (
    *("kilometres metres centimetres millimetres kilometers meters centimeters miles yards feet inches".split()),
    *("kilograms grams tonnes pounds ounces stone litres millilitres liters gallons pints quarts cups".split()),
    *("tablespoons teaspoons milligrams carats furlongs fathoms decimetres hectometres hectolitres".split()),
    *("celsius fahrenheit kelvin hours minutes seconds days weeks months years knots acres hectares".split()),
    *("bytes kilobytes megabytes gigabytes terabytes joules kilojoules calories watts kilowatts".split()),
    *("square metres", "square feet", "square kilometres", "square miles", "cubic metres", "nautical miles"),
    *("metres per second", "kilometres per hour", "miles per hour", "fluid ounces"),
)
"""The units that a misspelt one may stand for."""


def unit_tools() -> list[Tool]:
    """`convert_units`."""

    def convert_units(value: float, from_unit: str, to_unit: str) -> dict[str, Any]:
        """Convert a value between units."""
        return {"value": tidy(convert(value, from_unit, to_unit)), "unit": to_unit}

    return [tool(convert_units)]


def convert(value: float, from_unit: str, to_unit: str) -> float:
    """`value` in `to_unit`.

    Volumes are the United States' unless they say "imperial"; a kilobyte has 1000 bytes; a month is a twelfth of a
    year of 365.25 days; pounds and ounces are masses.

    Raises:
        ToolFailure: an unknown unit, two units of different kinds, a value that is no ordinary number.
    """
    if not finite(value):
        raise ToolFailure("the value is too large")
    source, target = unit(from_unit), unit(to_unit)
    try:
        found = float(_registry().Quantity(float(value), source).to(target).magnitude)
    except Exception:  # pint's DimensionalityError, OffsetUnitCalculusError; ZeroDivisionError, OverflowError
        raise ToolFailure(f"cannot convert {short(from_unit)} to {short(to_unit)}") from None
    if not finite(found):
        raise ToolFailure("the value is too large")
    return found


@functools.cache
def _registry() -> Any:
    """pint's registry, built once, when first needed: it takes a few tenths of a second."""
    import pint

    registry = pint.UnitRegistry(cache_folder=None)
    # pint's acre is in survey feet, which the United States gave up in 2022; everybody else's never was.
    registry.define("international_acre = 43560 * foot ** 2")
    return registry


@functools.lru_cache(maxsize=1024)
def unit(text: str) -> Any:
    """The pint unit a person means. Raises `ToolFailure` if there is none."""
    words = " ".join(text.replace("_", " ").split())
    if words and len(words) <= LONGEST:
        for name in (words, words.lower()):
            try:
                # A name as written goes before its lower case: "kWh" is one that pint knows, "kwh" is none.
                return _registry().Unit(_expression(name))
            except Exception:  # pint raises a dozen kinds for text that is no unit
                continue
    fits = len(text) <= LONGEST and text.isprintable()  # it is repeated as it is
    near = difflib.get_close_matches(words.lower(), USUAL, n=1, cutoff=0.8) if fits else []
    if near:
        raise ToolFailure(f"unknown unit {text}; did you mean {near[0]}?")
    raise ToolFailure(f"unknown unit {short(text)}")


def _expression(words: str) -> str:
    """Words as an expression pint reads: "square metres" is metre**2, "miles per hour" mile/hour."""
    if words in CASED:
        return CASED[words]
    if words.lower() in ALIASES:
        return ALIASES[words.lower()]
    halves = re.split(r"\s*/\s*|\s+(?:per|an|a)\s+", words)
    if len(halves) == 2:
        return f"({_expression(halves[0])})/({_expression(halves[1])})"
    match = re.fullmatch(r"(square|sq|cubic|cu)\.?\s+(.+)", words, re.IGNORECASE)
    if match:
        return f"({_expression(match[2])})**{2 if match[1].lower().startswith('s') else 3}"
    match = re.fullmatch(r"(.+?)\s*(?:\^|\*\*)?\s*([23²³]|squared|cubed)", words)
    if match:
        return f"({_expression(match[1])})**{2 if match[2] in ('2', '²', 'squared') else 3}"
    words = re.sub(r"^(uk|british|imperial)\s+", "imperial ", re.sub(r"^us\s+", "", words, flags=re.I), flags=re.I)
    if not re.fullmatch(r"[^\W\d]+(?:[ -][^\W\d]+){0,3}", words):
        raise ToolFailure(f"unknown unit {short(words)}")
    name = re.sub(r"grammes?\b", "gram", re.sub(r"[ -]", "_", words))
    return ALIASES.get(name.lower(), name)
