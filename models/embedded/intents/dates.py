"""The family `dates`: days between dates, dates before and after, weekdays."""

from __future__ import annotations

import random
from typing import Any

from ..words import date_text
from .common import Facts, Intent, Recorder, Script, Slots, with_error


def _dates(rng: random.Random) -> Slots:
    return {"start": date_text(rng, relative=False), "end": date_text(rng, relative=False)}


def _shift(rng: random.Random) -> Slots:
    return {"days": rng.randint(2, 400), "date": date_text(rng)}


def _weeks(rng: random.Random) -> Slots:
    return {"weeks": rng.randint(2, 60), "date": date_text(rng)}


def _shift_and_end(rng: random.Random) -> Slots:
    return {"days": rng.randint(2, 400), "date": date_text(rng, relative=False), "end": date_text(rng, relative=False)}


def _days_between(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        n = x["days"]
        return Facts(
            f"{n} days",
            f"there are {n} days between {s['start']} and {s['end']}",
            f"{n} Tage",
            f"zwischen {s['start']} und {s['end']} liegen {n} Tage",
            (str(n),),
        )

    return with_error(r.one("days_between", start=s["start"], end=s["end"]), facts)


def _day(result: dict[str, Any], english: str, german: str) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        day = f"{x['weekday']} {x['date']}"
        return Facts(day, f"{english} is {day}", day, f"{german} ist {day}", (x["date"],))

    return with_error(result, facts)


def _add_days(sign: int) -> Script:
    def script(s: Slots, r: Recorder) -> Facts:
        result = r.one("add_days", date=s["date"], days=sign * s["days"])
        side, seite = ("after", "nach") if sign > 0 else ("before", "vor")
        return _day(result, f"{s['days']} days {side} {s['date']}", f"{s['days']} Tage {seite} {s['date']}")

    return script


def _weekday(s: Slots, r: Recorder) -> Facts:
    return with_error(
        r.one("weekday", date=s["date"]),
        lambda x: Facts(
            x["weekday"],
            f"{s['date']} is a {x['weekday']}",
            x["weekday"],
            f"{s['date']} ist ein {x['weekday']}",
            (x["weekday"],),
        ),
    )


def _between_in(unit: str, einheit: str, expression: str) -> Script:
    """The time between two dates in another unit: two calls."""

    def script(s: Slots, r: Recorder) -> Facts:
        first = r.one("days_between", start=s["start"], end=s["end"])
        if "error" in first:
            return with_error(first, lambda _: Facts("", "", "", "", ()))
        n = r.one("calculate", expression=expression.format(days=first["days"]))["result"]
        return Facts(
            f"{n} {unit}",
            f"there are {n} {unit} between {s['start']} and {s['end']}",
            f"{n} {einheit}",
            f"zwischen {s['start']} und {s['end']} liegen {n} {einheit}",
            (str(n),),
        )

    return script


def _weeks_after(s: Slots, r: Recorder) -> Facts:
    days = r.one("calculate", expression=f"{s['weeks']} * 7")["result"]
    result = r.one("add_days", date=s["date"], days=days)
    return _day(result, f"{s['weeks']} weeks after {s['date']}", f"{s['weeks']} Wochen nach {s['date']}")


def _shift_then_count(s: Slots, r: Recorder) -> Facts:
    first = r.one("add_days", date=s["date"], days=s["days"])
    if "error" in first:
        return with_error(first, lambda _: Facts("", "", "", "", ()))
    return _days_between({"start": first["date"], "end": s["end"]}, r)


INTENTS: dict[str, Intent] = {
    "days_between": Intent(_dates, _days_between, typo="start"),
    "add_days": Intent(_shift, _add_days(1), typo="date"),
    "subtract_days": Intent(_shift, _add_days(-1), typo="date"),
    "weekday": Intent(lambda r: {"date": date_text(r, relative=False)}, _weekday, typo="date"),
    "hours_between": Intent(_dates, _between_in("hours", "Stunden", "{days} * 24"), group="chain"),
    "weeks_between": Intent(_dates, _between_in("weeks", "Wochen", "{days} / 7"), group="chain"),
    "weeks_after": Intent(_weeks, _weeks_after, group="chain"),
    "shift_then_count": Intent(_shift_and_end, _shift_then_count, group="chain"),
    "missing.days": Intent(
        _dates, _days_between, group="missing", question=("Until which date?", "Bis zu welchem Datum?", "end")
    ),
    "missing.shift": Intent(
        _shift, _add_days(1), group="missing", question=("How many days?", "Wie viele Tage?", "days")
    ),
}
