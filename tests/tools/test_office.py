"""Calendar, contacts, to-dos and files: what they answer, what they keep, and what hostile input cannot do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.tools import ToolFailure, Toolset
from trimtab.tools.builtin import FAMILIES, builtin_tools
from trimtab.tools.builtin.state import KEYS, seed, snapshot

TODAY = date(2026, 5, 12)
STATE: dict[str, Any] = {
    "events": [
        {"title": "lunch with Ann", "date": "2026-05-13", "time": "13:00"},
        {"title": "dentist", "date": "2026-05-13", "time": "09:15"},
        {"title": "concert", "date": "2026-05-14", "time": "20:00"},
    ],
    "contacts": [{"name": "Ann Lee", "email": "ann@example.org", "phone": None}],
    "todos": ["milk", "bread"],
    "done": ["taxes"],
    "files": {"notes/plan.txt": "line 1\r\nü\n", "todo.txt": ""},
}
EMPTY: dict[str, Any] = {name: {} if name in ("files", "tables") else [] for name in KEYS}


class Office:
    """The tools on a folder of their own, called by name."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.tools: Toolset = builtin_tools(home, lambda: TODAY)

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        return self.tools[name].function(**arguments)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "home")


def test_eight_families_hold_all_tools(office: Office) -> None:
    assert set(office.tools) == {name for names in FAMILIES.values() for name in names}
    assert len(FAMILIES) == 8
    assert {t.name for t in office.tools.values() if t.destructive} == {
        "delete_event",
        "delete_todo",
        "delete_mail",
        "delete_file",
        "cancel_order",
        "refund_order",
    }
    assert {t.name for t in office.tools.values() if t.changes and not t.destructive} == {
        "add_contact",
        "add_event",
        "add_todo",
        "complete_todo",
        "place_order",
        "restock",
        "send_mail",
        "write_file",
    }
    assert all(len(t.description.split()) <= 8 for t in office.tools.values())
    assert not office.home.exists(), "nothing is made before it is needed"


def test_everything_is_empty_at_first(office: Office) -> None:
    assert office("list_events", date="today") == {"events": []}
    assert office("list_todos") == {"todos": []}
    assert office("list_files") == {"files": []}
    assert snapshot(office.home) == EMPTY


def test_the_calendar(office: Office) -> None:
    seed(office.home, STATE)
    assert office("list_events", date="tomorrow") == {"events": ["09:15 dentist", "13:00 lunch with Ann"]}
    added = {"added": "tea", "date": "13 May", "time": "3 pm"}
    assert office("add_event", title="tea", date="13 May", time="3 pm") == added
    assert office("add_event", title="tea", date="13 May", time="3 pm") == added
    after = ["09:15 dentist", "13:00 lunch with Ann", "15:00 tea"]
    assert office("list_events", date="Wednesday") == {"events": after}
    assert office("delete_event", title="Lunch  with ann", date="2026-05-13") == {"deleted": "Lunch  with ann"}
    with pytest.raises(ToolFailure, match="no event on tomorrow named 'lunch with Ann'"):
        office("delete_event", title="lunch with Ann", date="tomorrow")
    for wrong in ({"date": "someday"}, {"time": "late"}, {"title": " "}, {"title": "x" * 501}):
        with pytest.raises(ToolFailure):
            office("add_event", **{"title": "tea", "date": "13 May", "time": "3 pm", **wrong})
    assert office("list_events", date="Wednesday") == {"events": ["09:15 dentist", "15:00 tea"]}


