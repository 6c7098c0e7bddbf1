"""Small tables in a SQLite file of their own, to be looked at: nothing a model says can change them."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...errors import BadInput, ToolFailure
from ..tool import Tool, tool
from .database import PATIENCE, key, not_found, text
from .numbers import finite, short, tidy

MOST_TABLES = 100
MOST_COLUMNS = 50
MOST_ROWS = 10_000
MOST_SHOWN = 5  # rows in one result
LONGEST_NAME = 60  # characters of the name of a table or column
LONGEST_CELL = 500
LONGEST_SHOWN = 80  # characters of a cell in a result
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")


class _Column(NamedTuple):
    name: str
    number: bool


def tables_tools(database: Path) -> list[Tool]:
    """`list_tables`, `describe_table`, `find_rows`, `count_rows`, `aggregate`, on the SQLite file `database`."""

    def list_tables() -> dict[str, Any]:
        """List the tables."""
        with _reading(database) as db:
            return {"tables": _tables(db)}

    def describe_table(table: str) -> dict[str, Any]:
        """Show a table's columns and their types."""
        with _reading(database) as db:
            columns = _columns(db, _table(db, table))
        return {"columns": [f"{column.name}: {'number' if column.number else 'text'}" for column in columns]}

    def find_rows(table: str, column: str, value: str) -> dict[str, Any]:
        """Find rows with a value in a column."""
        with _reading(database) as db:
            name, where, wanted = _condition(db, table, column, value)
            rows = db.execute(f"SELECT * FROM {_quoted(name)} WHERE {where} ORDER BY rowid", (wanted,)).fetchall()
        shown: dict[str, Any] = {"rows": [", ".join(_shown(cell) for cell in row) for row in rows[:MOST_SHOWN]]}
        return {**shown, "more": len(rows) - MOST_SHOWN} if len(rows) > MOST_SHOWN else shown

    def count_rows(table: str, column: str, value: str) -> dict[str, Any]:
        """Count rows with a value in a column."""
        with _reading(database) as db:
            name, where, wanted = _condition(db, table, column, value)
            return {"count": db.execute(f"SELECT count(*) FROM {_quoted(name)} WHERE {where}", (wanted,)).fetchone()[0]}

    def aggregate(table: str, column: str, function: Literal["sum", "average", "min", "max"]) -> dict[str, Any]:
        """Work out a number over a column."""
        with _reading(database) as db:
            name = _table(db, table, column)
            found = _column(db, name, column)
            if not found.number:
                raise ToolFailure(f"{found.name} holds text, not numbers")
            cells = [row[0] for row in db.execute(f"SELECT {_quoted(found.name)} FROM {_quoted(name)}")]
        values = [cell for cell in cells if isinstance(cell, int | float)]
        if not values:
            raise ToolFailure(f"{found.name} holds no numbers")
        total = sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)
        results = {"sum": total, "average": total / len(values), "min": min(values), "max": max(values)}
        return {"result": tidy(results[function])}

    return [tool(list_tables), tool(describe_table), tool(find_rows), tool(count_rows), tool(aggregate)]


def make_tables(database: Path, tables: Mapping[str, Any]) -> None:
    """Make `database` hold exactly these tables: name -> {"columns": [names], "rows": [[cells]]}.

    A column whose cells are all numbers (or null) holds numbers, any other one text.

    Raises:
        BadInput: a name, column, row or cell that a table cannot have; nothing is changed then.
        ToolFailure: the file cannot be written.
    """
    checked = check_tables(tables)
    if not checked and not database.exists():
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")  # what is lost in a power cut can be seeded again
            db.execute("BEGIN IMMEDIATE")
            try:
                for name in _tables(db):
                    db.execute(f"DROP TABLE {_quoted(name)}")
                for name, (columns, rows) in checked.items():
                    types = ", ".join(f"{_quoted(c.name)} {'NUMERIC' if c.number else 'TEXT'}" for c in columns)
                    db.execute(f"CREATE TABLE {_quoted(name)} ({types})")
                    places = ", ".join("?" for _ in columns)
                    db.executemany(f"INSERT INTO {_quoted(name)} VALUES ({places})", rows)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise ToolFailure(f"{database.name} cannot be used: {error}") from None


