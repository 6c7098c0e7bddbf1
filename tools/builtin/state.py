"""The state behind the built-in tools as plain data: set it before a task, look at it after."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ...errors import BadInput, ToolFailure
from .database import connected, key, text
from .files import inside
from .mail import check_mail
from .orders import check_orders, make_orders, read_orders
from .tables import check_tables, make_tables, read_tables

KEYS = ("events", "contacts", "todos", "done", "files", "tables", "orders", "stock", "inbox", "sent")
MARK = ".trimtab-seeded"


def seed(home: Path, state: Mapping[str, Any]) -> None:
    """Make `home` hold exactly `state`; what a former `seed` and the tools put there is removed.

    Args:
        home: a folder of its own, as for `builtin_tools`. One that holds data no `seed` has made is refused.
        state: `events` [{"title", "date": "2026-05-12", "time": "13:00"}], `contacts` [{"name", "email", "phone"}],
            `todos` and `done` [texts], `files` {"notes/a.txt": "content"},
            `inbox` [{"from", "subject", "body"}] and `sent` [{"to", "subject", "body"}], oldest first,
            `orders` and `stock` as for `orders.make_orders`, `tables` as for `tables.make_tables`; each may be left
            out.

    Raises:
        BadInput: an unknown key, a field that is missing or wrong, or a home that is someone's.
    """
    where = f"{home}"
    unknown = sorted(set(state) - set(KEYS))
    if unknown:
        raise BadInput(f"unknown key {unknown[0]!r}", where="state", fix=f"Known keys: {', '.join(KEYS)}.")
    database, files, mark = home / "office.db", home / "files", home / MARK
    if not mark.exists() and (database.exists() or files.exists() or (home / "tables.db").exists()):
        raise BadInput("holds data that was not seeded", where=where, fix="Seed an empty folder; this one is kept.")
    events = [_event(one, f"state: events[{i}]") for i, one in enumerate(state.get("events") or ())]
    contacts = [_contact(one, f"state: contacts[{i}]") for i, one in enumerate(state.get("contacts") or ())]
    todos = [
        (*_keyed(one, f"state: {name}[{i}]"), done)
        for name, done in (("done", 1), ("todos", 0))
        for i, one in enumerate(state.get(name) or ())
    ]
    inbox = [_mail(one, "from", f"state: inbox[{i}]") for i, one in enumerate(state.get("inbox") or ())]
    sent = [_mail(one, "to", f"state: sent[{i}]") for i, one in enumerate(state.get("sent") or ())]
    orders, stock, tables = state.get("orders") or (), state.get("stock") or (), state.get("tables") or {}
    check_orders(orders, stock)
    check_tables(tables)
    home.mkdir(parents=True, exist_ok=True)
    mark.touch()
    with connected(database, write=True) as db:
        for table in ("events", "contacts", "todos", "inbox", "sent"):
            db.execute(f"DELETE FROM {table}")  # one of the names above
        db.executemany("INSERT OR IGNORE INTO events (key, title, date, time) VALUES (?, ?, ?, ?)", events)
        db.executemany("INSERT OR REPLACE INTO contacts (key, name, email, phone) VALUES (?, ?, ?, ?)", contacts)
        db.executemany("INSERT OR IGNORE INTO todos (key, item, done) VALUES (?, ?, ?)", todos)
        mails = [(key(subject, "subject"), sender, subject, body) for sender, subject, body in inbox]
        db.executemany("INSERT INTO inbox (key, sender, subject, body) VALUES (?, ?, ?, ?)", mails)
        db.executemany("INSERT INTO sent (recipient, subject, body) VALUES (?, ?, ?)", sent)
    make_orders(database, orders, stock)
    make_tables(home / "tables.db", tables)
    if files.exists():
        shutil.rmtree(files)
    files.mkdir()
    for name, content in (state.get("files") or {}).items():
        try:
            place = inside(files, name)
        except ToolFailure as error:
            raise BadInput(error.what, where="state: files") from None
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(str(content).encode())


def snapshot(home: Path) -> dict[str, Any]:
    """What `home` holds now, in the form of `seed`, with all keys.

    Events are sorted by date, time and title, contacts by name, `done` by text; to-dos and mails keep their order.
    Two snapshots of the same state are equal.
    """
    database, root = home / "office.db", home / "files"
    state: dict[str, Any] = {"events": [], "contacts": [], "todos": [], "done": [], "files": {}}
    state |= {"tables": {}, "orders": [], "stock": [], "inbox": [], "sent": []}
    if database.exists():
        with connected(database) as db:
            rows = db.execute("SELECT title, date, time FROM events ORDER BY date, time, title").fetchall()
            state["events"] = [{"title": title, "date": day, "time": time} for title, day, time in rows]
            rows = db.execute("SELECT name, email, phone FROM contacts ORDER BY name").fetchall()
            state["contacts"] = [{"name": name, "email": email, "phone": phone} for name, email, phone in rows]
            state["todos"] = [row[0] for row in db.execute("SELECT item FROM todos WHERE done = 0 ORDER BY id")]
            state["done"] = [row[0] for row in db.execute("SELECT item FROM todos WHERE done = 1 ORDER BY item")]
            for name, side, field in (("inbox", "sender", "from"), ("sent", "recipient", "to")):
                rows = db.execute(f"SELECT {side}, subject, body FROM {name} ORDER BY id").fetchall()
                state[name] = [{field: address, "subject": subject, "body": body} for address, subject, body in rows]
        state |= read_orders(database)
    state["tables"] = read_tables(home / "tables.db")
    if root.exists():
        places = sorted(place for place in root.rglob("*") if place.is_file() and not place.is_symlink())
        state["files"] = {
            place.relative_to(root).as_posix(): place.read_bytes().decode("utf-8", "replace") for place in places
        }
    return state


def _event(one: Any, where: str) -> tuple[str, str, str, str]:
    title, day, time = _fields(one, ("title", "date", "time"), where)
    if isinstance(day, date):  # YAML reads 2026-05-12 as a date
        day = day.isoformat()
    try:
        date.fromisoformat(day)
    except (TypeError, ValueError):
        raise BadInput(f"date is {day!r}", where=where, fix='Write it as "2026-05-12".') from None
    if not isinstance(time, str) or not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", time):
        # YAML reads 13:00 without quotes as the number 780.
        raise BadInput(f"time is {time!r}", where=where, fix='Write it in quotes: "13:00".')
    return (*_keyed(title, where), day, time)


def _contact(one: Any, where: str) -> tuple[str, str, str | None, str | None]:
    name, email = _fields(one, ("name", "email"), where, ("phone",))
    phone = one.get("phone")
    if not isinstance(email, str) or not isinstance(phone, str | None):
        raise BadInput("email and phone must be text", where=where)
    return (*_keyed(name, where), email, phone)


def _mail(one: Any, address: str, where: str) -> tuple[str, str, str]:
    fields = _fields(one, (address, "subject", "body"), where)
    if not all(isinstance(field, str) for field in fields):
        raise BadInput(f"{address}, subject and body must be text", where=where)
    try:
        return check_mail(*fields)
    except ToolFailure as error:
        raise BadInput(error.what, where=where) from None


def _fields(one: Any, names: tuple[str, ...], where: str, optional: tuple[str, ...] = ()) -> list[Any]:
    if not isinstance(one, Mapping):
        raise BadInput(f"is {one!r:.60}", where=where, fix=f"Give an object with {', '.join(names)}.")
    missing = [name for name in names if name not in one]
    extra = [name for name in one if name not in names + optional]
    if missing or extra:
        problem = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} is unknown"
        raise BadInput(problem, where=where, fix=f"Fields: {', '.join(names + optional)}.")
    return [one[name] for name in names]


def _keyed(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, str):
        raise BadInput(f"{value!r:.60} is not text", where=where)
    try:
        return key(value, "text"), text(value)
    except ToolFailure as error:
        raise BadInput(error.what, where=where) from None