def test_an_event_is_found_by_its_title(office: Office) -> None:
    with pytest.raises(ToolFailure, match="no event named 'dentist'"):
        office("find_event", title="dentist")
    for day, time in (("2026-05-01", "8:00"), ("2026-05-02", "9:00")):
        office("add_event", title="dentist", date=day, time=time)
    assert office("find_event", title="dentist") == {"title": "dentist", "date": "2 May 2026", "time": "09:00"}
    for day, time in (("2026-07-01", "10:00"), ("today", "11:00"), ("today", "10:30")):
        office("add_event", title="Dentist", date=day, time=time)
    assert office("find_event", title="DENTIST") == {"title": "Dentist", "date": "12 May 2026", "time": "10:30"}


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("find_event", {"title": "dentits"}, "no event named dentits; did you mean dentist?"),
        (
            "delete_event",
            {"title": "lunch wiht Ann", "date": "13 May"},
            "no event on 13 May named lunch wiht Ann; did you mean lunch with Ann?",
        ),
        ("delete_event", {"title": "lunch with Bob", "date": "13 May"}, "no event on 13 May named 'lunch with Bob'"),
        ("delete_event", {"title": "concret", "date": "13 May"}, "no event on 13 May named 'concret'"),
        ("find_contact", {"name": "Ann Le"}, "no contact named Ann Le; did you mean Ann Lee?"),
        ("complete_todo", {"item": "MIKL"}, "no open to-do MIKL; did you mean milk?"),
        ("delete_todo", {"item": "braed"}, "no open to-do braed; did you mean bread?"),
        ("delete_todo", {"item": "taxs"}, "no open to-do 'taxs'"),
        ("complete_todo", {"item": "bread finished"}, "no open to-do bread finished; did you mean bread?"),
        ("find_event", {"title": "the dentist"}, "no event named the dentist; did you mean dentist?"),
        ("find_event", {"title": "lunch"}, "no event named lunch; did you mean lunch with Ann?"),
        ("find_contact", {"name": "lee"}, "no contact named lee; did you mean Ann Lee?"),
        ("find_contact", {"name": "An"}, "no contact named 'An'"),
        ("find_event", {"title": "with"}, "no event named 'with'"),  # in the middle
        ("delete_todo", {"item": "milk and bread"}, "no open to-do 'milk and bread'"),
        ("delete_todo", {"item": "milk bread"}, "no open to-do 'milk bread'"),
    ],
)
def test_a_slip_of_the_pen_is_told(office: Office, name: str, arguments: dict[str, str], says: str) -> None:
    seed(office.home, STATE)
    with pytest.raises(ToolFailure) as caught:
        office(name, **arguments)
    assert str(caught.value) == says


