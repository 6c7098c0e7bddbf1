"""The tools that come with Trimtab. They act for real: on numbers, dates, a small office database and one folder.

Their names, arguments and results are fixed: models are trained on exactly these. A result never holds an id, a
counter or a clock time, so that the same question asked twice reads the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

from ..tool import Tool
from ..toolset import Toolset
from .arithmetic import arithmetic_tools
from .dates import date_tools
from .files import file_tools
from .office import agenda_tools
from .units import unit_tools

FAMILIES: dict[str, tuple[str, ...]] = {
    "calc": ("calculate", "convert_units", "days_between", "add_days", "weekday"),
    "office": (
        "list_events",
        "add_event",
        "delete_event",
        "find_contact",
        "add_contact",
        "add_todo",
        "list_todos",
        "complete_todo",
        "list_files",
        "read_file",
        "write_file",
    ),
}


def calc_tools(today: Callable[[], date] = date.today) -> list[Tool]:
    """Arithmetic, units and dates: no state. `today` is what "today" and dates without a year are read against."""
    return [*arithmetic_tools(), *unit_tools(), *date_tools(today)]


def office_tools(database: Path, root: Path, today: Callable[[], date] = date.today) -> list[Tool]:
    """Calendar, contacts and to-dos in the SQLite file `database`, text files below the folder `root`.

    Both are made when first written to. Several processes may use them at once.
    """
    return [*agenda_tools(database, today), *file_tools(root)]


def builtin_tools(home: Path, today: Callable[[], date] = date.today) -> Toolset:
    """All sixteen: the database is `home/office.db`, the files are below `home/files`."""
    return Toolset([*calc_tools(today), *office_tools(home / "office.db", home / "files", today)])
