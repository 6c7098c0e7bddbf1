"""The journal: every run and every step of it, in one SQLite file that is only ever appended to.

A step is on disk before the next one begins, and the intent to act is on disk before a tool acts. So a run that is
killed at any moment can be continued from the file, by any process, and nothing that was done is forgotten.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import secrets
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import BadInput, NotFound, TrimtabError
from ..home import home
from ..models.chat import whole
from .events import RunState, apply, replay
from .limits import Budget
from .steps import Step

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, at TEXT NOT NULL, task TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    run_id TEXT NOT NULL REFERENCES runs, seq INTEGER NOT NULL, at TEXT NOT NULL, event TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
FORMAT = 1

BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
"""What SQLite says of a file that is damaged, no database, or a database with other tables."""
HELD = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""And of one that another process is writing to."""


@dataclass(frozen=True)
class RunLine:
    """One line of `trimtab runs list`. `status` is `done`, `stopped` or `open`: cut off, or still going on."""

    run_id: str
    at: str
    task: str
    status: str
    steps: int
    answer: str


class Journal:
    """The record of runs.

    Args:
        path: the SQLite file; None is `journal.db` under `home()`, `:memory:` keeps nothing.

    Raises:
        TrimtabError: the file cannot be written: a full disk, a folder without rights.
        BadInput: the file is something else than a journal of this version.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = home() / "journal.db" if path is None else Path(path)
        self._lock = threading.Lock()
        with self._errors():
            if str(path) == ":memory:":
                self._open()
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _alone_in(self.path.parent):
                    self._create()
                    self._open()

    def _create(self) -> None:
        """An empty file that nobody else reads: conversations are the user's own.

        A file that is there is not opened: closing it again would drop the locks that SQLite holds on it elsewhere in
        this process (POSIX locks belong to the process, not to the handle).
        """
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _open(self) -> None:
        self._db = sqlite3.connect(str(self.path), timeout=30, check_same_thread=False, isolation_level=None)
        self._prepare()

    def _prepare(self) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise BadInput(
                f"a journal of format {found}, this version reads {FORMAT}",
                where=str(self.path),
                fix="Use the version that wrote it, or move the file away",
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        # FULL: after a power failure too, a destructive call that was begun must be known to have begun.
        self._db.execute("PRAGMA synchronous=FULL")
        if found != FORMAT:
            self._db.executescript(f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version={FORMAT};COMMIT;")

    async def begin(self, event: dict[str, Any]) -> str:
        """Write the first event of a new run and return the run's id.

        Raises:
            TrimtabError: the journal cannot be written.
        """
        now = datetime.now(UTC)
        run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        row = (run_id, now.isoformat(timespec="milliseconds"), event["task"])
        await asyncio.to_thread(self._insert, run_id, 0, event, row)
        return run_id

    async def append(self, run_id: str, seq: int, event: dict[str, Any]) -> None:
        """Write event number `seq` of a run; it is on disk when this returns.

        Raises:
            BadInput: another process has written this event already: it continues the same run.
            TrimtabError: the journal cannot be written.
        """
        await asyncio.to_thread(self._insert, run_id, seq, event, None)

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a run in order.

        Raises:
            NotFound: no such run.
        """
        with self._errors(), self._lock:
            rows = self._db.execute("SELECT event FROM events WHERE run_id = ? ORDER BY seq", (run_id,)).fetchall()
        if not rows:
            raise NotFound(
                f"no run {run_id!r} in this journal", where=str(self.path), fix="`trimtab runs list` shows them"
            )
        return [_event(row[0]) for row in rows]

    def state(self, run_id: str) -> RunState:
        """Where a run stands. Raises as `events`."""
        state = replay(run_id, self.events(run_id))
        assert state is not None
        return state

    def started(self, run_id: str) -> str:
        """When a run began, ISO 8601. Raises NotFound."""
        with self._errors(), self._lock:
            row = self._db.execute("SELECT at FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFound(f"no run {run_id!r} in this journal", where=str(self.path))
        return str(row[0])

    def runs(self, limit: int = 50) -> list[RunLine]:
        """The latest runs, newest first.

        Args:
            limit: at most so many, from 1 on.

        Raises:
            BadInput: a limit below 1.
        """
        if limit < 1:
            raise BadInput(f"{limit} is not 1 or more", where="limit", fix="Ask for at least one run")
        most = min(limit, sys.maxsize)  # SQLite counts in 64 bits
        with self._errors(), self._lock:
            rows = self._db.execute("SELECT run_id, at, task FROM runs ORDER BY at DESC LIMIT ?", (most,)).fetchall()
        lines = []
        for run_id, at, task in rows:
            state = self.state(run_id)
            status = "done" if state.ended else "stopped" if state.stopped else "open"
            lines.append(RunLine(run_id, at, task, status, len(state.steps), state.answer))
        return lines

    @contextmanager
    def hold(self, run_id: str) -> Iterator[None]:
        """Be the only one on this machine that goes on with a run. The hold ends with the process, however it dies.

        Raises:
            BadInput: a living process, or another task of this one, is at it.
        """
        if str(self.path) == ":memory:":
            yield
            return
        lock = self.path.with_name(f"{self.path.name}.{run_id}.lock")
        with self._errors():
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(
                    f"run {run_id!r} is going on in another process", where=str(self.path), fix="Wait for it to end"
                ) from None
            yield
            lock.unlink(missing_ok=True)
        finally:
            os.close(file)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _insert(self, run_id: str, seq: int, event: dict[str, Any], run: Sequence[str] | None) -> None:
        text = json.dumps(event)
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._errors(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if run is not None:
                    self._db.execute("INSERT INTO runs VALUES (?, ?, ?)", run)
                self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (run_id, seq, at, text))
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.IntegrityError):
                    raise BadInput(
                        f"another process is continuing run {run_id!r}", where=str(self.path), fix="Wait for it to end"
                    ) from None
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise TrimtabError(
                f"the journal cannot be used ({error}), so nothing was done", where=str(self.path), fix=_remedy(error)
            ) from error


