"""The to-do list."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .database import connected, key, not_found, text


def todo_tools(database: Path) -> list[Tool]:
    """`add_todo`, `list_todos`, `complete_todo`, `delete_todo`."""

    def add_todo(item: str) -> dict[str, Any]:
        """Add an item to the to-do list."""
        with connected(database, write=True) as db:
            db.execute("INSERT OR IGNORE INTO todos (key, item) VALUES (?, ?)", (key(item, "item"), text(item)))
        return {"added": item}

    def list_todos() -> dict[str, Any]:
        """Show the open to-do items."""
        with connected(database) as db:
            return {"todos": _open(db)}

    def complete_todo(item: str) -> dict[str, Any]:
        """Mark a to-do item as done."""
        with connected(database, write=True) as db:
            query = "UPDATE todos SET done = 1 WHERE key = ? AND done = 0"
            if not db.execute(query, (key(item, "item"),)).rowcount:
                raise _no_such(db, item)
        return {"done": item}

    def delete_todo(item: str) -> dict[str, Any]:
        """Delete an item from the to-do list."""
        with connected(database, write=True) as db:
            query = "DELETE FROM todos WHERE key = ? AND done = 0"
            if not db.execute(query, (key(item, "item"),)).rowcount:
                raise _no_such(db, item)
        return {"deleted": item}

    return [
        tool(changes=True)(add_todo),
        tool(list_todos),
        tool(changes=True)(complete_todo),
        tool(destructive=True)(delete_todo),
    ]


def _open(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT item FROM todos WHERE done = 0 ORDER BY id")]


def _no_such(db: sqlite3.Connection, item: str) -> ToolFailure:
    return not_found("no open to-do", item, _open(db))
