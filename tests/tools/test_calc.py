"""Arithmetic, units and dates against closed forms and Python's own."""

from __future__ import annotations

import ast
import math
import operator
import time
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.models.embedded.intents.common import SUGGESTION
from trimtab.tools import Tool, ToolFailure
from trimtab.tools.builtin import FAMILIES, calc_tools
from trimtab.tools.builtin.dates import MONTHS, WEEKDAYS, read_date, read_time, write_date
from trimtab.tools.builtin.units import USUAL

TODAY = date(2026, 5, 12)  # a Tuesday
TOOLS: dict[str, Tool] = {one.name: one for one in calc_tools(lambda: TODAY)}


def ask(name: str, **arguments: Any) -> Any:
    return TOOLS[name].function(**arguments)


def one_line(failure: ToolFailure) -> None:
    assert "\n" not in failure.what
    assert len(failure.what) < 150


def suggestion(name: str, wrong: str, **arguments: Any) -> str:
    """What a tool says was meant by a wrong argument."""
    with pytest.raises(ToolFailure) as caught:
        ask(name, **arguments)
    one_line(caught.value)
    found = SUGGESTION.fullmatch(caught.value.what)
    assert found is not None
    assert found["what"].endswith(wrong)
    return found["right"]


def test_the_family_is_complete() -> None:
    assert tuple(TOOLS) == FAMILIES["calc"] + FAMILIES["dates"][:-1]


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*12-1", 143),
        ("143.0", 143),
        ("7/3", 2.3333),
        ("0.1 + 0.2", 0.3),
        ("2**10", 1024),
        ("2^3", 8),
        ("6 × 7 ÷ 2 − 1", 20),
        ("17 % 5", 2),
        ("17 // 5", 3),
        ("-(3 + 4) * 2", -14),
        ("sqrt(16)", 4),
        ("sqrt(2)", 1.4142),
        ("round(2.567, 1)", 2.6),
        ("abs(-3) + min(4, 2) + max(1, 5, 3)", 10),
        ("007 + 010", 17),
        ("100.05", 100.05),
        ("2**200", 2**200),
        ("1/3000000", 3.333e-07),
        ("0 * -1.0", 0),
    ],
)
def test_expressions(expression: str, result: float) -> None:
    got = ask("calculate", expression=expression)
    assert got == {"result": result}
    assert type(got["result"]) is type(result)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "x",
        "3 4",
        "1 +",
        "1/0",
        "5 % 0",
        "sqrt(-1)",
        "(-8)**0.5",
        "9**9**9",
        "2**-1e9",
        "1.0000001**1e9",
        "10**99 * 10**99",
        "1e400",
        "round(1, -1000000000)",
        "round(1, 10**9)",
        "min()",
        "min(3)",
        "abs(1, 2)",
        "abs(x=1)",
        "1 < 2",
        "1 if 1 else 2",
        "not 1",
        "~1",
        "1 << 900",
        "3j",
        "True + 1",
        "None",
        '"a" * 9',
        "[1]",
        "(1, 2)",
        "{}",
        "().__class__",
        "abs.__self__",
        "__import__('os').system('id')",
        "open('/etc/passwd')",
        "lambda: 1",
        "a := 1",
        "f'{1}'",
        "1; 2",
        "1\n2",
        "\0",
        "é",
        "1" * 301,
        "(" * 150 + "1",
        "-" * 299 + "1" + "+",
        "sqrt(" * 50 + "1",
    ],
)
def test_what_is_no_arithmetic_is_refused_at_once(expression: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ToolFailure) as caught:
        ask("calculate", expression=expression)
    assert time.perf_counter() - started < 1
    one_line(caught.value)


