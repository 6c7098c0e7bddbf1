"""The family `tables`: looking into small tables, counting, adding up."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ..words import NOUNS, person, phrase, word
from .common import Facts, Intent, Prepare, Recorder, Run, Script, Slots, failed, nothing, with_error

Table = dict[str, Any]
NUMBERS = ("price", "stock", "age", "weight", "amount", "quantity", "score", "height", "width", "duration", "count")
TEXTS = ("name", "city", "color", "size", "type", "status", "country", "category", "level", "room", "code", "language")
NO_ROWS = nothing("rows", "matching rows", "matches", "entries", "records", "results")
AGGREGATES: dict[str, tuple[str, str]] = {
    "sum": ("The sum of", "Die Summe von"),
    "average": ("The average of", "Der Durchschnitt von"),
    "min": ("The lowest value of", "Der kleinste Wert von"),
    "max": ("The highest value of", "Der größte Wert von"),
}


def _table_name(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.35:
        noun = rng.choice(NOUNS)
        return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    if roll < 0.85:
        return word(rng)
    first, second = word(rng), word(rng)
    # SQLite keeps names that begin with `sqlite_` for itself.
    return f"{second}_{first}" if first.lower() == "sqlite" else f"{first}_{second}"


def _column_name(rng: random.Random, usual: tuple[str, ...]) -> str:
    return rng.choice(usual) if rng.random() < 0.4 else word(rng)


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) is not None


def _text(rng: random.Random) -> str:
    roll = rng.random()
    return person(rng) if roll < 0.3 else word(rng) if roll < 0.8 else phrase(rng, 2, 2)


def _numbers(rng: random.Random) -> Callable[[], int | float]:
    """A column's kind of numbers: whole ones, or some with decimals."""
    size, decimals = 10 ** rng.choice((1, 2, 2, 3, 3)), rng.choice((0, 0, 0, 1, 2))
    return lambda: rng.randint(1, size) if decimals == 0 else round(rng.uniform(0, size), decimals)


def _new(known: set[str], draw: Callable[[], str]) -> str:
    """A name or text that is not `known` yet, whatever the case."""
    while True:
        name = draw()
        if name.casefold() not in known:
            known.add(name.casefold())
            return name