def read_tables(database: Path) -> dict[str, Any]:
    """What `database` holds, in the form of `make_tables`, by name; nothing if there is no such file."""
    with _reading(database) as db:
        return {
            name: {
                "columns": [column.name for column in _columns(db, name)],
                "rows": [list(row) for row in db.execute(f"SELECT * FROM {_quoted(name)} ORDER BY rowid")],
            }
            for name in _tables(db)
        }


def check_tables(tables: Any) -> dict[str, tuple[list[_Column], list[list[Any]]]]:
    """Tables as they are stored: name -> (columns, rows). Raises `BadInput` for what a table cannot be."""
    if not isinstance(tables, Mapping) or len(tables) > MOST_TABLES:
        raise BadInput(f"is not an object of at most {MOST_TABLES} tables", where="state: tables")
    names = _names(list(tables), "state: tables")
    return {name: _checked(name, table) for name, table in zip(names, tables.values(), strict=True)}


def _checked(name: str, table: Any) -> tuple[list[_Column], list[list[Any]]]:
    where = f"state: tables: {name}"
    if not isinstance(table, Mapping) or set(table) != {"columns", "rows"}:
        raise BadInput("is not a table", where=where, fix='Give {"columns": [names], "rows": [[cells]]}.')
    columns, rows = table["columns"], table["rows"]
    if not isinstance(columns, list | tuple) or not 1 <= len(columns) <= MOST_COLUMNS:
        raise BadInput(f"needs a list of 1 to {MOST_COLUMNS} columns", where=where)
    if not isinstance(rows, list | tuple) or len(rows) > MOST_ROWS:
        raise BadInput(f"needs a list of at most {MOST_ROWS} rows", where=where)
    for i, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != len(columns):
            raise BadInput(f"row {i} does not have {len(columns)} cells", where=where)
    names = _names(columns, where)
    numbers = [_is_number(name, [row[i] for row in rows], where) for i, name in enumerate(names)]
    stored = [[text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return [_Column(*column) for column in zip(names, numbers, strict=True)], stored


def _is_number(name: str, cells: list[Any], where: str) -> bool:
    """Whether a column holds numbers; it may not hold both."""
    known = [cell for cell in cells if cell is not None]
    for cell in known:
        if isinstance(cell, str):
            if len(cell) > LONGEST_CELL or "\0" in cell or not _encodes(cell):
                raise BadInput(f"{name}: {cell!r:.60} is no text of at most {LONGEST_CELL} characters", where=where)
        elif isinstance(cell, bool) or not isinstance(cell, int | float) or not finite(cell) or abs(cell) > 2**53:
            raise BadInput(f"{name}: {cell!r:.60} is neither a text nor a number", where=where)
    kinds = {isinstance(cell, str) for cell in known}
    if len(kinds) > 1:
        raise BadInput(f"{name} holds texts and numbers", where=where, fix="Put texts in quotes, or no number.")
    return kinds == {False}


def _names(names: list[Any] | tuple[Any, ...], where: str) -> list[str]:
    known: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not text(name) or len(name) > LONGEST_NAME or not name.isprintable():
            raise BadInput(f"{name!r:.60} is no name", where=where)
        if text(name).lower().startswith("sqlite_"):
            raise BadInput(f"{name!r} is SQLite's own", where=where)
        known[text(name).casefold()] = text(name)
    if len(known) < len(names):
        raise BadInput("the same name twice", where=where)
    return list(known.values())


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that can only read; an empty database where there is no file.

    Raises:
        ToolFailure: SQLite says no.
    """
    try:
        where = f"{database.absolute().as_uri()}?mode=ro" if database.exists() else ":memory:"
        with closing(sqlite3.connect(where, timeout=PATIENCE, isolation_level=None, uri=True)) as db:
            db.create_function("same", 2, _same, deterministic=True)
            db.execute("BEGIN")  # the schema and the rows of one moment
            yield db
    except (sqlite3.Error, OSError) as error:
        raise ToolFailure(f"{database.name} cannot be used: {error}") from None


def _tables(db: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY name"
    return [row[0] for row in db.execute(query)]


def _columns(db: sqlite3.Connection, table: str) -> list[_Column]:
    rows = db.execute("SELECT name, type FROM pragma_table_info(?) ORDER BY cid", (table,))
    return [_Column(name, not re.search("CHAR|CLOB|TEXT|BLOB|^$", kind.upper())) for name, kind in rows]


def _table(db: sqlite3.Connection, name: str, column: str | None = None) -> str:
    """The table that is meant, as the schema spells it; `column` is one that it should have.

    Where there is no such table, the one is proposed that `column` names, if that has `name` as a column: the two were
    mistaken for each other. If `name` is `column` once more, the only table that has it is.
    """
    tables = _tables(db)

    def fitting() -> list[str]:
        if column is None:
            return []
        having = [one for one in tables if _named(name, [c.name for c in _columns(db, one)], "table") is not None]
        said_twice = key(name, "table") == key(column, "column")
        return having if said_twice else [one for one in having if key(one, "table") == key(column, "column")]

    return _known(name, tables, "table", fitting)


def _column(db: sqlite3.Connection, table: str, name: str, value: str | None = None) -> _Column:
    """The column that is meant; `value` is one that it should hold, None where it should hold numbers.

    Where there is no such column, the only one that holds the value is proposed; in place of the table's own name, the
    only one with numbers.
    """
    columns = {column.name: column for column in _columns(db, table)}

    def fitting() -> list[str]:
        if value is not None:
            return [c.name for c in columns.values() if _holds(db, table, c, value)]
        return [c.name for c in columns.values() if c.number] if key(name, "column") == key(table, "table") else []

    return columns[_known(name, list(columns), "column", fitting)]


def _holds(db: sqlite3.Connection, table: str, column: _Column, value: str) -> bool:
    wanted = _wanted(column, value)
    if wanted is None:
        return False
    query = f"SELECT 1 FROM {_quoted(table)} WHERE same({_quoted(column.name)}, ?) LIMIT 1"
    return db.execute(query, (wanted,)).fetchone() is not None


def _named(name: str, known: list[str], what: str) -> str | None:
    """`name` as it stands in the schema, or None."""
    wanted = key(name, what)
    return next((one for one in known if key(one, what) == wanted), None)


def _known(name: str, known: list[str], what: str, fitting: Callable[[], list[str]]) -> str:
    """`name` as it stands in the schema: no other text is ever put into a query. Where it does not stand there and none
    of the known is near to it, the one that is `fitting` is proposed, if it is the only one."""
    found = _named(name, known, what)
    if found is None:
        proposed = fitting()
        raise not_found(f"no {what} named", name, known, proposed[0] if len(proposed) == 1 else None)
    return found


def _condition(db: sqlite3.Connection, table: str, column: str, value: str) -> tuple[str, str, str | float]:
    """Table, condition and bound value of `column = value`."""
    if len(value) > LONGEST_CELL or not _encodes(value):
        raise ToolFailure(f"the value must be a text of at most {LONGEST_CELL} characters")
    name = _table(db, table, column)
    found = _column(db, name, column, value)
    wanted = _wanted(found, value)
    if wanted is None:
        raise ToolFailure(f"{found.name} holds numbers, not {short(value)}")
    return name, f"same({_quoted(found.name)}, ?)", wanted


def _wanted(column: _Column, value: str) -> str | float | None:
    """A value as it is compared with a column's cells; None where these are numbers and it is none."""
    if not column.number:
        return text(value).casefold()
    number = value.strip()
    return float(number) if _NUMBER.fullmatch(number) else None


def _same(cell: Any, wanted: str | float) -> bool:
    if isinstance(cell, str) and isinstance(wanted, str):
        return text(cell).casefold() == wanted
    return isinstance(cell, int | float) and isinstance(wanted, float) and math.isclose(cell, wanted, rel_tol=1e-12)


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int | float):
        return str(tidy(cell))
    line = text(str(cell))
    return line if len(line) <= LONGEST_SHOWN else f"{line[: LONGEST_SHOWN - 3]}..."


def _quoted(name: str) -> str:
    """A name from the schema as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