OPERATORS: dict[str, Any] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@st.composite
def sums(draw: st.DrawFn, depth: int) -> tuple[str, float]:
    """An expression and, worked out beside it, its value."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 999) | st.decimals(0, 99, places=2).map(float))
        return repr(number), number
    left, a = draw(sums(depth - 1))
    right, b = draw(sums(depth - 1))
    sign = draw(st.sampled_from("+-*" if b == 0 else "+-*/"))
    return f"({left} {sign} {right})", OPERATORS[sign](a, b)


@settings(max_examples=60, deadline=None)
@given(sums(2))
def test_expressions_agree_with_python(pair: tuple[str, float]) -> None:
    text, value = pair[0], float(pair[1])
    got = ask("calculate", expression=text)["result"]
    assert got == pytest.approx(value, abs=6e-5, rel=1e-3 if abs(value) < 1e-4 else 1e-12)
    written = round(value, 4)
    assert isinstance(got, int) == (written.is_integer() and (written != 0 or value == 0))


@settings(max_examples=120, deadline=None)
@given(st.text(alphabet="0123456789+-*/%().,e sqrtabminxound_[]'\"=<>:", max_size=60) | st.text(max_size=40))
def test_no_expression_crashes_or_hangs(text: str) -> None:
    started = time.perf_counter()
    try:
        value = ask("calculate", expression=text)["result"]
        assert math.isfinite(value)
    except ToolFailure:
        pass
    assert time.perf_counter() - started < 2


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12).filter(lambda t: "__" not in t))
def test_nothing_but_numbers_is_reached(name: str) -> None:
    """Whatever name or attribute is written, it has no value."""
    if name.isidentifier():
        for text in (name, f"{name}(1)", f"(1).{name}", f"abs.{name}"):
            try:
                ast.parse(text)
                ask("calculate", expression=text)
            except (ToolFailure, SyntaxError):
                continue
            assert text.split("(")[0] in ("abs", "round", "sqrt")


@pytest.mark.parametrize(
    ("value", "source", "target", "result"),
    [
        # Exact by definition: inch 25.4 mm, pound 0.45359237 kg, US gallon 231 cubic inches, nautical mile 1852 m.
        (26.2, "miles", "kilometres", 26.2 * 1.609344),
        (5, "kilometers", "miles", 5 / 1.609344),
        (6, "feet", "centimetres", 182.88),
        (10, "stone", "pounds", 140),
        (11, "stone", "kilograms", 11 * 14 * 0.45359237),
        (3, "pounds", "grams", 3 * 453.59237),
        (250, "grammes", "ounces", 250 / 28.349523125),
        (2, "kilogrammes", "lbs", 2 / 0.45359237),
        (2, "tonnes", "kg", 2000),
        (3, "cups", "millilitres", 3 * 236.5882365),
        (1, "gallon", "litres", 3.785411784),
        (1, "imperial gallon", "litres", 4.54609),
        (1, "UK pints", "ml", 568.26125),
        (2, "US gallons", "l", 7.570823568),
        (3, "tablespoons", "teaspoons", 9),
        (8, "fluid ounces", "cups", 1),
        (100, "celsius", "fahrenheit", 212),
        (-40, "degrees fahrenheit", "°C", -40),
        (0, "Celsius", "Kelvin", 273.15),
        (60, "mph", "km/h", 96.56064),
        (30, "miles per hour", "kilometres per hour", 48.28032),
        (36, "kph", "metres per second", 10),
        (10, "knots", "km/h", 18.52),
        (5, "square metres", "square feet", 5 / 0.3048**2),
        (3, "hectares", "acres", 3e4 / 4046.8564224),
        (160, "acres", "square miles", 0.25),
        (2, "square kilometres", "hectares", 200),
        (1, "sq mi", "km2", 1.609344**2),
        (1, "cubic metre", "litres", 1000),
        (2, "m³", "cubic feet", 2 / 0.3048**3),
        (90, "minutes", "hours", 1.5),
        (2, "weeks", "days", 14),
        (1, "day", "seconds", 86400),
        (3, "hrs", "mins", 180),
        (5, "megabytes", "kilobytes", 5000),
        (1, "GB", "MB", 1000),
        (1, "MiB", "kibibytes", 1024),
        (100, "Mbps", "megabytes per second", 12.5),
        (1, "kWh", "kJ", 3600),
        (100, "kilocalories", "kJ", 418.4),
        (1, "atm", "kPa", 101.325),
        (1, "nautical mile", "m", 1852),
        (12, "inches", "feet", 1),
        (3, "amps", "milliamps", 3000),
        (2, "mhz", "kHz", 2000),
        (1, "yard", "metres", 0.9144),
        (5, "mW", "W", 0.005),
        (5, "MW", "mW", 5e9),
        (1, "mHz", "Hz", 0.001),
        (1, "MBps", "Mbps", 8),
        (8, "Gb", "GB", 1),
        (96, "Mb", "mb", 12),
        (8, "Mb/s", "MB/s", 1),
    ],
)
def test_units(value: float, source: str, target: str, result: float) -> None:
    got = ask("convert_units", value=value, from_unit=source, to_unit=target)
    assert got["unit"] == target
    # What is left is the rounding of pint's own definitions and of four decimals.
    assert got["value"] == pytest.approx(result, abs=5.1e-5, rel=1e-6)
    assert isinstance(got["value"], int) == float(got["value"]).is_integer()


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("blorgs", "m", "unknown unit 'blorgs'"),
        ("m", "blorgs", "unknown unit 'blorgs'"),
        ("", "m", "unknown unit ''"),
        ("x" * 500, "m", "unknown unit 'xxx"),
        ("m**999999999", "m", "unknown unit"),
        ("9**9**9", "m", "unknown unit"),
        ("1000", "m", "unknown unit '1000'"),
        ("__import__('os')", "m", "unknown unit"),
        ("m/m/m/m", "m", "unknown unit"),
        ("kilograms", "litres", "cannot convert 'kilograms' to 'litres'"),
        ("celsius", "metres", "cannot convert 'celsius' to 'metres'"),
        ("celsius squared", "metres", "cannot convert"),
    ],
)
def test_units_that_do_not_fit(source: str, target: str, says: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        ask("convert_units", value=1, from_unit=source, to_unit=target)
    assert caught.value.what.startswith(says)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("kilometrs", "kilometres"),
        ("kilmoetres", "kilometres"),
        ("Litrse", "litres"),
        ("miels", "miles"),
        ("ponuds", "pounds"),
        ("celcius", "celsius"),
        ("farenheit", "fahrenheit"),
        ("sqaure feet", "square feet"),
        ("nautical  miels", "nautical miles"),
    ],
)
def test_a_misspelt_unit_is_put_right(wrong: str, right: str) -> None:
    for source, target in ((wrong, "m"), ("m", wrong)):
        assert suggestion("convert_units", wrong, value=1, from_unit=source, to_unit=target) == right


def test_every_unit_that_is_suggested_is_one() -> None:
    for name in USUAL:
        assert ask("convert_units", value=1, from_unit=name, to_unit=name) == {"value": 1, "unit": name}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_values_are_bounded(value: float) -> None:
    with pytest.raises(ToolFailure, match="too large"):
        ask("convert_units", value=value, from_unit="m", to_unit="km")


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=45), st.floats(allow_nan=True))
def test_no_unit_crashes(name: str, value: float) -> None:
    try:
        got = ask("convert_units", value=value, from_unit=name, to_unit="metres")
        assert math.isfinite(got["value"])
    except ToolFailure as failure:
        one_line(failure)


@given(st.floats(-1e6, 1e6), st.sampled_from([("miles", "km"), ("celsius", "fahrenheit"), ("acres", "hectares")]))
def test_there_and_back_is_where_one_was(value: float, units: tuple[str, str]) -> None:
    there = ask("convert_units", value=value, from_unit=units[0], to_unit=units[1])["value"]
    back = ask("convert_units", value=there, from_unit=units[1], to_unit=units[0])["value"]
    assert back == pytest.approx(value, abs=3e-4, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("3 May", date(2026, 5, 3)),
        ("May 3", date(2026, 5, 3)),
        ("3rd of May", date(2026, 5, 3)),
        ("the 3rd of May", date(2026, 5, 3)),
        ("May 3rd, 2027", date(2027, 5, 3)),
        ("3 may 2027", date(2027, 5, 3)),
        ("Monday 3 May 2027", date(2027, 5, 3)),
        ("Mon, 3 May 2027", date(2027, 5, 3)),
        ("2026-05-03", date(2026, 5, 3)),
        ("2026-5-3", date(2026, 5, 3)),
        ("3/5/2027", date(2027, 5, 3)),
        ("3 Sept", date(2026, 9, 3)),
        ("29 February 2028", date(2028, 2, 29)),
        ("today", TODAY),
        ("Tomorrow", date(2026, 5, 13)),
        ("yesterday", date(2026, 5, 11)),
        ("the day after tomorrow", date(2026, 5, 14)),
        ("Wednesday", date(2026, 5, 13)),
        ("Monday", date(2026, 5, 18)),
        ("next Friday", date(2026, 5, 15)),
        ("on fri", date(2026, 5, 15)),
        ("Tuesday", date(2026, 5, 19)),  # today is one: the next is meant
    ],
)
def test_dates_as_people_write_them(text: str, day: date) -> None:
    assert read_date(text, TODAY) == day
    assert ask("weekday", date=text) == {"weekday": day.strftime("%A")}


@pytest.mark.parametrize(
    "text",
    ["", " ", "foo", "3", "May", "2027", "May 2027", "Friday May 2027", "10:30", "3 May 5pm", "3 May 13:00", "31 June",
     "29 February", "2026-02-30", "2026-13-01", "0000-01-01", "99999-01-01", "x" * 1000, "3 May UTC+3", "\0", "٣ May",
     "today tomorrow", "1e9", "3 May 3 June"],
)  # fmt: skip
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ToolFailure):
        ask("weekday", date=text)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("3 Setpember", "3 September"),
        ("Janury 12", "January 12"),
        ("the 3rd of feburary", "the 3rd of february"),
        ("3 Agu", "3 Aug"),
        ("3 Jnue 2027", "3 June 2027"),
        ("wensday", "wednesday"),
        ("Mnoday 4 May", "Monday 4 May"),
        ("next Thurday", "next Thursday"),
        ("tomorow", "tomorrow"),
    ],
)
def test_a_misspelt_date_is_put_right(wrong: str, right: str) -> None:
    assert suggestion("weekday", wrong, date=wrong) == right
    assert suggestion("days_between", wrong, start="3 May 2026", end=wrong) == right
    assert ask("weekday", date=right)


@pytest.mark.parametrize("text", ["3 Ma", "31 Setpember", "29 Feburary", "3 Foo", "Setpember", "3 Setpember\n2027"])
def test_no_date_is_guessed(text: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        ask("weekday", date=text)
    assert "did you mean" not in caught.value.what


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ("3 May", "19 June", 47),
        ("3 May", "3 May", 0),
        ("3 May", "2 May", 364),
        ("20 December", "5 January", 16),
        ("today", "tomorrow", 1),
        ("today", "25 December", 227),
        ("3 May 2027", "10 June", 38),
        ("3 May 2030", "10 June", 38),
        ("10 June 2030", "3 May", 327),
        ("2026-05-03", "2026-05-01", -2),
        ("1 January 2024", "1 January 2025", 366),
        ("tomorrow", "yesterday", -2),
    ],
)
def test_days_between(start: str, end: str, days: int) -> None:
    assert ask("days_between", start=start, end=end) == {"days": days}


def test_add_days() -> None:
    assert ask("add_days", date="3 May", days=47) == {"date": "19 June 2026", "weekday": "Friday"}
    assert ask("add_days", date="3 May", days=-3) == {"date": "30 April 2026", "weekday": "Thursday"}
    for far in (10**7, -(10**7), 10**30):
        with pytest.raises(ToolFailure, match="no date of the calendar"):
            ask("add_days", date="3 May", days=far)


days = st.dates(date(1000, 1, 1), date(9000, 1, 1))


@settings(deadline=None)
@given(days, st.integers(-100_000, 100_000))
def test_dates_round_trip(day: date, count: int) -> None:
    for text in (day.isoformat(), write_date(day), f"{MONTHS[day.month - 1]} {day.day}, {day.year}"):
        assert read_date(text, TODAY) == day
    moved = ask("add_days", date=write_date(day), days=count)
    assert read_date(moved["date"], TODAY) == day + timedelta(days=count)
    assert moved["weekday"] == WEEKDAYS[(day + timedelta(days=count)).weekday()]
    assert ask("days_between", start=write_date(day), end=moved["date"]) == {"days": count}


@given(days, st.sampled_from(WEEKDAYS))
def test_a_weekday_is_within_the_next_seven_days(today: date, name: str) -> None:
    found = read_date(name, today)
    assert 1 <= (found - today).days <= 7
    assert found.strftime("%A") == name


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=45) | st.text(alphabet="0123456789 -/.,:+TZmayjunefristhdpcob", max_size=30))
def test_no_date_or_time_crashes(text: str) -> None:
    for read in (lambda: read_date(text, TODAY), lambda: read_time(text)):
        try:
            assert isinstance(read(), date | str)
        except ToolFailure as failure:
            one_line(failure)


@pytest.mark.parametrize(
    ("text", "time_of_day"),
    [
        ("13:00", "13:00"),
        ("9:05", "09:05"),
        ("3 pm", "15:00"),
        ("3PM", "15:00"),
        ("9:30am", "09:30"),
        ("at 3.30 p.m.", "15:30"),
        ("12 am", "00:00"),
        ("12pm", "12:00"),
        ("noon", "12:00"),
        ("midnight", "00:00"),
        ("9 o'clock", "09:00"),
    ],
)
def test_times_as_people_write_them(text: str, time_of_day: str) -> None:
    assert read_time(text) == time_of_day


@pytest.mark.parametrize("text", ["", "9", "25:00", "24:00", "12:60", "13 pm", "0 am", "1300", "soon", "٣:٠٠", "9:5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ToolFailure, match="as a time"):
        read_time(text)


@given(st.times())
def test_times_round_trip(moment: Any) -> None:
    canonical = f"{moment.hour:02d}:{moment.minute:02d}"
    spoken = f"{moment.hour % 12 or 12}:{moment.minute:02d} {'am' if moment.hour < 12 else 'pm'}"
    assert read_time(canonical) == read_time(spoken) == canonical