def test_an_older_database_is_given_the_tables_it_lacks(office: Office) -> None:
    office("add_todo", item="old")
    with sqlite3.connect(office.home / "office.db") as db:
        for table in ("inbox", "sent", "orders", "stock"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 1")
    assert office("list_orders", customer="nobody") == {"orders": []}
    assert office("list_todos") == {"todos": ["old"]}


def test_contacts(office: Office) -> None:
    with pytest.raises(ToolFailure, match="no contact named 'Ann'"):
        office("find_contact", name="Ann")
    assert office("add_contact", name="Ann Lee", email="a@b.c") == {"added": "Ann Lee"}
    assert office("find_contact", name="ann lee") == {"name": "Ann Lee", "email": "a@b.c", "phone": None}
    assert office("add_contact", name="Ann Lee", email="new@b.c", phone="0123") == {"added": "Ann Lee"}
    assert office("add_contact", name="ANN LEE", email="newer@b.c") == {"added": "ANN LEE"}
    assert office("find_contact", name="Ann Lee") == {"name": "ANN LEE", "email": "newer@b.c", "phone": "0123"}
    assert office("add_contact", name="Élodie", email="e@b.c") == {"added": "Élodie"}
    assert office("find_contact", name="élodie")["email"] == "e@b.c"
    with pytest.raises(ToolFailure, match="'nowhere' is not an email address"):
        office("add_contact", name="Bob", email="nowhere")


def test_todos(office: Office) -> None:
    for item in ("milk", "bread", "Milk"):
        assert office("add_todo", item=item) == {"added": item}
    assert office("list_todos") == {"todos": ["milk", "bread"]}
    assert office("complete_todo", item="MILK") == {"done": "MILK"}
    with pytest.raises(ToolFailure, match="no open to-do 'milk'"):
        office("complete_todo", item="milk")
    assert office("add_todo", item="milk") == {"added": "milk"}
    assert office("list_todos") == {"todos": ["bread", "milk"]}
    assert office("delete_todo", item="Bread") == {"deleted": "Bread"}
    with pytest.raises(ToolFailure, match="no open to-do 'bread'"):
        office("delete_todo", item="bread")
    assert office("list_todos") == {"todos": ["milk"]}
    assert snapshot(office.home)["done"] == ["milk"]


HOSTILE = ["'; DROP TABLE todos; --", '" OR 1=1', "%", "_", "?", "\\", "a\tb\nc", "ß", "🙂", "İ"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_only_ever_text(office: Office, text: str) -> None:
    shown = " ".join(text.split())
    office("add_todo", item="keep")
    office("add_todo", item=text)
    office("add_event", title=text, date="today", time="noon")
    office("add_contact", name=text, email="x@y.z", phone=text)
    assert office("list_todos") == {"todos": ["keep", shown]}
    assert office("list_events", date="today") == {"events": [f"12:00 {shown}"]}
    assert office("find_contact", name=text)["phone"] == shown
    office("complete_todo", item=text)
    office("delete_event", title=text, date="today")
    assert office("list_todos") == {"todos": ["keep"]}


def test_a_null_character_is_refused(office: Office) -> None:
    for name, arguments in (("add_todo", {"item": "a\0b"}), ("find_contact", {"name": "\0"})):
        with pytest.raises(ToolFailure, match="1 to 500 characters"):
            office(name, **arguments)


def test_two_processes_and_many_threads_write_at_once(office: Office) -> None:
    program = """
import sys
from pathlib import Path
from trimtab.tools.builtin import builtin_tools
tools = {name: tool.function for name, tool in builtin_tools(Path(sys.argv[1])).items()}
for n in range(8):
    tools["add_todo"](item=f"{sys.argv[2]} {n}")
    tools["add_todo"](item=f"shared {n}")
    tools["add_contact"](name="Ann", email=f"{sys.argv[2]}@{n}.org")
    tools["list_todos"]()
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(office.home), name]) for name in ("one", "two")]
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(10):
                office("add_todo", item=f"{name} {n}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"thread{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in running] == [0, 0]
    assert not failures
    todos = office("list_todos")["todos"]
    wanted = [f"{name} {n}" for name in ("one", "two", "shared") for n in range(8)]
    wanted += [f"thread{t} {n}" for t in range(4) for n in range(10)]
    assert sorted(todos) == sorted(wanted)
    assert office("find_contact", name="ann")["email"].endswith("@7.org")


def test_a_database_that_is_none_is_told(office: Office) -> None:
    office.home.mkdir()
    database = office.home / "office.db"
    database.write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(ToolFailure, match=r"office\.db cannot be used: file is not a database"):
        office("list_todos")
    assert database.read_bytes().startswith(b"not a database"), "and left as it is"
    database.unlink()
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ToolFailure, match="newer Trimtab"):
        office("add_todo", item="x")


async def test_errors_reach_a_model_as_json(office: Office) -> None:
    result = await office.tools["find_contact"].call('{"name": "X"}')
    assert (result.content, result.ok) == ('{"error": "no contact named \'X\'"}', False)
    result = await office.tools["add_todo"].call('{"item": "Käse"}')
    assert (result.content, result.ok) == ('{"added": "Käse"}', True)
    result = await office.tools["add_contact"].call('{"name": "B", "email": "b@c.d", "phone": null}')
    assert result.content == '{"added": "B"}'


def test_files(office: Office) -> None:
    assert office("write_file", path="notes/a.txt", content="ü\r\n") == {"written": "notes/a.txt"}
    assert office("write_file", path="./b.txt", content="") == {"written": "./b.txt"}
    assert office("list_files") == office("list_files", folder="") == {"files": ["b.txt", "notes/"]}
    assert office("list_files", folder="notes") == office("list_files", folder="notes/") == {"files": ["a.txt"]}
    assert office("read_file", path="notes/a.txt") == {"content": "ü\r\n"}
    office("write_file", path="notes/a.txt", content="new")
    assert office("read_file", path="notes//./a.txt") == {"content": "new"}
    for name, path, says in [
        ("read_file", "c.txt", "no file named 'c.txt'"),
        ("read_file", "notes", "'notes' is not a file"),
        ("write_file", "notes", "'notes' is not a file"),
        ("write_file", "new/", "'new/' is not a file"),
        ("write_file", "b.txt/c", "cannot write 'b.txt/c'"),
        ("list_files", "b.txt", "no folder named 'b.txt'"),
        ("list_files", "none", "no folder named 'none'"),
    ]:
        with pytest.raises(ToolFailure, match=says):
            office(name, **_arguments(name, path))


def _arguments(name: str, path: str) -> dict[str, str]:
    if name == "list_files":
        return {"folder": path}
    return {"path": path} if name == "read_file" else {"path": path, "content": "hello"}


@pytest.fixture
def trap(tmp_path: Path) -> Office:
    """A root with links of every kind that lead out, and a secret outside."""
    office = Office(tmp_path / "home")
    root = office.home / "files"
    root.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (root / "in.txt").write_text("inside")
    (root / "link").symlink_to(outside)
    (root / "file-link.txt").symlink_to(outside / "secret.txt")
    (root / "dangling").symlink_to(outside / "new.txt")
    (root / "loop").symlink_to(root / "loop")
    (root / "good-link.txt").symlink_to(root / "in.txt")
    (root / ".hidden").write_text("hidden")
    (root / "binary").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(root / "pipe")
    return office


BAD_PATHS = [
    "..",
    "../outside/secret.txt",
    "a/../../outside/secret.txt",
    "link/secret.txt",
    "link/new.txt",
    "file-link.txt",
    "dangling",
    "loop",
    "loop/x",
    "/etc/passwd",
    "//etc/passwd",
    "~/x",
    "~root",
    "C:\\x",
    "C:x",
    "..\\x",
    "in.txt\0.png",
    "\0",
    "a\nb",
    ".hidden",
    ".git/config",
    "x/.ssh/id",
    "x" * 300,
    "ü" * 150,
    "a/" * 20 + "b",
    "x" * 5000,
    "\ud800",
    "‮txt",
]


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("name", ["list_files", "read_file", "write_file"])
def test_no_hostile_path_gets_out(trap: Office, name: str, path: str) -> None:
    with pytest.raises(ToolFailure) as caught:
        trap(name, **_arguments(name, path))
    assert "\n" not in caught.value.what
    assert str(trap.home) not in caught.value.what
    outside = trap.home.parent / "outside"
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"secret.txt": "secret"}


def test_links_inside_work_and_odd_files_are_refused(trap: Office) -> None:
    assert trap("read_file", path="good-link.txt") == {"content": "inside"}
    assert trap("write_file", path="good-link.txt", content="new") == {"written": "good-link.txt"}
    assert trap("read_file", path="in.txt") == {"content": "new"}
    assert (trap.home / "files" / "good-link.txt").is_symlink()
    for path, says in (("pipe", "is not a file"), ("binary", "is not a text file")):
        with pytest.raises(ToolFailure, match=says):
            trap("read_file", path=path)
    with pytest.raises(ToolFailure, match="is not a file"):
        trap("write_file", path="pipe", content="x")
    assert ".hidden" not in trap("list_files")["files"]


def test_sizes_are_bounded(office: Office) -> None:
    office("write_file", path="a", content="x" * 1_000_000)
    with pytest.raises(ToolFailure, match="larger than 1000000 bytes"):
        office("write_file", path="a", content="x" * 1_000_001)
    (office.home / "files" / "big").write_bytes(b"x" * 1_000_001)
    with pytest.raises(ToolFailure, match="larger than 1000000 bytes"):
        office("read_file", path="big")
    for n in range(1001):
        (office.home / "files" / f"n{n}").touch()
    with pytest.raises(ToolFailure, match="more than 1000 files"):
        office("list_files")


def everything_outside(trap: Office) -> dict[str, bytes]:
    root = trap.home / "files"
    return {str(p): p.read_bytes() for p in trap.home.parent.rglob("*") if p.is_file() and root not in p.parents}


pieces = st.sampled_from(["..", ".", "", "a", "b.txt", "link", "file-link.txt", "~", "\0", "x" * 250, "/", "\\", "é"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.lists(pieces, max_size=6).map("/".join) | st.text(max_size=20))
def test_no_path_at_all_gets_out(trap: Office, path: str) -> None:
    before = {
        p: p.read_bytes() for p in trap.home.parent.rglob("*") if p.is_file() and trap.home / "files" not in p.parents
    }
    for name in ("write_file", "read_file", "list_files"):
        try:
            got = trap(name, **_arguments(name, path))
        except ToolFailure:
            continue
        assert "secret" not in str(got)
    after = {
        p: p.read_bytes() for p in trap.home.parent.rglob("*") if p.is_file() and trap.home / "files" not in p.parents
    }
    assert after == before


def test_seed_and_snapshot_are_each_others_reverse(office: Office) -> None:
    seed(office.home, STATE)
    got = snapshot(office.home)
    assert got == {**EMPTY, **STATE, "events": sorted(STATE["events"], key=lambda e: (e["date"], e["time"]))}
    seed(office.home, {})
    assert snapshot(office.home) == EMPTY
    seed(office.home, got)
    assert snapshot(office.home) == got


def test_seed_never_wipes_what_is_someones(office: Office) -> None:
    office("add_todo", item="mine")
    office("write_file", path="mine.txt", content="mine")
    with pytest.raises(BadInput, match="was not seeded"):
        seed(office.home, {})
    assert snapshot(office.home)["todos"] == ["mine"]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"event": []}, "state"),
        ({"events": [{"title": "a", "date": "2026-05-12"}]}, "events[0]"),
        ({"events": [{"title": "a", "date": "12 May", "time": "13:00"}]}, "events[0]"),
        ({"events": [{"title": "a", "date": "2026-05-12", "time": 780}]}, "events[0]"),
        ({"events": [{"title": "a", "date": "2026-05-12", "time": "13:00", "id": 1}]}, "events[0]"),
        ({"events": ["a"]}, "events[0]"),
        ({"contacts": [{"name": "a"}]}, "contacts[0]"),
        ({"contacts": [{"name": "a", "email": 1}]}, "contacts[0]"),
        ({"todos": ["a", 1]}, "todos[1]"),
        ({"todos": [" "]}, "todos[0]"),
        ({"files": {"../a": "x"}}, "files"),
    ],
)
def test_a_state_that_is_wrong_is_told_with_its_place(office: Office, state: dict[str, Any], where: str) -> None:
    with pytest.raises(BadInput) as caught:
        seed(office.home, state)
    assert where in (caught.value.where or "")


def test_dates_that_yaml_has_read_are_taken(office: Office) -> None:
    seed(office.home, {"events": [{"title": "a", "date": date(2026, 5, 12), "time": "13:00"}]})
    assert office("list_events", date="today") == {"events": ["13:00 a"]}


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30).filter(
    lambda t: bool(t.split())
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todos=st.lists(texts, max_size=5, unique_by=lambda t: " ".join(t.split()).casefold()))
def test_any_to_dos_are_kept_in_order(office: Office, todos: list[str]) -> None:
    seed(office.home, {"todos": todos})
    assert office("list_todos")["todos"] == [" ".join(item.split()) for item in todos]
    for item in todos:
        office("complete_todo", item=item)
    assert snapshot(office.home)["todos"] == []
    assert len(snapshot(office.home)["done"]) == len(todos)
