"""The family `calc`: arithmetic, and units of measurement."""

from __future__ import annotations

import random
from typing import Any

from ..words import integer, number
from .common import Facts, Intent, Recorder, Script, Slots, with_error

UNITS: tuple[tuple[str, ...], ...] = (
    (
        "miles",
        "kilometres",
        "metres",
        "feet",
        "inches",
        "yards",
        "centimetres",
        "km",
        "cm",
        "millimetres",
        "kilometers",
    ),
    ("pounds", "kilograms", "grams", "ounces", "kg", "stone", "tonnes"),
    ("litres", "gallons", "pints", "cups", "millilitres", "quarts", "liters"),
    ("celsius", "fahrenheit", "kelvin"),
    ("hours", "minutes", "seconds", "days", "weeks"),
    ("mph", "km/h", "knots"),
    ("acres", "hectares", "square metres", "square feet"),
    ("kilobytes", "megabytes", "gigabytes"),
)
READABLE = {
    "yards": ("metres", "feet"),
    "nautical miles": ("kilometres", "miles"),
    "stone": ("kilograms", "pounds"),
    "tonnes": ("kilograms", "pounds"),
    "pints": ("litres", "gallons"),
    "quarts": ("litres", "gallons"),
    "kelvin": ("celsius", "fahrenheit"),
    "millimetres": ("centimetres", "inches"),
}
"""A unit that few people think in -> the metric and the imperial one that says it better (`answers.METRIC`)."""


def _units(rng: random.Random) -> Slots:
    first, second = rng.sample(rng.choice(UNITS), 2)
    return {"value": number(rng), "from_unit": first, "to_unit": second}


def _numbers(rng: random.Random) -> Slots:
    return {"a": number(rng), "b": number(rng)}


def _division(rng: random.Random) -> Slots:
    b = integer(rng) % 999 + 1
    return {"a": b * rng.randint(2, 200), "b": b} if rng.random() < 0.6 else {"a": integer(rng), "b": b}


def _expression(rng: random.Random) -> Slots:
    a, b, c, d = (rng.randint(1, 999) for _ in range(4))
    op, other = rng.choice("+-*/"), rng.choice("+-*")
    forms = (
        f"({a} {other} {b}) {op} {c}",
        f"{a} {op} {b} {other} {c}",
        f"{a} * ({b} + {c}) - {d}",
        f"{a}*{b}{other}{c}",
    )
    return {"expression": rng.choice(forms)}


def _sum_units(rng: random.Random) -> Slots:
    first, second = rng.sample(rng.choice((UNITS[0], UNITS[1], UNITS[2], UNITS[4])), 2)
    return {"a": number(rng), "u1": first, "b": number(rng), "u2": second}


def _laps(rng: random.Random) -> Slots:
    return {**_sum_units(rng), "a": rng.randint(2, 60)}


def _said(short: str, english: str, german: str, needle: Any) -> Facts:
    return Facts(short, english, short, german, (str(needle),))


def _calculated(expression: str) -> Script:
    """A calculation: the expression with slots."""

    def script(s: Slots, r: Recorder) -> Facts:
        text = expression.format(**s)
        return with_error(
            r.one("calculate", expression=text),
            lambda x: _said(str(x["result"]), f"{text} is {x['result']}", f"{text} ist {x['result']}", x["result"]),
        )

    return script


def _converted(value: Any, unit: str, result: dict[str, Any]) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        short = f"{x['value']} {x['unit']}"
        return _said(short, f"{value} {unit} is {short}", f"{value} {unit} sind {short}", x["value"])

    return with_error(result, facts)


def _convert(s: Slots, r: Recorder) -> Facts:
    result = r.one("convert_units", value=s["value"], from_unit=s["from_unit"], to_unit=s["to_unit"])
    return _converted(s["value"], s["from_unit"], result)


def _readable(s: Slots, r: Recorder) -> Facts:
    target = READABLE[s["from_unit"]][0 if s["metric"] else 1]
    result = r.one("convert_units", value=s["value"], from_unit=s["from_unit"], to_unit=target)
    return _converted(s["value"], s["from_unit"], result)


def _convert_then_add(s: Slots, r: Recorder) -> Facts:
    first = r.one("convert_units", value=s["a"], from_unit=s["u1"], to_unit=s["u2"])
    if "error" in first:
        return with_error(first, lambda _: _said("", "", "", ""))
    total = r.one("calculate", expression=f"{first['value']} + {s['b']}")

    def facts(x: dict[str, Any]) -> Facts:
        short = f"{x['result']} {s['u2']}"
        return _said(short, f"in total that is {short}", f"zusammen sind das {short}", x["result"])

    return with_error(total, facts)


def _multiply_then_convert(s: Slots, r: Recorder) -> Facts:
    product = r.one("calculate", expression=f"{s['a']} * {s['b']}")
    if "error" in product:
        return with_error(product, lambda _: _said("", "", "", ""))
    result = r.one("convert_units", value=product["result"], from_unit=s["u1"], to_unit=s["u2"])
    return _converted(product["result"], s["u1"], result)


INTENTS: dict[str, Intent] = {
    "calculate.add": Intent(_numbers, _calculated("{a} + {b}")),
    "calculate.subtract": Intent(_numbers, _calculated("{a} - {b}")),
    "calculate.multiply": Intent(_numbers, _calculated("{a} * {b}")),
    "calculate.divide": Intent(_division, _calculated("{a} / {b}")),
    "calculate.percent": Intent(lambda r: {"a": r.randint(1, 99), "b": integer(r)}, _calculated("{a} / 100 * {b}")),
    "calculate.sqrt": Intent(lambda r: {"a": integer(r)}, _calculated("sqrt({a})")),
    "calculate.power": Intent(lambda r: {"a": r.randint(2, 60), "b": r.randint(2, 5)}, _calculated("{a} ** {b}")),
    "calculate.expression": Intent(_expression, _calculated("{expression}")),
    "convert_units": Intent(_units, _convert, typo="to_unit"),
    "readable": Intent(lambda r: {"value": number(r), "from_unit": r.choice(list(READABLE))}, _readable, units=True),
    "convert_then_add": Intent(_sum_units, _convert_then_add, group="chain"),
    "multiply_then_convert": Intent(_laps, _multiply_then_convert, group="chain"),
    "missing.convert": Intent(
        _units, _convert, group="missing", question=("To which unit?", "In welche Einheit?", "to_unit")
    ),
    "missing.percent": Intent(
        lambda r: {"a": r.randint(1, 99), "b": integer(r)},
        _calculated("{a} / 100 * {b}"),
        group="missing",
        question=("How many percent?", "Wie viel Prozent?", "a"),
    ),
}
