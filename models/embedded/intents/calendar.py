"""The calendar: what is asked of it, and what is right to do."""

from __future__ import annotations

import random
from typing import Any

from ..words import MONTHS, date_text, person, time_text, word
from .common import Facts, Intent, Recorder, Run, Slots, failed, nothing, with_error
from .todos import item


def title(rng: random.Random) -> str:
    """What an event may be called."""
    forms = (
        "lunch with {p}",
        "call {p}",
        "{w} meeting",
        "{w} with {p}",
        "dentist",
        "{w} {w2}",
        "{p}'s birthday",
        "{w} review",
    )
    return rng.choice(forms).format(p=person(rng), w=word(rng), w2=word(rng))


def _event(rng: random.Random) -> Slots:
    return {"title": title(rng), "date": date_text(rng), "time": time_text(rng)}


def _event_and_item(rng: random.Random) -> Slots:
    return {**_event(rng), "item": item(rng)}


def _found_event(rng: random.Random) -> Slots:
    """An event on a date in the words of `find_event`."""
    day = f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(2020, 2032)}"
    return {"title": title(rng), "date": day, "time": time_text(rng)}


def _two_events(rng: random.Random) -> Slots:
    second = _event(rng)
    return {**_event(rng), "title2": second["title"], "date2": second["date"], "time2": second["time"]}


def _list_events(s: Slots, r: Recorder) -> Facts:
    date = s["date"]

    def facts(x: dict[str, Any]) -> Facts:
        if not x["events"]:
            return Facts(
                f"0 events on {date}",
                f"There are 0 events on {date}",
                f"0 Termine am {date}",
                f"Am {date} gibt es 0 Termine",
                (nothing("events", "appointments", also=("nothing scheduled", "nothing planned", "nothing on")), date),
            )
        text = "; ".join(x["events"])
        return Facts(text, f"On {date} you have {text}", text, f"Am {date} gibt es {text}", tuple(x["events"]))

    return with_error(r.one("list_events", date=date), facts)


def _add_event(s: Slots, r: Recorder) -> Facts:
    date, time = s["date"], s["time"]

    def facts(x: dict[str, Any]) -> Facts:
        name = x["added"]
        return Facts(
            f"Added {name} on {date} at {time}",
            f"{name} is in your calendar on {date} at {time}",
            f"{name} am {date} um {time} eingetragen",
            f"{name} steht am {date} um {time} im Kalender",
            (name,),
        )

    return with_error(r.one("add_event", title=s["title"], date=date, time=time), facts)


def _deleted(name: str, date: str) -> Facts:
    return Facts(
        f"Deleted {name}",
        f"{name} on {date} is deleted",
        f"{name} gelöscht",
        f"{name} am {date} ist gelöscht",
        (name,),
    )


def _delete_event(s: Slots, r: Recorder) -> Facts:
    gone = r.one("delete_event", title=s["title"], date=s["date"])
    return with_error(gone, lambda x: _deleted(x["deleted"], s["date"]))


