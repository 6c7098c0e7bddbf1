"""Mail: an inbox to read, and mail to send. Nothing leaves the machine: what is sent is kept in the database."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .database import connected, key, not_found, text
from .numbers import short

LARGEST = 10_000  # characters of a body
ADDRESS = re.compile(r"[^@\s\0,;<>]+@[^@\s\0,;<>]+")
LONGEST_ADDRESS = 254


def mail_tools(database: Path) -> list[Tool]:
    """`list_mails`, `read_mail`, `send_mail`, `delete_mail`."""

    def list_mails(sender: str | None = None) -> dict[str, Any]:
        """List the mails in the inbox."""
        with connected(database) as db:
            if sender is None:
                rows = db.execute("SELECT subject FROM inbox ORDER BY id")
            else:
                query = "SELECT subject FROM inbox WHERE sender = ? COLLATE NOCASE ORDER BY id"
                rows = db.execute(query, (_sender(db, sender),))
            return {"mails": [row[0] for row in rows]}

    def read_mail(subject: str) -> dict[str, Any]:
        """Read a mail in the inbox."""
        with connected(database) as db:
            row = db.execute("SELECT sender, subject, body FROM inbox WHERE id = ?", (_find(db, subject),)).fetchone()
        return {"from": row[0], "subject": row[1], "body": row[2]}

    def send_mail(to: str, subject: str, body: str) -> dict[str, Any]:
        """Send a mail to an address."""
        row = check_mail(to, subject, body)
        with connected(database, write=True) as db:
            db.execute("INSERT INTO sent (recipient, subject, body) VALUES (?, ?, ?)", row)
        return {"sent": subject, "to": to}

    def delete_mail(subject: str) -> dict[str, Any]:
        """Delete a mail from the inbox."""
        with connected(database, write=True) as db:
            db.execute("DELETE FROM inbox WHERE id = ?", (_find(db, subject),))
        return {"deleted": subject}

    return [tool(list_mails), tool(read_mail), tool(changes=True)(send_mail), tool(destructive=True)(delete_mail)]


def receive(database: Path, sender: str, subject: str, body: str) -> None:
    """Put a mail into the inbox. Raises `ToolFailure` as `check_mail` does."""
    address, title, content = check_mail(sender, subject, body)
    with connected(database, write=True) as db:
        query = "INSERT INTO inbox (key, sender, subject, body) VALUES (?, ?, ?, ?)"
        db.execute(query, (key(title, "subject"), address, title, content))


def check_mail(address: str, subject: str, body: str) -> tuple[str, str, str]:
    """A mail as it is stored.

    Raises:
        ToolFailure: an address that is none; a subject or body that is empty, too long or no text.
    """
    place = address.strip()
    if not ADDRESS.fullmatch(place) or len(place) > LONGEST_ADDRESS:
        raise ToolFailure(f"{short(address)} is not an email address")
    key(subject, "subject")
    if not body.strip() or len(body) > LARGEST or "\0" in body:
        raise ToolFailure(f"body must have 1 to {LARGEST} characters")
    try:
        f"{place}{subject}{body}".encode()
    except UnicodeEncodeError:
        raise ToolFailure("the mail holds half of a Unicode character") from None
    return place, text(subject), body


def _sender(db: sqlite3.Connection, sender: str) -> str:
    """The address that a sender is meant by: an address, or a contact's name."""
    row = db.execute("SELECT email FROM contacts WHERE key = ?", (key(sender, "sender"),)).fetchone()
    if row is not None:
        return str(row[0])
    if "@" not in sender:
        known = db.execute("SELECT name FROM contacts ORDER BY key")
        raise not_found("no contact named", sender, (one[0] for one in known))
    return sender.strip()


def _find(db: sqlite3.Connection, subject: str) -> int:
    """The newest mail with this subject."""
    query = "SELECT max(id) FROM inbox WHERE key = ?"
    found = db.execute(query, (key(subject, "subject"),)).fetchone()[0]
    if found is None:
        known = db.execute("SELECT subject FROM inbox ORDER BY id DESC")
        raise not_found("no mail about", subject, (one[0] for one in known))
    return int(found)
