"""The SQLite file behind the tools that keep something: how it is opened, and how its texts are compared."""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from ...errors import ToolFailure
from .numbers import short

LONGEST = 500  # characters of a title, name or item
VERSION = 2  # goes up with every new table: an older database is given those it lacks
PATIENCE = 10.0  # seconds to wait for another process that is writing
# `key` is the text without differences of case and spacing: what two texts are compared by.
TABLES = (
    "CREATE TABLE IF NOT EXISTS events (key TEXT, title TEXT, date TEXT, time TEXT, PRIMARY KEY (date, time, key))",
    "CREATE TABLE IF NOT EXISTS contacts (key TEXT PRIMARY KEY, name TEXT, email TEXT, phone TEXT)",
    "CREATE TABLE IF NOT EXISTS todos (id INTEGER PRIMARY KEY, key TEXT, item TEXT, done INTEGER NOT NULL DEFAULT 0)",
    # One open item of a kind, whoever adds it, and however many do at once.
    "CREATE UNIQUE INDEX IF NOT EXISTS open_todos ON todos (key) WHERE done = 0",
    "CREATE TABLE IF NOT EXISTS inbox (id INTEGER PRIMARY KEY, key TEXT, sender TEXT, subject TEXT, body TEXT)",
    "CREATE TABLE IF NOT EXISTS sent (id INTEGER PRIMARY KEY, recipient TEXT, subject TEXT, body TEXT)",
    "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, customer TEXT, customer_key TEXT, item TEXT,"
    " quantity INTEGER, status TEXT)",
    "CREATE TABLE IF NOT EXISTS stock (key TEXT PRIMARY KEY, item TEXT, stock INTEGER, price REAL)",
)
CLOSE = 0.75  # how alike two texts must be, and
CLOSE_WORD = 0.65  # how alike each of their words: "lunch with Bob" is no slip of the pen for "lunch with Ann"
COMPARED = 2000  # texts at most


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


def near(wrong: str, known: Iterable[str]) -> str | None:
    """The known text that a misspelled one most likely means, or None."""
    wrong = text(wrong).casefold()
    texts = {text(one).casefold(): one for one in islice(known, COMPARED)}
    for candidate in difflib.get_close_matches(wrong, texts, cutoff=CLOSE):
        if _slip(wrong.split(), candidate.split()):
            return texts[candidate]
    return None


def _slip(wrong: list[str], right: list[str]) -> bool:
    """True if only letters differ, and no word as a whole."""
    if len(wrong) != len(right):
        return _alike("".join(wrong), "".join(right)) >= 0.9
    return all(_alike(one, other) >= CLOSE_WORD for one, other in zip(wrong, right, strict=True))


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def meant(wrong: str, known: Iterable[str]) -> str | None:
    """The known text that is near, or the only one that `wrong` is with a word too many or with words too few; or None.

    A model that takes a request apart at the wrong place asks for one word too many, `watch pricey`, `got milk`, or
    leaves off how a name begins or ends: `watch` for `old watch`, `street` for `street lamp`.
    """
    texts = list(islice(known, COMPARED))
    found = near(wrong, texts)
    if found is not None:
        return found
    words = text(wrong).casefold().split(" ")
    left = [one for one in texts if _cut_wrong(words, text(one).casefold().split(" "))]
    return left[0] if len(left) == 1 else None


def _cut_wrong(words: list[str], right: list[str]) -> bool:
    """Whether `words` is `right` with one more word before or behind, or without some of its first or last words."""
    if len(words) > len(right):
        return right in (words[1:], words[:-1])
    return len(words) < len(right) and words in (right[: len(words)], right[-len(words) :])


def not_found(what: str, wrong: str, known: Iterable[str], else_meant: str | None = None) -> ToolFailure:
    """The error for something that is not there: `no contact named 'Bob'`, or, where a known text may be meant,
    `no contact named Ana Bker; did you mean Ana Baker?`.

    Args:
        what: what comes before the wrong text, such as `no contact named`.
        else_meant: what is proposed where no known text is meant by its letters.
    """
    right = meant(wrong, known) or else_meant
    if right is None:
        return ToolFailure(f"{what} {short(wrong)}")
    return ToolFailure(f"{what} {text(wrong)}; did you mean {right}?")
