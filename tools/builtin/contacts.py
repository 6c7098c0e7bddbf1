"""Contacts: looked up and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .database import connected, key, not_found, text
from .numbers import short


def contact_tools(database: Path) -> list[Tool]:
    """`find_contact`, `add_contact`."""

    def find_contact(name: str) -> dict[str, Any]:
        """Look up a contact by name."""
        with connected(database) as db:
            query = "SELECT name, email, phone FROM contacts WHERE key = ?"
            row = db.execute(query, (key(name, "name"),)).fetchone()
            if row is None:
                known = db.execute("SELECT name FROM contacts ORDER BY key")
                raise not_found("no contact named", name, (one[0] for one in known))
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

    return [tool(find_contact), tool(changes=True)(add_contact)]
