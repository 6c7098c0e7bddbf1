"""Calendar, contacts and to-dos in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date as Date
from pathlib import Path
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .dates import read_date, read_time
from .numbers import short

LONGEST = 500  # characters of a title, name or item
VERSION = 1
PATIENCE = 10.0  # seconds to wait for another process that is writing
# `key` is the text without differences of case and spacing: what two texts are compared by.
TABLES = (
    "CREATE TABLE IF NOT EXISTS events (key TEXT, title TEXT, date TEXT, time TEXT, PRIMARY KEY (date, time, key))",
    "CREATE TABLE IF NOT EXISTS contacts (key TEXT PRIMARY KEY, name TEXT, email TEXT, phone TEXT)",
    "CREATE TABLE IF NOT EXISTS todos (id INTEGER PRIMARY KEY, key TEXT, item TEXT, done INTEGER NOT NULL DEFAULT 0)",
    # One open item of a kind, whoever adds it, and however many do at once.
    "CREATE UNIQUE INDEX IF NOT EXISTS open_todos ON todos (key) WHERE done = 0",
)


def agenda_tools(database: Path, today: Callable[[], Date]) -> list[Tool]:
    """The eight tools of calendar, contacts and to-dos, on `database`."""

    def list_events(date: str) -> dict[str, Any]:
        """List the calendar events of a day."""
        day = read_date(date, today()).isoformat()
        with connected(database) as db:
            rows = db.execute("SELECT time, title FROM events WHERE date = ? ORDER BY time, title", (day,)).fetchall()
        return {"events": [f"{time} {title}" for time, title in rows]}

    def add_event(title: str, date: str, time: str) -> dict[str, Any]:
        """Add an event to the calendar."""
        row = (key(title, "title"), text(title), read_date(date, today()).isoformat(), read_time(time))
        with connected(database, write=True) as db:
            db.execute("INSERT OR IGNORE INTO events (key, title, date, time) VALUES (?, ?, ?, ?)", row)
        return {"added": title, "date": date, "time": time}

    def delete_event(title: str, date: str) -> dict[str, Any]:
        """Delete an event from the calendar."""
        day = read_date(date, today()).isoformat()
        with connected(database, write=True) as db:
            gone = db.execute("DELETE FROM events WHERE key = ? AND date = ?", (key(title, "title"), day)).rowcount
        if not gone:
            raise ToolFailure(f"no event {short(title)} on {date}")
        return {"deleted": title}

    def find_contact(name: str) -> dict[str, Any]:
        """Look up a contact by name."""
        with connected(database) as db:
            query = "SELECT name, email, phone FROM contacts WHERE key = ?"
            row = db.execute(query, (key(name, "name"),)).fetchone()
        if row is None:
            raise ToolFailure(f"no contact named {short(name)}")
        return {"name": row[0], "email": row[1], "phone": row[2]}

    def add_contact(name: str, email: str, phone: str | None = None) -> dict[str, Any]:
        """Save a new contact."""
        if "@" not in email:
            raise ToolFailure(f"{short(email)} is not an email address")
        row = (key(name, "name"), text(name), text(email), None if phone is None else text(phone))
        with connected(database, write=True) as db:
            # A phone number that is not given is not known, which is no reason to forget the one on file.
            db.execute(
                "INSERT INTO contacts (key, name, email, phone) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
                " name = excluded.name, email = excluded.email, phone = coalesce(excluded.phone, phone)",
                row,
            )
        return {"added": name}

    def add_todo(item: str) -> dict[str, Any]:
        """Add an item to the to-do list."""
        with connected(database, write=True) as db:
            db.execute("INSERT OR IGNORE INTO todos (key, item) VALUES (?, ?)", (key(item, "item"), text(item)))
        return {"added": item}

    def list_todos() -> dict[str, Any]:
        """Show the open to-do items."""
        with connected(database) as db:
            return {"todos": [row[0] for row in db.execute("SELECT item FROM todos WHERE done = 0 ORDER BY id")]}

    def complete_todo(item: str) -> dict[str, Any]:
        """Mark a to-do item as done."""
        with connected(database, write=True) as db:
            query = "UPDATE todos SET done = 1 WHERE key = ? AND done = 0"
            if not db.execute(query, (key(item, "item"),)).rowcount:
                raise ToolFailure(f"no open to-do {short(item)}")
        return {"done": item}

    return [
        tool(list_events),
        tool(add_event),
        tool(destructive=True)(delete_event),
        tool(find_contact),
        tool(add_contact),
        tool(add_todo),
        tool(list_todos),
        tool(complete_todo),
    ]


@contextmanager
def connected(database: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """One transaction on the database, made if it is not there. Several threads and processes may hold one each.

    A connection lives for one call: it then never crosses a thread or a fork, and a file that was replaced meanwhile
    is noticed. Opening takes about a tenth of a millisecond. (For connections that short SQLite's plain journal is
    three times as fast as its write-ahead log, and leaves one file.)

    Raises:
        ToolFailure: SQLite says no: a full disk, a file that is no database, one locked for longer than 10 seconds.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise ToolFailure(f"{database.name} was made by a newer Trimtab")
            if version < VERSION:
                _create(db)
            # At once for writing: a transaction that begins by reading and then writes can be refused half-way.
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise ToolFailure(f"{database.name} cannot be used: {error}") from None


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    for statement in TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION:d}")
    db.execute("COMMIT")


def text(value: str) -> str:
    """A text as it is stored: on one line."""
    return " ".join(value.split())


def key(value: str, what: str) -> str:
    """What two texts are compared by. Raises `ToolFailure` if there is no text, or too much."""
    words = text(value)
    if not words or len(words) > LONGEST or "\0" in words:
        raise ToolFailure(f"{what} must have 1 to {LONGEST} characters")
    return words.casefold()
