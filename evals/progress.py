"""How far an evaluation is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .run import Progress

EVERY_SECONDS = 10.0


@contextmanager
def shown(label: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Shows what it is told until the end of the block.

    Args:
        label: what is under way.
        quiet: show nothing.
    """
    if quiet:
        yield lambda done, total, succeeded: None
    elif sys.stderr.isatty():
        with _bar(label) as progress:
            yield progress
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    note = TextColumn("{task.fields[note]}")
    with Bar(*columns, note, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(label, total=None, note="")
        yield lambda done, total, succeeded: bar.update(row, completed=done, total=total, note=_note(succeeded))


def _lines(label: str) -> Progress:
    last = time.monotonic()

    def tell(done: int, total: int, succeeded: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= EVERY_SECONDS:
            last = now
            said = ", ".join(filter(None, (f"{done} of {total} done", _note(succeeded))))
            print(f"  {label}: {said}", file=sys.stderr, flush=True)

    return tell


def _note(succeeded: int | None) -> str:
    return "" if succeeded is None else f"{succeeded} succeeded"
