"""What an evaluation leaves: a record a run, on disk as soon as the run is over.

The record file is JSON lines: a header that says what was evaluated, then one record a run. Lines are only appended, in
one write each, so a killed evaluation loses at most the runs under way and goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..models.chat import Usage
from .cost import Spent
from .energy import EnergyMeter


@dataclass(frozen=True)
class Arm:
    """What is evaluated.

    Attributes:
        label: the name in tables.
        profile: asked for at every step; None is the bare model, or whatever the router chooses when `routed`.
        stand_in: the model takes the large model's place offline.
        concurrency: tasks at once.
        dtype: the number format that the engine computes in; None where it does not say.
        here: all its models compute on this machine's processor, so that the energy counted here is theirs; False where
            that is not known.
    """

    label: str
    model: str
    engine: str
    profile: str | None = None
    routed: bool = False
    large: str | None = None
    stand_in: bool = False
    concurrency: int = 4
    dtype: str | None = None
    here: bool = False


@dataclass(frozen=True)
class Record:
    """One run of one task.

    Attributes:
        success: None where the infrastructure failed.
        code, reason: of the failure (see `score`).
        calls: (tool, arguments) as the model wrote them.
        receipts: what was applied to each model call, as the engine says; empty where it does not say.
        escalated: a step went to the large model.
    """

    task: str
    family: str
    trial: int
    ask: str
    success: bool | None
    code: str | None
    reason: str | None
    answer: str | None
    calls: tuple[tuple[str, str], ...] = ()
    steps: int = 0
    seconds: float = 0.0
    spent: tuple[Spent, ...] = ()
    receipts: tuple[Mapping[str, Any], ...] = ()
    escalated: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The reverse of `to_json`."""
        spent = tuple(Spent(s["model"], Usage(**s["usage"]), s["seconds"]) for s in data["spent"])
        calls = tuple((name, arguments) for name, arguments in data["calls"])
        return cls(**{**data, "spent": spent, "calls": calls, "receipts": tuple(data["receipts"])})


@dataclass(frozen=True)
class Evaluation:
    """One arm on one suite.

    Attributes:
        records: in the suite's order.
        wall_seconds: time in which tasks ran, over all sessions of a continued evaluation.
        joules: of this machine over the same time; None where it could not be measured throughout, or where the models
            compute elsewhere.
    """

    suite: str
    suite_sha256: str
    arm: Arm
    records: tuple[Record, ...]
    wall_seconds: float
    joules: float | None


class RecordLog:
    """The records of one evaluation: those that the file already held, then those added.

    Args:
        path: the record file; None keeps nothing. Broken runs in it count as not run, all others are kept.
        header: what is evaluated; a file with another header is refused.
        metered: count this machine's energy.

    Raises:
        BadInput: the file is of another evaluation, or malformed; names the line.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], *, metered: bool = True) -> None:
        self.path = path
        self.done: dict[tuple[str, int], Record] = {}
        self._earlier: tuple[float, float | None] = (0.0, 0.0)
        self._file: int | None = None
        if path is not None:
            lines = _whole_lines(path)
            if lines:
                self._read(lines, json.loads(json.dumps(header)))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if not lines:
                self._write(header)
        self._start, self._meter = time.monotonic(), EnergyMeter() if metered else None
        self._session = f"{os.getpid()}-{time.time_ns()}"
        self._now: tuple[float, float | None] = (0.0, 0.0)

    @property
    def wall_seconds(self) -> float:
        """From the start of each session to its last record, over all sessions."""
        return self._earlier[0] + self._now[0]

    @property
    def joules(self) -> float | None:
        """Energy over the same time; None if it could not be measured throughout."""
        before, now = self._earlier[1], self._now[1]
        return None if before is None or now is None else before + now

    def add(self, record: Record) -> None:
        """Keep a record, on disk before this returns.

        Raises:
            OSError: the disk is full.
        """
        self._now = time.monotonic() - self._start, None if self._meter is None else self._meter.joules()
        row = {"session": self._session, "elapsed": self._now[0], "joules": self._now[1], "record": record.to_json()}
        self._write(row)
        self.done[record.task, record.trial] = record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, lines: list[str], header: Mapping[str, Any]) -> None:
        first = _parse(self.path, 1, lines[0])
        differ = [key for key in header if first.get(key) != header[key]]
        if differ:
            raise BadInput(
                f"this file records another evaluation: its {', '.join(differ)} differs",
                where=str(self.path),
                fix="Name another file, or ask for the same suite, model and profile again, in the same number format.",
            )
        sessions: dict[str, tuple[float, float | None]] = {}
        for number, line in enumerate(lines[1:], 2):
            row = _parse(self.path, number, line)
            try:
                # Seconds and joules count up within a session, so its last line holds its total.
                sessions[row["session"]] = float(row["elapsed"]), row["joules"]
                record = Record.from_json(row["record"])
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(f"not a record ({error!r})", where=f"{self.path}: line {number}") from None
            self.done.pop((record.task, record.trial), None)
            if record.success is not None:
                self.done[record.task, record.trial] = record
        energies = [joules for _, joules in sessions.values()]
        known = [joules for joules in energies if joules is not None]
        total = sum(known) if len(known) == len(energies) else None
        self._earlier = sum(seconds for seconds, _ in sessions.values()), total

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        raw = (json.dumps(row) + "\n").encode()
        # One write to a file opened for appending: a reader sees the whole line or none of it.
        written = os.write(self._file, raw)
        if written != len(raw):
            raise OSError(f"only {written} of {len(raw)} bytes were written to {self.path}: is the disk full?")
        os.fsync(self._file)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a record file; a torn last line, left by a crash, is cut off the file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        os.truncate(path, len(whole))
    return whole.decode(errors="replace").split("\n")[:-1]  # splitlines would also cut at other separators


def _parse(path: Path | None, number: int, line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}", where=f"{path}: line {number}") from None
    if not isinstance(data, dict):
        raise BadInput("not a record", where=f"{path}: line {number}")
    return data
