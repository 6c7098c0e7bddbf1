"""Tables: what they answer, how a wrong name is mended, and what hostile names and values cannot do."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.tools import ToolFailure, Toolset
from trimtab.tools.builtin.state import seed, snapshot
from trimtab.tools.builtin.tables import make_tables, read_tables, tables_tools

SUGGESTION = re.compile(r"(?P<what>.+); did you mean (?P<right>.+)\?")
TABLES: dict[str, Any] = {
    "cities": {
        "columns": ["name", "country", "price", "size"],
        "rows": [["Oslo", "Norway", 12, 1.5], ["Bergen", "norway", 7.25, None], ["Rome", None, 12, 3]],
    },
    'odd "name"; --': {"columns": ['a"b', "select"], "rows": [["x' OR 1=1 --", 1]]},
    "empty": {"columns": ["one"], "rows": []},
    "boats": {"columns": ["captain", "length"], "rows": [["Rome", 12], ["Mia", 12]]},
}
HOSTILE = (
    'cities"; DROP TABLE cities; --',
    "cities' OR '1'='1",
    "sqlite_master",
    "cities UNION SELECT 1",
    "[cities]",
    "\ud800",
    "%",
    "citie_",
    "x" * 400,
)


class Tables:
    """The tools on a file of their own, called by name."""

    def __init__(self, database: Path) -> None:
        self.tools = Toolset(tables_tools(database))

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        return self.tools[name].function(**arguments)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    make_tables(tmp_path / "tables.db", TABLES)
    return tmp_path / "tables.db"


@pytest.fixture
def tables(database: Path) -> Tables:
    return Tables(database)


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "none.db")
    assert list(tables.tools) == ["list_tables", "describe_table", "find_rows", "count_rows", "aggregate"]
    assert not any(tool.destructive for tool in tables.tools.values())
    assert tables("list_tables") == {"tables": []}
    with pytest.raises(ToolFailure, match="no table named 'cities'"):
        tables("describe_table", table="cities")
    make_tables(tmp_path / "none.db", {})
    assert not any(tmp_path.iterdir())


def test_what_they_answer(tables: Tables) -> None:
    assert tables("list_tables") == {"tables": ["boats", "cities", "empty", 'odd "name"; --']}
    columns = ["name: text", "country: text", "price: number", "size: number"]
    assert tables("describe_table", table=" Cities ") == {"columns": columns}
    norway = {"table": "cities", "column": "COUNTRY", "value": "NORWAY"}
    assert tables("find_rows", **norway) == {"rows": ["Oslo, Norway, 12, 1.5", "Bergen, norway, 7.25, -"]}
    assert tables("count_rows", **norway) == {"count": 2}
    for twelve in ("12", "12.0", " 12.00 ", "+12"):
        assert tables("count_rows", table="cities", column="price", value=twelve) == {"count": 2}
    assert tables("count_rows", table="cities", column="name", value="12") == {"count": 0}
    for function, result in {"sum": 31.25, "average": 10.4167, "min": 7.25, "max": 12}.items():
        assert tables("aggregate", table="cities", column="price", function=function) == {"result": result}
    assert tables("aggregate", table="cities", column="size", function="sum") == {"result": 4.5}


def test_what_they_cannot_do(tables: Tables) -> None:
    with pytest.raises(ToolFailure, match="name holds text, not numbers"):
        tables("aggregate", table="cities", column="name", function="max")
    with pytest.raises(ToolFailure, match="price holds numbers, not 'dear'"):
        tables("find_rows", table="cities", column="price", value="dear")
    # str.strip takes off separators that float() does not take.
    assert tables("count_rows", table="cities", column="price", value=" 12\x1f") == {"count": 2}
    for word in ("nan", "inf", "1e5", "0x10", "１２", "1_000"):
        with pytest.raises(ToolFailure):
            tables("count_rows", table="cities", column="price", value=word)
    with pytest.raises(ToolFailure, match="table must have"):
        tables("describe_table", table=" ")


@pytest.mark.parametrize(
    ("name", "arguments", "wrong", "right"),
    [
        ("describe_table", {"table": "citeis"}, "citeis", "cities"),
        ("aggregate", {"table": "cities", "column": "pirce", "function": "sum"}, "pirce", "price"),
        ("find_rows", {"table": "cities", "column": "contry", "value": "Norway"}, "contry", "country"),
        # Table and column mistaken for each other, or one of them said twice.
        ("aggregate", {"table": "price", "column": "cities", "function": "sum"}, "price", "cities"),
        ("aggregate", {"table": "one", "column": "one", "function": "sum"}, "one", "empty"),
        ("count_rows", {"table": "size", "column": "Cities", "value": "3"}, "size", "cities"),
        # The only column that holds the value, the only one with numbers.
        ("count_rows", {"table": "cities", "column": "cities", "value": "norway"}, "cities", "country"),
        ("find_rows", {"table": "cities", "column": "majority", "value": "7.25"}, "majority", "price"),
        ("aggregate", {"table": "boats", "column": "boats", "function": "max"}, "boats", "length"),
    ],
)
def test_a_slip_of_the_pen_is_named(
    tables: Tables, name: str, arguments: dict[str, str], wrong: str, right: str
) -> None:
    with pytest.raises(ToolFailure) as error:
        tables(name, **arguments)
    hint = SUGGESTION.fullmatch(error.value.what)
    assert hint is not None
    assert hint["what"].endswith(f"named {wrong}")
    assert hint["right"] == right


@pytest.mark.parametrize(
    ("name", "arguments", "wrong"),
    [
        (
            "aggregate",
            {"table": "houses", "column": "price", "function": "sum"},
            "houses",
        ),  # another table is not meant
        ("aggregate", {"table": "houses", "column": "cities", "function": "sum"}, "houses"),
        ("aggregate", {"table": "cities", "column": "weight", "function": "sum"}, "weight"),
        ("aggregate", {"table": "cities", "column": "cities", "function": "sum"}, "cities"),  # price or size
        ("count_rows", {"table": "cities", "column": "kind", "value": "12 or so"}, "kind"),
        ("count_rows", {"table": "boats", "column": "kind", "value": "Oslo"}, "kind"),
    ],
)
def test_what_is_not_known_is_not_guessed(tables: Tables, name: str, arguments: dict[str, str], wrong: str) -> None:
    with pytest.raises(ToolFailure) as error:
        tables(name, **arguments)
    assert error.value.what.endswith(f"named {wrong!r}")


async def test_the_function_is_one_of_four(tables: Tables) -> None:
    schema = tables.tools["aggregate"].parameters["properties"]["function"]
    assert schema["enum"] == ["sum", "average", "min", "max"]
    result = await tables.tools["aggregate"].call({"table": "cities", "column": "price", "function": "total"})
    assert not result.ok


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_names_and_values(tables: Tables, database: Path, text: str) -> None:
    before = database.read_bytes()
    for name, arguments in (
        ("describe_table", {"table": text}),
        ("find_rows", {"table": text, "column": "name", "value": "Oslo"}),
        ("find_rows", {"table": "cities", "column": text, "value": "Oslo"}),
        ("aggregate", {"table": "cities", "column": text, "function": "sum"}),
    ):
        result = await tables.tools[name].call(arguments)
        assert not result.ok
        assert len(result.content) < 600
    if text != "\ud800":
        assert tables("find_rows", table="cities", column="name", value=text) == {"rows": []}
    assert database.read_bytes() == before


def test_names_that_need_quotes(tables: Tables) -> None:
    odd = {"table": 'odd "name"; --', "column": 'a"b'}
    assert tables("find_rows", **odd, value="x' OR 1=1 --") == {"rows": ["x' OR 1=1 --, 1"]}
    assert tables("count_rows", **odd, value="x") == {"count": 0}
    assert tables("aggregate", table='odd "name"; --', column="select", function="sum") == {"result": 1}


def test_results_are_short(tmp_path: Path) -> None:
    make_tables(tmp_path / "t.db", {"long": {"columns": ["a", "b"], "rows": [["x", "y" * 400]] * 9}})
    found = Tables(tmp_path / "t.db")("find_rows", table="long", column="a", value="X")
    assert len(found["rows"]) == 5
    assert found["more"] == 4
    assert all(len(row) < 100 for row in found["rows"])


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ToolFailure, match=r"t\.db cannot be used"):
        Tables(tmp_path / "t.db")("list_tables")


def test_a_database_made_elsewhere(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db") as db:
        db.execute("CREATE TABLE a (n INTEGER, r REAL, v VARCHAR(9), b BLOB)")
        db.execute("INSERT INTO a VALUES (2, 2.5, 'x', x'00ff')")
    db.close()
    tables = Tables(tmp_path / "t.db")
    assert tables("describe_table", table="a") == {"columns": ["n: number", "r: number", "v: text", "b: text"]}
    assert tables("count_rows", table="a", column="r", value="2.50") == {"count": 1}
    assert len(tables("find_rows", table="a", column="n", value="2")["rows"]) == 1


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"columns": ["a"]},
        {"columns": [], "rows": []},
        {"columns": ["a", "A"], "rows": []},
        {"columns": ["a"], "rows": [[1, 2]]},
        {"columns": ["a"], "rows": [[1], ["x"]]},
        {"columns": ["a"], "rows": [[True]]},
        {"columns": ["a"], "rows": [[float("nan")]]},
        {"columns": ["a"], "rows": [[10**30]]},
        {"columns": ["a"], "rows": [["x\0"]]},
        {"columns": ["a\n"], "rows": []},
        {"columns": ["sqlite_a"], "rows": []},
        {"columns": ["a"], "rows": [[[]]]},
    ],
)
def test_tables_that_are_none(database: Path, table: Any) -> None:
    before = read_tables(database)
    with pytest.raises(BadInput, match=r"[a-z]"):
        make_tables(database, {"bad": table})
    assert read_tables(database) == before


def test_seed_and_snapshot(tmp_path: Path) -> None:
    seed(tmp_path, {"tables": TABLES})
    assert snapshot(tmp_path)["tables"] == TABLES
    with pytest.raises(BadInput):
        seed(tmp_path, {"tables": {"a": {}}})
    assert snapshot(tmp_path)["tables"] == TABLES
    seed(tmp_path, {})
    assert snapshot(tmp_path)["tables"] == {}
    (tmp_path / "own").mkdir()
    make_tables(tmp_path / "own" / "tables.db", TABLES)
    with pytest.raises(BadInput, match="not seeded"):
        seed(tmp_path / "own", {})


words = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12).filter(lambda t: t.strip())
numbers = st.one_of(st.integers(-(10**9), 10**9), st.decimals(-999, 999, places=2).map(float))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=words, column=words, texts=st.lists(words, min_size=1, max_size=5), values=st.data())
def test_whatever_is_stored_is_found(
    tmp_path: Path, name: str, column: str, texts: list[str], values: st.DataObject
) -> None:
    cells = [values.draw(numbers) for _ in texts]
    table = {"columns": [column, column + " n"], "rows": [list(row) for row in zip(texts, cells, strict=True)]}
    try:
        make_tables(tmp_path / "t.db", {name: table})
    except BadInput:
        assert " " in column.strip() or name.strip().lower().startswith("sqlite_") or not (name + column).isprintable()
        return
    tables = Tables(tmp_path / "t.db")
    assert len(tables("list_tables")["tables"]) == 1
    for text in texts:
        wanted = " ".join(text.split()).casefold()
        count = sum(" ".join(one.split()).casefold() == wanted for one in texts)
        assert tables("count_rows", table=name, column=column, value=text) == {"count": count}
    assert tables("count_rows", table=name, column=column + " n", value=f"{cells[0]:.2f}") == {
        "count": cells.count(cells[0])
    }
    total = tables("aggregate", table=name, column=column + " n", function="sum")["result"]
    assert total == pytest.approx(sum(cells), abs=1e-4)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.text(max_size=80), column=st.text(max_size=80), value=st.text(max_size=80))
def test_no_text_breaks_them(database: Path, table: str, column: str, value: str) -> None:
    tables = Tables(database)
    before = database.read_bytes()
    for one, other in ((table, column), ("cities", column), ("cities", "name")):
        try:
            tables("count_rows", table=one, column=other, value=value)
            tables("find_rows", table=one, column=other, value=value)
        except ToolFailure:
            pass
    assert database.read_bytes() == before
