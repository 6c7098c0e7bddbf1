"""The intents of the task families: how their slots are drawn, which calls are right, and what the answer must say.

A script makes the right calls on the real tools and returns the facts that came of them; how they are worded is the
business of `answers`, how they are asked for that of `families`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .random_tools import call_message, tool_message
from .words import date_text, email, integer, number, path, person, phone, phrase, time_text, word

Run = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Makes one call on the real tools: name, arguments -> result, or {"error": ...}."""

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


@dataclass(frozen=True)
class Facts:
    """What an answer must say: in short, at length, and the strings a checker looks for."""

    short: str
    long: str
    needles: tuple[str, ...]


Slots = dict[str, Any]
Steps = Callable[[Slots, Run, "Recorder"], Facts]


class Recorder:
    """Collects the messages of one dialogue while its script runs."""

    def __init__(self, run: Run) -> None:
        self.messages: list[dict[str, Any]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._run = run

    def call(self, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """One assistant message with these calls, and their results."""
        self.messages.append(call_message(list(calls)))
        results = [self._run(name, arguments) for name, arguments in calls]
        self.messages += [tool_message(result, i) for i, result in enumerate(results)]
        self.calls += calls
        return results

    def one(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """One call and its result."""
        return self.call((tool, arguments))[0]


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


def _dates(rng: random.Random) -> Slots:
    return {"start": date_text(rng, relative=False), "end": date_text(rng, relative=False)}


def _shift(rng: random.Random) -> Slots:
    return {"days": rng.randint(2, 400), "date": date_text(rng)}


def _sum_units(rng: random.Random) -> Slots:
    first, second = rng.sample(rng.choice((UNITS[0], UNITS[1], UNITS[2], UNITS[4])), 2)
    return {"a": number(rng), "u1": first, "b": number(rng), "u2": second}


def _title(rng: random.Random) -> str:
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


def _item(rng: random.Random) -> str:
    forms = (
        "{w}",
        "{w}",
        "buy {w}",
        "call {p}",
        "fix the {w}",
        "pay the {w} bill",
        "{w} {w2}",
        "write to {p}",
        "return the {w}",
    )
    return rng.choice(forms).format(p=person(rng), w=word(rng), w2=word(rng))


def _event(rng: random.Random) -> Slots:
    return {"title": _title(rng), "date": date_text(rng), "time": time_text(rng)}


def _contact(rng: random.Random) -> Slots:
    name = person(rng)
    return {"name": name, "email": email(rng, name), "phone": phone(rng)}


def _path(rng: random.Random) -> Slots:
    return {"path": path(rng), "content": phrase(rng, 1, 5)}


def _expressions(pattern: str) -> Callable[[Slots, Recorder], Facts]:
    def script(s: Slots, r: Recorder) -> Facts:
        expression = pattern.format(**s)
        return _with_error(
            r.one("calculate", expression=expression), lambda x: _fact(x["result"], f"{expression} is {x['result']}")
        )

    return script


def _fact(short: Any, long: str, *needles: str) -> Facts:
    return Facts(str(short), long, needles or (str(short),))


def _with_error(result: dict[str, Any], facts: Callable[[dict[str, Any]], Facts]) -> Facts:
    if "error" in result:
        return Facts(f"Error: {result['error']}", f"That did not work: {result['error']}", (str(result["error"]),))
    return facts(result)


def _convert(s: Slots, r: Recorder) -> Facts:
    result = r.one("convert_units", value=s["value"], from_unit=s["from_unit"], to_unit=s["to_unit"])
    return _with_error(
        result,
        lambda x: _fact(
            f"{x['value']} {x['unit']}", f"{s['value']} {s['from_unit']} is {x['value']} {x['unit']}", str(x["value"])
        ),
    )


def _days_between(s: Slots, r: Recorder) -> Facts:
    result = r.one("days_between", start=s["start"], end=s["end"])
    long = f"There are {result.get('days')} days between {s['start']} and {s['end']}"
    return _with_error(result, lambda x: _fact(f"{x['days']} days", long, str(x["days"])))


def _add_days(sign: int) -> Callable[[Slots, Recorder], Facts]:
    def script(s: Slots, r: Recorder) -> Facts:
        result = r.one("add_days", date=s["date"], days=sign * s["days"])
        side = "after" if sign > 0 else "before"
        return _with_error(
            result,
            lambda x: _fact(
                f"{x['weekday']} {x['date']}",
                f"{s['days']} days {side} {s['date']} is {x['weekday']} {x['date']}",
                x["date"],
            ),
        )

    return script


def _weekday(s: Slots, r: Recorder) -> Facts:
    return _with_error(
        r.one("weekday", date=s["date"]), lambda x: _fact(x["weekday"], f"{s['date']} is a {x['weekday']}")
    )


def _convert_then_add(s: Slots, r: Recorder) -> Facts:
    first = r.one("convert_units", value=s["a"], from_unit=s["u1"], to_unit=s["u2"])
    if "error" in first:
        return _with_error(first, lambda _: _fact("", ""))
    total = r.one("calculate", expression=f"{first['value']} + {s['b']}")
    return _with_error(
        total,
        lambda x: _fact(f"{x['result']} {s['u2']}", f"In total that is {x['result']} {s['u2']}", str(x["result"])),
    )


def _hours_between(s: Slots, r: Recorder) -> Facts:
    first = r.one("days_between", start=s["start"], end=s["end"])
    if "error" in first:
        return _with_error(first, lambda _: _fact("", ""))
    hours = r.one("calculate", expression=f"{first['days']} * 24")["result"]
    return _fact(f"{hours} hours", f"There are {hours} hours between {s['start']} and {s['end']}", str(hours))


def _list_events(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        if not x["events"]:
            return _fact(f"Nothing on {s['date']}", f"You have nothing on {s['date']}", "nothing")
        text = "; ".join(x["events"])
        return _fact(text, f"On {s['date']} you have {text}", *x["events"])

    return _with_error(r.one("list_events", date=s["date"]), facts)


def _add_event(s: Slots, r: Recorder) -> Facts:
    result = r.one("add_event", title=s["title"], date=s["date"], time=s["time"])
    when = f"on {s['date']} at {s['time']}"
    return _with_error(
        result, lambda x: _fact(f"Added {x['added']} {when}", f"{x['added']} is in your calendar {when}", x["added"])
    )


def _delete_event(s: Slots, r: Recorder) -> Facts:
    result = r.one("delete_event", title=s["title"], date=s["date"])
    return _with_error(
        result, lambda x: _fact(f"Deleted {x['deleted']}", f"{x['deleted']} on {s['date']} is deleted", x["deleted"])
    )


def _contact_field(field: str, word_for_it: str) -> Callable[[Slots, Recorder], Facts]:
    def script(s: Slots, r: Recorder) -> Facts:
        def facts(x: dict[str, Any]) -> Facts:
            if x[field] is None:
                return _fact(f"No {word_for_it}", f"There is no {word_for_it} for {x['name']}", f"no {word_for_it}")
            return _fact(x[field], f"The {word_for_it} of {x['name']} is {x[field]}")

        return _with_error(r.one("find_contact", name=s["name"]), facts)

    return script


def _add_contact(with_phone: bool) -> Callable[[Slots, Recorder], Facts]:
    def script(s: Slots, r: Recorder) -> Facts:
        arguments = {k: s[k] for k in (("name", "email", "phone") if with_phone else ("name", "email"))}
        result = r.one("add_contact", **arguments)
        return _with_error(
            result,
            lambda x: _fact(f"Saved {x['added']}", f"{x['added']} is saved with the address {s['email']}", x["added"]),
        )

    return script


def _add_todo(s: Slots, r: Recorder) -> Facts:
    return _with_error(
        r.one("add_todo", item=s["item"]),
        lambda x: _fact(f"Added {x['added']}", f"{x['added']} is on your to-do list", x["added"]),
    )


def _list_todos(s: Slots, r: Recorder) -> Facts:
    todos = r.one("list_todos")["todos"]
    if not todos:
        return _fact("Nothing to do", "Your to-do list has nothing on it", "nothing")
    return _fact("; ".join(todos), f"Your to-do list has {'; '.join(todos)}", *todos)


def _complete_todo(s: Slots, r: Recorder) -> Facts:
    return _with_error(
        r.one("complete_todo", item=s["item"]),
        lambda x: _fact(f"Done: {x['done']}", f"{x['done']} is marked as done", x["done"]),
    )


def _list_files(s: Slots, r: Recorder) -> Facts:
    result = r.one("list_files", folder=s["folder"]) if s.get("folder") else r.one("list_files")
    place = f"In {s['folder']}" if s.get("folder") else "In the main folder"

    def facts(x: dict[str, Any]) -> Facts:
        if not x["files"]:
            return _fact("No files", f"{place} there are no files", "no files")
        return _fact(", ".join(x["files"]), f"{place} there is {', '.join(x['files'])}", *x["files"])

    return _with_error(result, facts)


def _read_file(s: Slots, r: Recorder) -> Facts:
    return _with_error(
        r.one("read_file", path=s["path"]), lambda x: _fact(x["content"], f"{s['path']} says: {x['content']}")
    )


def _write_file(s: Slots, r: Recorder) -> Facts:
    return _with_error(
        r.one("write_file", path=s["path"], content=s["content"]),
        lambda x: _fact(f"Written to {x['written']}", f"I have written it to {x['written']}", x["written"]),
    )


def _event_and_todo(s: Slots, r: Recorder) -> Facts:
    event = {"title": s["title"], "date": s["date"], "time": s["time"]}
    r.call(("add_event", event), ("add_todo", {"item": s["item"]}))
    return _fact(
        f"Added {s['title']} and {s['item']}",
        f"{s['title']} is in your calendar on {s['date']} at {s['time']} and {s['item']} is on your to-do list",
        s["title"],
        s["item"],
    )


def _contact_to_todo(s: Slots, r: Recorder) -> Facts:
    found = r.one("find_contact", name=s["name"])
    if "error" in found:
        return _with_error(found, lambda _: _fact("", ""))
    return _add_todo({"item": found["email"]}, r)


def _file_to_todo(s: Slots, r: Recorder) -> Facts:
    read = r.one("read_file", path=s["path"])
    if "error" in read:
        return _with_error(read, lambda _: _fact("", ""))
    return _add_todo({"item": read["content"]}, r)


@dataclass(frozen=True)
class Intent:
    """How to fill an intent's slots, how to prepare the world, what to do.

    Attributes:
        slots: draws the slots.
        script: makes the calls and returns the facts.
        prepare: calls that make the world such that the request makes sense, run before it.
        question: for an intent with something missing: (brief question, detailed question, slot to be told afterwards).
    """

    slots: Callable[[random.Random], Slots]
    script: Callable[[Slots, Recorder], Facts]
    prepare: Callable[[random.Random, Slots, Run], None] | None = None
    question: tuple[str, str, str] | None = None


def _some_events(rng: random.Random, s: Slots, run: Run) -> None:
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        run("add_event", {"title": _title(rng), "date": s["date"], "time": time_text(rng)})


def _this_event(rng: random.Random, s: Slots, run: Run) -> None:
    _some_events(rng, s, run)
    if rng.random() < 0.9:
        run("add_event", {"title": s["title"], "date": s["date"], "time": time_text(rng)})


def _this_contact(rng: random.Random, s: Slots, run: Run) -> None:
    for c in (_contact(rng), _contact(rng)):
        run("add_contact", c)
    if rng.random() < 0.9:
        known = {"name": s["name"], "email": s["email"]}
        run("add_contact", {**known, "phone": s["phone"]} if rng.random() < 0.85 else known)


def _some_todos(rng: random.Random, s: Slots, run: Run) -> None:
    for _ in range(rng.choice((0, 1, 2, 2, 3))):
        run("add_todo", {"item": _item(rng)})


def _this_todo(rng: random.Random, s: Slots, run: Run) -> None:
    _some_todos(rng, s, run)
    if rng.random() < 0.9:
        run("add_todo", {"item": s["item"]})


def _this_file(rng: random.Random, s: Slots, run: Run) -> None:
    if rng.random() < 0.9:
        run("write_file", {"path": s["path"], "content": s["content"]})


def _some_files(rng: random.Random, s: Slots, run: Run) -> None:
    folder = f"{s['folder']}/" if s.get("folder") else ""
    for _ in range(rng.choice((1, 2, 3))):
        run("write_file", {"path": f"{folder}{word(rng)}.txt", "content": phrase(rng)})


CALC: dict[str, Intent] = {
    "calculate.add": Intent(_numbers, _expressions("{a} + {b}")),
    "calculate.subtract": Intent(_numbers, _expressions("{a} - {b}")),
    "calculate.multiply": Intent(_numbers, _expressions("{a} * {b}")),
    "calculate.divide": Intent(_division, _expressions("{a} / {b}")),
    "calculate.percent": Intent(lambda r: {"a": r.randint(1, 99), "b": integer(r)}, _expressions("{a} / 100 * {b}")),
    "calculate.sqrt": Intent(lambda r: {"a": integer(r)}, _expressions("sqrt({a})")),
    "calculate.power": Intent(lambda r: {"a": r.randint(2, 60), "b": r.randint(2, 5)}, _expressions("{a} ** {b}")),
    "calculate.expression": Intent(_expression, _expressions("{expression}")),
    "convert_units": Intent(_units, _convert),
    "days_between": Intent(_dates, _days_between),
    "add_days": Intent(_shift, _add_days(1)),
    "subtract_days": Intent(_shift, _add_days(-1)),
    "weekday": Intent(lambda r: {"date": date_text(r, relative=False)}, _weekday),
    "convert_then_add": Intent(_sum_units, _convert_then_add),
    "hours_between": Intent(_dates, _hours_between),
    "missing.convert": Intent(
        _units, _convert, question=("To which unit?", "Which unit should I convert {value} {from_unit} to?", "to_unit")
    ),
    "missing.days": Intent(
        _dates, _days_between, question=("Until which date?", "Until which date should I count from {start}?", "end")
    ),
}
OFFICE: dict[str, Intent] = {
    "list_events": Intent(lambda r: {"date": date_text(r)}, _list_events, _some_events),
    "add_event": Intent(_event, _add_event),
    "delete_event": Intent(_event, _delete_event, _this_event),
    "contact_email": Intent(_contact, _contact_field("email", "e-mail address"), _this_contact),
    "contact_phone": Intent(_contact, _contact_field("phone", "phone number"), _this_contact),
    "add_contact": Intent(_contact, _add_contact(False)),
    "add_contact_phone": Intent(_contact, _add_contact(True)),
    "add_todo": Intent(lambda r: {"item": _item(r)}, _add_todo),
    "list_todos": Intent(lambda r: {}, _list_todos, _some_todos),
    "complete_todo": Intent(lambda r: {"item": _item(r)}, _complete_todo, _this_todo),
    "list_files": Intent(lambda r: {"folder": word(r)}, _list_files, _some_files),
    "list_all_files": Intent(lambda r: {}, _list_files, _some_files),
    "read_file": Intent(_path, _read_file, _this_file),
    "write_file": Intent(_path, _write_file),
    "event_and_todo": Intent(lambda r: {**_event(r), "item": _item(r)}, _event_and_todo),
    "contact_to_todo": Intent(_contact, _contact_to_todo, _this_contact),
    "file_to_todo": Intent(_path, _file_to_todo, _this_file),
    "missing.event": Intent(
        _event, _add_event, question=("At what time?", "At what time is {title} on {date}?", "time")
    ),
    "missing.contact": Intent(
        _contact,
        _add_contact(False),
        question=("What e-mail address?", "What is the e-mail address of {name}?", "email"),
    ),
}
INTENTS: dict[str, dict[str, Intent]] = {"calc": CALC, "office": OFFICE}
COMMUTATIVE = {"calculate.add", "calculate.multiply"}