def _make(
    rng: random.Random, *, column: str | None = None, numeric: bool = False, only: bool = False, values: Any = ()
) -> Table:
    """A table of 2 to 4 columns and 2 to 6 rows.

    Args:
        column: a column it must have, of numbers if `numeric`; `values` are texts that must be in it, 1 to 3 times.
        only: with exactly one column of numbers.
    """
    known = {column.casefold()} if column else set()
    kinds = [True, False] if only or rng.random() < 0.8 else [False, False]
    kinds += [not only and rng.random() < 0.4 for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    columns = [(_new(known, partial(_column_name, rng, NUMBERS if kind else TEXTS)), kind) for kind in kinds]
    if column:
        columns[0] = (column, numeric)
    rng.shuffle(columns)
    rows: list[list[Any]] = [[] for _ in range(rng.randint(2, 6))]
    for name, kind in columns:
        number = _numbers(rng)
        few = [_text(rng) for _ in range(rng.choice((2, 3, 6)))]
        cells: list[Any] = [number() if kind else rng.choice(few) for _ in rows]
        if name == column and values:
            shares = rng.sample(range(len(rows)), len(rows))
            low = len(rows) // len(values)
            for i, value in enumerate(values):
                held = float(value) if kind else value
                mine = shares[i * low : i * low + rng.randint(1, max(1, min(3, low)))]
                for place in mine:
                    cells[place] = held
        for row, cell in zip(rows, cells, strict=True):
            row.append(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)
    return {"columns": [name for name, _ in columns], "rows": rows}


def _world(rng: random.Random, run: Run, name: str | None, table: Table | None) -> None:
    """Make the world's tables: this one, if any, and up to two more."""
    tables: dict[str, Table] = {}
    known = {name.casefold()} if name else set()
    if name and table:
        tables[name] = table
    for _ in range(rng.choice((0, 1, 1, 2))):
        tables[_new(known, lambda: _table_name(rng))] = _make(rng)
    items = list(tables.items())
    rng.shuffle(items)
    run("make_tables", {"tables": dict(items)})


def _with_column(numeric: bool | None, *values: str, sure: bool = False) -> Prepare:
    """The table of the slots; in one world of ten the table, the column or the value is not there.

    Args:
        numeric: whether the column holds numbers; None: as the value of the slots does.
        values: the slots whose values must be in the column.
        sure: nothing is ever left out.
    """

    def prepare(rng: random.Random, s: Slots, run: Run) -> None:
        wanted = [str(s[name]) for name in values]
        kind = numeric if numeric is not None else _is_number(wanted[0])
        left_out = rng.choice(("table", "column", "value")) if not sure and rng.random() < 0.1 else ""
        column = None if left_out == "column" else s["column"]
        table = _make(rng, column=column, numeric=kind, values=() if left_out == "value" else wanted)
        _world(rng, run, s["table"], None if left_out == "table" else table)

    return prepare


def _any_tables(rng: random.Random, _: Slots, run: Run) -> None:
    if rng.random() < 0.08:
        run("make_tables", {"tables": {}})
    else:
        _world(rng, run, _table_name(rng), _make(rng))


def _this_table(only: bool) -> Prepare:
    def prepare(rng: random.Random, s: Slots, run: Run) -> None:
        _world(rng, run, s["table"], _make(rng, only=only) if rng.random() < 0.9 else None)

    return prepare


def _table(rng: random.Random) -> Slots:
    return {"table": _table_name(rng)}


def _number_column(rng: random.Random) -> Slots:
    return {"table": _table_name(rng), "column": _column_name(rng, NUMBERS)}


def _column_value(rng: random.Random) -> Slots:
    number = rng.random() < 0.2
    value = str(_numbers(rng)()) if number else _text(rng)
    column = _column_name(rng, NUMBERS if number else TEXTS)
    return {"table": _table_name(rng), "column": column, "value": value.removesuffix(".0")}


def _two_values(rng: random.Random) -> Slots:
    value = _text(rng)
    other = _new({value.casefold()}, lambda: _text(rng))
    return {"table": _table_name(rng), "column": _column_name(rng, TEXTS), "value": value, "value2": other}


def _list_tables(_: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        if not x["tables"]:
            return Facts("0 tables", "There are 0 tables", "0 Tabellen", "Es gibt 0 Tabellen", (nothing("tables"),))
        names = ", ".join(x["tables"])
        return Facts(names, f"The tables are {names}", names, f"Die Tabellen sind {names}", tuple(x["tables"]))

    return with_error(r.one("list_tables"), facts)


def _describe(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        table, columns = r.calls[-1][1]["table"], ", ".join(x["columns"])
        return Facts(columns, f"{table} has {columns}", columns, f"{table} hat {columns}", tuple(x["columns"]))

    return with_error(r.one("describe_table", table=s["table"]), facts)


def _find(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        table = r.calls[-1][1]["table"]
        if not x["rows"]:
            return Facts(
                "0 rows", f"I found 0 rows in {table}", "0 Zeilen", f"In {table} fand ich 0 Zeilen", (NO_ROWS,)
            )
        rows = "; ".join(x["rows"])
        return Facts(rows, f"In {table} I found {rows}", rows, f"In {table} fand ich {rows}", tuple(x["rows"]))

    return with_error(r.one("find_rows", table=s["table"], column=s["column"], value=s["value"]), facts)


def _count(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        table, count = r.calls[-1][1]["table"], str(x["count"])
        return Facts(
            count,
            f"The count of {s['value']} in {table} is {count}",
            count,
            f"Die Anzahl von {s['value']} in {table} ist {count}",
            (count if x["count"] else NO_ROWS,),
        )

    return with_error(r.one("count_rows", table=s["table"], column=s["column"], value=s["value"]), facts)


def _aggregated(function: str, r: Recorder) -> Callable[[dict[str, Any]], Facts]:
    def facts(x: dict[str, Any]) -> Facts:
        (english, german), column, result = AGGREGATES[function], r.calls[-1][1]["column"], str(x["result"])
        return Facts(result, f"{english} {column} is {result}", result, f"{german} {column} ist {result}", (result,))

    return facts


def _aggregate(function: str) -> Script:
    def script(s: Slots, r: Recorder) -> Facts:
        result = r.one("aggregate", table=s["table"], column=s["column"], function=function)
        return with_error(result, _aggregated(function, r))

    return script


def _both(s: Slots, r: Recorder, first: str, second: str) -> list[dict[str, Any]]:
    """Two aggregates in one message."""
    arguments = {"table": s["table"], "column": s["column"]}
    return r.call(("aggregate", {**arguments, "function": first}), ("aggregate", {**arguments, "function": second}))


def _min_and_max(s: Slots, r: Recorder) -> Facts:
    low, high = _both(s, r, "min", "max")
    if "error" in low:
        return failed(low)
    a, b = str(low["result"]), str(high["result"])
    column = s["column"]
    return Facts(
        f"{a} and {b}", f"{column} goes from {a} to {b}", f"{a} und {b}", f"{column} reicht von {a} bis {b}", (a, b)
    )


def _spread(s: Slots, r: Recorder) -> Facts:
    high, low = _both(s, r, "max", "min")
    if "error" in high:
        return failed(high)

    def facts(x: dict[str, Any]) -> Facts:
        result, column = str(x["result"]), s["column"]
        return Facts(
            result, f"The spread of {column} is {result}", result, f"Die Spanne von {column} ist {result}", (result,)
        )

    return with_error(r.one("calculate", expression=f"{high['result']} - {low['result']}"), facts)


def _compare_counts(s: Slots, r: Recorder) -> Facts:
    arguments = {"table": s["table"], "column": s["column"]}
    values = (s["value"], s["value2"])
    first, second = r.call(*(("count_rows", {**arguments, "value": value}) for value in values))
    if "error" in first or "error" in second:
        return failed(first if "error" in first else second)
    a, b = (f"{value}: {result['count']}" for value, result in zip(values, (first, second), strict=True))
    return Facts(f"{a}, {b}", f"The counts are {a} and {b}", f"{a}, {b}", f"Die Anzahlen sind {a} und {b}", (a, b))


def _only_number(s: Slots, r: Recorder) -> Facts:
    described = r.one("describe_table", table=s["table"])
    if "error" in described:
        return failed(described)
    table = r.calls[-1][1]["table"]
    column = next((c.removesuffix(": number") for c in described["columns"] if c.endswith(": number")), "number")
    return with_error(r.one("aggregate", table=table, column=column, function="sum"), _aggregated("sum", r))


INTENTS: dict[str, Intent] = {
    "list_tables": Intent(lambda rng: {}, _list_tables, _any_tables),
    "describe_table": Intent(_table, _describe, _this_table(False), typo="table"),
    "find_rows": Intent(_column_value, _find, _with_column(None, "value"), typo="column"),
    "count_rows": Intent(_column_value, _count, _with_column(None, "value"), typo="table"),
    "aggregate.sum": Intent(_number_column, _aggregate("sum"), _with_column(True), typo="column"),
    "aggregate.average": Intent(_number_column, _aggregate("average"), _with_column(True), typo="table"),
    "aggregate.min": Intent(_number_column, _aggregate("min"), _with_column(True), typo="column"),
    "aggregate.max": Intent(_number_column, _aggregate("max"), _with_column(True), typo="table"),
    "min_and_max": Intent(_number_column, _min_and_max, _with_column(True, sure=True), group="chain"),
    "spread": Intent(_number_column, _spread, _with_column(True, sure=True), group="chain"),
    "compare_counts": Intent(
        _two_values, _compare_counts, _with_column(False, "value", "value2", sure=True), group="chain"
    ),
    "only_number": Intent(_table, _only_number, _this_table(True), group="chain", typo="table"),
    "missing.table": Intent(
        _number_column,
        _aggregate("sum"),
        _with_column(True, sure=True),
        group="missing",
        question=(
            "In which table should I add up {column}?",
            "In welcher Tabelle soll ich {column} zusammenzählen?",
            "table",
        ),
    ),
    "missing.value": Intent(
        _column_value,
        _count,
        _with_column(None, "value", sure=True),
        group="missing",
        question=(
            "Which {column} should I count in {table}?",
            "Welchen Wert von {column} soll ich in {table} zählen?",
            "value",
        ),
    ),
}
