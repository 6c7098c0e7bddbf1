"""Dates as a person writes them: "3 May", "May 3 2027", "2026-05-03", "tomorrow", "Friday"."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .numbers import short

# Not from `calendar` or strftime: those follow the process's locale.
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
LONGEST = 40  # characters of a date
NEAR = {"today": 0, "tomorrow": 1, "yesterday": -1, "day after tomorrow": 2, "day before yesterday": -2}
CLOSE = 0.75  # how alike a misspelt word and the name of a month or day must be
DAY_NAMES = {form: i for i, name in enumerate(WEEKDAYS) for form in (name.lower(), name[:3].lower())}
WORDS = {
    **{word: word for word in ("today", "tomorrow", "yesterday")},
    **{form: name for name in (*WEEKDAYS, *MONTHS) for form in (name[:3].lower(), name.lower())},
    "sept": "September",
}
"""What a word of a date can be -> what it says."""


def date_tools(today: Callable[[], date]) -> list[Tool]:
    """`days_between`, `add_days`, `weekday`."""

    def days_between(start: str, end: str) -> dict[str, Any]:
        """Count the days between two dates."""
        now = today()
        first = read_date(start, now)
        last = read_date(end, now)
        if last < first and not has_year(end):
            last = read_date(end, first)
            if last < first:
                last = read_date(end, _year_later(first))
        return {"days": (last - first).days}

    def add_days(date: str, days: int) -> dict[str, Any]:
        """Find the date some days after a date."""
        try:
            found = read_date(date, today()) + timedelta(days=days)
        except OverflowError:
            raise ToolFailure(f"{days} days from {short(date)} is no date of the calendar") from None
        return {"date": write_date(found), "weekday": WEEKDAYS[found.weekday()]}

    def weekday(date: str) -> dict[str, Any]:
        """Tell the weekday of a date."""
        return {"weekday": WEEKDAYS[read_date(date, today()).weekday()]}

    return [tool(days_between), tool(add_days), tool(weekday)]


def write_date(day: date) -> str:
    """19 June 2026."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def read_date(text: str, today: date) -> date:
    """The day a person means.

    Without a year it is in the year of `today`. The name of a weekday is the next such day after `today`, never
    `today` itself. Day before month where both are numbers (3/5/2027 is 3 May).

    Raises:
        ToolFailure: it is no date, or the year has no such day.
    """
    try:
        return _read(text, today)
    except ToolFailure as failure:
        better = _mended(text)
        if better is None:
            raise
        try:
            _read(better, today)
        except ToolFailure:
            raise failure from None
        raise ToolFailure(f"cannot read the date {text}; did you mean {better}?") from None


def _read(text: str, today: date) -> date:
    """`read_date` without its suggestion."""
    words = _words(text)
    if words in NEAR:
        try:
            return today + timedelta(days=NEAR[words])
        except OverflowError:
            raise ToolFailure(f"{short(text)} is no date of the calendar") from None
    if words in DAY_NAMES:
        return today + timedelta(days=(DAY_NAMES[words] - today.weekday() - 1) % 7 + 1)
    year, month, day = _parts(words, text)
    try:
        return date(today.year if year is None else year, month, day)
    except ValueError:
        raise ToolFailure(f"{year or today.year} has no {day} {MONTHS[month - 1]}") from None


def has_year(text: str) -> bool:
    """False for a date such as "3 May", which may be moved to the next year; True for "3 May 2027" and "today"."""
    words = _words(text)
    return words in NEAR or words in DAY_NAMES or _parts(words, text)[0] is not None