def _event(text: str) -> dict[str, Any]:
    """An event as it was written. Halves of characters, which older versions let in, could not be shown to anyone."""
    event: dict[str, Any] = json.loads(text)
    if "\\ud" in text:
        event = json.loads(whole(json.dumps(event, ensure_ascii=False)))
    return event


def _remedy(error: Exception) -> str:
    """What to do when the journal cannot be read or written."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it is detail
    if code in BROKEN:
        return "Move the file away, and a new journal begins; or set TRIMTAB_HOME to another folder"
    if code in HELD:
        return "Another process is writing to it: wait for it, then try again"
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "Free disk space, then go on with the run"
    return "Make the file and its folder readable and writable, or set TRIMTAB_HOME to a folder that is"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One opener at a time: SQLite does not wait for a lock while a new file changes to WAL, it fails at once."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Recorder:
    """Writes the events of one run and keeps its state beside them.

    Args:
        journal: where events go.
        state: the run as the journal has it now.
        budget: what the run has spent; its numbers go into every event.
    """

    def __init__(self, journal: Journal, state: RunState, budget: Budget) -> None:
        self.journal, self.state, self.budget = journal, state, budget
        self._lock = asyncio.Lock()

    async def add(self, event: dict[str, Any]) -> Step | None:
        """Write one event, then move the state on. Steps get their index here; the step is returned.

        Raises:
            BadInput, TrimtabError: as `Journal.append`; the state is then unchanged.
        """
        async with self._lock:
            event = {**event, "spent": asdict(self.budget.spent)}
            if "step" in event:
                event["step"] = {**event["step"], "index": len(self.state.steps)}
            await self.journal.append(self.state.run_id, self.state.seq, event)
            self.state = apply(self.state, event)
            return self.state.steps[-1] if "step" in event else None