def _find_event(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        name, date, time = x["title"], x["date"], x["time"]
        return Facts(
            f"{date} at {time}",
            f"{name} is on {date} at {time}",
            f"{date} um {time}",
            f"{name} ist am {date} um {time}",
            (date, time),
        )

    return with_error(r.one("find_event", title=s["title"]), facts)


def _event_and_todo(s: Slots, r: Recorder) -> Facts:
    name, date, time, thing = s["title"], s["date"], s["time"], s["item"]
    event, todo = r.call(("add_event", {"title": name, "date": date, "time": time}), ("add_todo", {"item": thing}))
    if "error" in event or "error" in todo:
        return failed(event if "error" in event else todo)
    return Facts(
        f"Added {name} and {thing}",
        f"{name} is on {date} at {time} and {thing} is on your to-do list",
        f"{name} und {thing} eingetragen",
        f"{name} ist am {date} um {time} und {thing} steht auf der Liste",
        (name, thing),
    )


def _add_two(s: Slots, r: Recorder) -> Facts:
    first = {"title": s["title"], "date": s["date"], "time": s["time"]}
    second = {"title": s["title2"], "date": s["date2"], "time": s["time2"]}
    one, two = r.call(("add_event", first), ("add_event", second))
    if "error" in one or "error" in two:
        return failed(one if "error" in one else two)
    a, b = s["title"], s["title2"]
    return Facts(
        f"Added {a} and {b}",
        f"{a} is on {s['date']} at {s['time']} and {b} on {s['date2']} at {s['time2']}",
        f"{a} und {b} eingetragen",
        f"{a} ist am {s['date']} um {s['time']} und {b} am {s['date2']} um {s['time2']}",
        (a, b),
    )


def _reschedule(s: Slots, r: Recorder) -> Facts:
    found = r.one("find_event", title=s["title"])
    if "error" in found:
        return failed(found)
    name, time, date = found["title"], found["time"], s["date"]
    gone = r.one("delete_event", title=name, date=found["date"])
    if "error" in gone:
        return failed(gone)

    def facts(_: dict[str, Any]) -> Facts:
        return Facts(
            f"Moved {name} to {date} at {time}",
            f"{name} is now on {date} at {time}",
            f"{name} auf {date} um {time} verlegt",
            f"{name} ist jetzt am {date} um {time}",
            (name, date, time),
        )

    return with_error(r.one("add_event", title=name, date=date, time=time), facts)


def _delete_found(s: Slots, r: Recorder) -> Facts:
    found = r.one("find_event", title=s["title"])
    if "error" in found:
        return failed(found)
    s["date"] = found["date"]  # the day to look at afterwards
    gone = r.one("delete_event", title=found["title"], date=found["date"])
    return with_error(gone, lambda x: _deleted(x["deleted"], found["date"]))


def _rest_of_day(s: Slots, r: Recorder) -> Facts:
    found = r.one("find_event", title=s["title"])
    if "error" in found:
        return failed(found)
    name, date = found["title"], found["date"]

    def facts(x: dict[str, Any]) -> Facts:
        others = [one for one in x["events"] if one != f"{found['time']} {name}"]
        if not others:
            return Facts(
                f"0 other events on {date}",
                f"There are 0 other events on {date}",
                f"0 weitere Termine am {date}",
                f"Am {date} gibt es 0 weitere Termine",
                (nothing("other events", "further events", "more events", also=("nothing else", "only event")), date),
            )
        text = "; ".join(others)
        return Facts(text, f"On {date} there is also {text}", text, f"Am {date} gibt es noch {text}", tuple(others))

    return with_error(r.one("list_events", date=date), facts)


def _some_events(rng: random.Random, s: Slots, run: Run) -> None:
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        run("add_event", {"title": title(rng), "date": s["date"], "time": time_text(rng)})


def _this_event(rng: random.Random, s: Slots, run: Run) -> None:
    _some_events(rng, s, run)
    if rng.random() < 0.9:
        run("add_event", {"title": s["title"], "date": s["date"], "time": s["time"]})


def _surely_this_event(rng: random.Random, s: Slots, run: Run) -> None:
    _some_events(rng, s, run)
    run("add_event", {"title": s["title"], "date": s["date"], "time": s["time"]})


def _this_event_some_day(rng: random.Random, s: Slots, run: Run) -> None:
    """On a day that is not the one the request names."""
    for _ in range(rng.choice((0, 1, 1, 2))):
        run("add_event", _event(rng))
    if rng.random() < 0.9:
        run("add_event", {"title": s["title"], "date": date_text(rng), "time": time_text(rng)})


def _look(s: Slots) -> tuple[str, dict[str, Any]]:
    return "list_events", {"date": s["date"]}


INTENTS: dict[str, Intent] = {
    "list_events": Intent(lambda r: {"date": date_text(r)}, _list_events, _some_events),
    "add_event": Intent(_event, _add_event, verify=_look),
    "delete_event": Intent(
        _event,
        _delete_event,
        _this_event,
        confirm=("delete {title} on {date}?", "{title} am {date} löschen?"),
        verify=_look,
        typo="title",
    ),
    "find_event": Intent(_event, _find_event, _this_event, typo="title"),
    "event_and_todo": Intent(_event_and_item, _event_and_todo, group="chain", verify=_look),
    "two_events": Intent(_two_events, _add_two, group="chain", verify=_look),
    "reschedule": Intent(
        _event,
        _reschedule,
        _this_event_some_day,
        "chain",
        confirm=("move {title} to {date}?", "{title} auf {date} verlegen?"),
        verify=_look,
        typo="title",
    ),
    "delete_found": Intent(
        _found_event,
        _delete_found,
        _surely_this_event,
        "chain",
        confirm=("delete {title}?", "{title} löschen?"),
        verify=_look,
        typo="title",
    ),
    "rest_of_day": Intent(_found_event, _rest_of_day, _this_event, "chain", typo="title"),
    "missing.event": Intent(
        _event,
        _add_event,
        group="missing",
        question=("At what time is {title} on {date}?", "Um wie viel Uhr ist {title} am {date}?", "time"),
        verify=_look,
    ),
    "missing.date": Intent(
        _event,
        _add_event,
        group="missing",
        question=("On which day is {title} at {time}?", "An welchem Tag ist {title} um {time}?", "date"),
        verify=_look,
    ),
}
