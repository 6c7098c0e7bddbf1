"""The calendar."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date as Date
from pathlib import Path
from typing import Any

from ..tool import Tool, tool
from .database import connected, key, not_found, text
from .dates import read_date, read_time, write_date


def calendar_tools(database: Path, today: Callable[[], Date]) -> list[Tool]:
    """`list_events`, `add_event`, `delete_event`, `find_event`."""

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
                known = db.execute("SELECT title FROM events WHERE date = ? ORDER BY time, title", (day,))
                raise not_found(f"no event on {text(date)} named", title, (row[0] for row in known))
        return {"deleted": title}

    def find_event(title: str) -> dict[str, Any]:
        """Find the day and time of an event."""
        now = today().isoformat()
        with connected(database) as db:
            # The next one of that name; if all are over, the last one.
            row = db.execute(
                "SELECT title, date, time FROM events WHERE key = :key ORDER BY date < :now,"
                " CASE WHEN date < :now THEN '' ELSE date END, date DESC, time LIMIT 1",
                {"key": key(title, "title"), "now": now},
            ).fetchone()
            if row is None:
                known = db.execute("SELECT DISTINCT title FROM events ORDER BY date DESC, time")
                raise not_found("no event named", title, (one[0] for one in known))
        return {"title": row[0], "date": write_date(Date.fromisoformat(row[1])), "time": row[2]}

    return [tool(list_events), tool(changes=True)(add_event), tool(destructive=True)(delete_event), tool(find_event)]
