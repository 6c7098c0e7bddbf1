"""The intents of the eight task families: how their slots are drawn, which calls are right, what the answer must say.

A script makes the right calls on the real tools and returns the facts that came of them; how they are worded is the
business of `answers`, how they are asked for that of `families`.
"""

from __future__ import annotations

from . import calc, calendar, dates, files, mail, orders, tables, todos
from .common import Intent

INTENTS: dict[str, dict[str, Intent]] = {
    "calc": calc.INTENTS,
    "dates": dates.INTENTS,
    "mail": mail.INTENTS,
    "todos": todos.INTENTS,
    "calendar": calendar.INTENTS,
    "files": files.INTENTS,
    "tables": tables.INTENTS,
    "orders": orders.INTENTS,
}
