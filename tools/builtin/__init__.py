"""The tools that come with Trimtab. They act for real: on numbers, dates, a small office database and one folder.

Their names, arguments and results are fixed: models are trained on exactly these. A result never holds an id, a
counter or a clock time, so that the same question asked twice reads the same; the number of an order is the exception.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

from ..tool import Tool
from ..toolset import Toolset
from .arithmetic import arithmetic_tools
from .calendar import calendar_tools
from .contacts import contact_tools
from .dates import date_tools
from .files import file_tools
from .mail import mail_tools
from .orders import order_tools
from .tables import tables_tools
from .todos import todo_tools
from .units import unit_tools

FAMILIES: dict[str, tuple[str, ...]] = {
    "calc": ("calculate", "convert_units"),
    "dates": ("days_between", "add_days", "weekday", "calculate"),
    "calendar": ("list_events", "add_event", "delete_event", "find_event", "add_todo"),
    "mail": ("find_contact", "add_contact", "list_mails", "read_mail", "send_mail", "delete_mail"),
    "files": ("list_files", "read_file", "write_file", "delete_file", "add_todo"),
    "todos": ("add_todo", "list_todos", "complete_todo", "delete_todo", "find_contact"),
    "tables": ("list_tables", "describe_table", "find_rows", "count_rows", "aggregate", "calculate"),
    "orders": (
        "list_orders",
        "order_status",
        "check_stock",
        "place_order",
        "cancel_order",
        "refund_order",
        "restock",
        "calculate",
    ),
}
"""What a model is offered for a kind of task; a tool may serve several."""


def calc_tools(today: Callable[[], date] = date.today) -> list[Tool]:
    """Arithmetic, units and dates: no state. `today` is what "today" and dates without a year are read against."""
    return [*arithmetic_tools(), *unit_tools(), *date_tools(today)]


def builtin_tools(home: Path, today: Callable[[], date] = date.today) -> Toolset:
    """All of them: the database is `home/office.db`, the tables are in `home/tables.db`, the files below `home/files`.

    Each is made when first written to. Several processes may use them at once.
    """
    database = home / "office.db"
    return Toolset(
        [
            *calc_tools(today),
            *calendar_tools(database, today),
            *contact_tools(database),
            *mail_tools(database),
            *todo_tools(database),
            *file_tools(home / "files"),
            *tables_tools(home / "tables.db"),
            *order_tools(database),
        ]
    )