def read_time(text: str) -> str:
    """A time of day as a person writes it ("13:00", "3 pm", "9:30am", "noon"), as "13:00".

    Raises:
        ToolFailure: it is no time of day.
    """
    words = " ".join(text.lower().split())[:LONGEST].removeprefix("at ")
    if words in ("noon", "midday", "12 noon"):
        return "12:00"
    if words in ("midnight", "12 midnight"):
        return "00:00"
    match = re.fullmatch(r"([0-9]{1,2})(?:[:.h]([0-9]{2})(?::00)?)?\s*(am|pm|a\.m\.|p\.m\.|o'clock|h)?", words)
    if match and (match[2] or match[3]):
        hour, minute, half = int(match[1]), int(match[2] or 0), (match[3] or "")[:1]
        if half in ("a", "p"):
            hour = hour % 12 + (12 if half == "p" else 0) if 1 <= hour <= 12 else 24
        if hour < 24 and minute < 60:
            return f"{hour:02d}:{minute:02d}"
    raise ToolFailure(f"cannot read {short(text)} as a time")


def _year_later(day: date) -> date:
    return date(min(day.year + 1, 9999), 1, 1)


def _words(text: str) -> str:
    words = " ".join(text.lower().replace(",", " ").split())
    if not words or len(words) > LONGEST:
        raise ToolFailure(f"cannot read {short(text)} as a date")
    words = re.sub(r"^(on|the|next|this) ", "", words)
    return re.sub(r"^the ", "", words)


def _parts(words: str, text: str) -> tuple[int | None, int, int]:
    found = _parsed(words)
    if found is None:
        raise ToolFailure(f"cannot read {short(text)} as a date")
    return found


def _mended(text: str) -> str | None:
    """`text` with its misspelt months and days put right, or None if none was found."""
    if len(text) > LONGEST or not text.isprintable():
        return None
    mended = re.sub(r"[^\W\d_]{2,}", lambda match: _put_right(match[0]), text)
    return None if mended == text else mended


def _put_right(word: str) -> str:
    """The name that a word is a slip or two away from, written like it; the word itself if it is near none."""
    wrong = word.lower()
    if wrong in WORDS:
        return word
    alike = {
        # Two letters swapped are one slip, which a ratio does not see in a short word.
        right: 1.0 if sorted(wrong) == sorted(right) else difflib.SequenceMatcher(None, wrong, right).ratio()
        for right in WORDS
    }
    best = max(alike.values())
    near = [right for right in WORDS if alike[right] == best]
    if best < CLOSE or len({WORDS[right] for right in near}) > 1:  # "Ma" is as near to March as to May
        return word
    return near[-1] if word.islower() else near[-1].capitalize()


@functools.lru_cache(maxsize=4096)
def _parsed(words: str) -> tuple[int | None, int, int] | None:
    """(year or None, month, day), or None if the words are no date.

    dateutil fills what is missing from a default without saying so. Two defaults that differ in everything tell what
    was really there: month and day must not move, and a year that moves was not written.
    """
    match = re.fullmatch(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})", words)
    if match:
        year, month, day = (int(part) for part in match.groups())
        return (year, month, day) if year and 1 <= month <= 12 and 1 <= day <= 31 else None
    if not words.isascii() or not re.search(r"[0-9]", words) or re.search(r"[:+]|\d{5}", words):
        return None
    words = re.sub(r"\b([0-9]{1,2})(st|nd|rd|th)\b", r"\1", words)
    words = re.sub(r"\bof\b", " ", words)
    # dateutil would take the weekday for the missing day of "Friday May 2027".
    words = " ".join(word for word in words.split() if word.rstrip(".") not in DAY_NAMES)
    from dateutil import parser

    try:
        # Leap years, so that 29 February can be read whatever the year turns out to be.
        one = parser.parse(words, default=datetime(2000, 1, 1), dayfirst=True)
        two = parser.parse(words, default=datetime(2004, 2, 2, 1, 1, 1), dayfirst=True)
    except Exception:  # ParserError, OverflowError, and for odd text dateutil also lets through what it stumbles on
        return None
    if (one.month, one.day) != (two.month, two.day):
        return None
    if one.tzinfo or one.time() != time(0, 0, 0) or two.time() != time(1, 1, 1):
        return None  # a time of day, which is an argument of its own
    return (one.year if one.year == two.year else None), one.month, one.day
