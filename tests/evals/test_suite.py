"""The suite format: what is read, and how each mistake is named."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from trimtab.errors import BadInput, NotFound
from trimtab.evals.score import state_differences
from trimtab.evals.suite import find_suite, known_suites, load_suite
from trimtab.tools.builtin.state import KEYS, seed, snapshot

SUITE = """
name: tiny
tasks:
- id: calc-001
  family: calc
  ask: How far is 26.2 miles in kilometres?
  today: 2026-05-12
  tools: [convert_units]
  expect: {answer: ["42.1648"]}
- id: todos-001
  family: todos
  ask: Add bread to my list
  today: "2026-05-12"
  state:
    todos: [milk]
    events: [{title: lunch, date: 2026-05-12, time: "13:00"}]
  expect:
    state: {todos: [milk, bread]}
    calls: [{name: add_todo, arguments: {item: bread}}]
"""


def write(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_suite_is_read(tmp_path: Path) -> None:
    suite = find_suite(write(tmp_path, SUITE))
    calc, todos = suite.tasks
    assert (suite.name, calc.tools, calc.today) == ("tiny", ("convert_units",), date(2026, 5, 12))
    assert calc.expect.answer == ("42.1648",)
    assert calc.expect.state is None
    assert todos.tools is None
    assert todos.state == {"todos": ["milk"], "events": [{"title": "lunch", "date": "2026-05-12", "time": "13:00"}]}
    assert todos.expect.calls == (("add_todo", {"item": "bread"}),)


def test_an_answer_may_be_worded_in_several_ways(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, SUITE.replace('["42.1648"]', '["42.1648", ["0", none]]')))
    assert suite.tasks[0].expect.answer == ("42.1648", ("0", "none"))
    assert suite.sha256 != load_suite(write(tmp_path, SUITE)).sha256


def test_all_that_a_state_may_hold_is_read_as_it_is_written(tmp_path: Path) -> None:
    state = {
        "todos": ["milk"],
        "done": ["bread"],
        "files": {"a.txt": "x"},
        "inbox": [{"from": "a@x.org", "subject": "s", "body": "b"}],
        "sent": [{"to": "a@x.org", "subject": "s", "body": "b"}],
        "orders": [{"order": 1203, "customer": "Ann", "item": "lamp", "quantity": 2, "status": "open"}],
        "stock": [{"item": "lamp", "stock": 3, "price": 9.5}],
        "tables": {"prices": {"columns": ["item", "price"], "rows": [["lamp", 3], ["desk", None]]}},
        "contacts": [{"name": "Ann", "email": "a@x.org", "phone": None}],
        "events": [{"title": "lunch", "date": "2026-05-12", "time": "13:00"}],
    }
    assert set(state) == set(KEYS)
    row = {"id": "a", "ask": "x", "today": "2026-05-12", "state": state, "expect": {"state": state}}
    (task,) = load_suite(write(tmp_path, json.dumps(row), "all.jsonl")).tasks
    assert task.state == task.expect.state == state


def test_a_state_is_read_as_it_will_be_kept(tmp_path: Path) -> None:
    loose: dict[str, Any] = {
        "todos": [" buy  milk "],
        "done": ["eggs\n"],
        "inbox": [{"from": " a@x.org", "subject": "so  it  is", "body": "b "}],
        "sent": [{"to": "a@x.org ", "subject": " s", "body": "b"}],
        "orders": [{"order": 1203, "customer": "Ann  B", "item": " lamp", "quantity": 2, "status": "open"}],
        "stock": [{"item": "old  lamp", "stock": 3, "price": 9.5}],
        "contacts": [{"name": "Ann  B", "email": "a@x.org"}],
        "events": [{"title": "lunch  out", "date": "20260512", "time": "13:00"}],
    }
    row = {"id": "a", "ask": "x", "today": "2026-05-12", "state": loose, "expect": {"state": loose}}
    (task,) = load_suite(write(tmp_path, json.dumps(row), "loose.jsonl")).tasks
    seed(tmp_path / "world", task.state)
    world = snapshot(tmp_path / "world")
    assert state_differences(task.expect.state, {key: [] for key in world}, world) == []
    assert task.state["events"] == [{"title": "lunch out", "date": "2026-05-12", "time": "13:00"}]


def test_json_lines_make_the_same_suite(tmp_path: Path) -> None:
    rows = [
        {
            "id": "calc-001",
            "family": "calc",
            "ask": "How far is 26.2 miles in kilometres?",
            "today": "2026-05-12",
            "tools": ["convert_units"],
            "expect": {"answer": ["42.1648"]},
        }
    ]
    lines = load_suite(write(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", "lines.jsonl"))
    yaml = load_suite(write(tmp_path, SUITE.split("- id: todos-001")[0]))
    assert lines.name == "lines"
    assert (lines.tasks, lines.sha256) == (yaml.tasks, yaml.sha256)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("family: calc", "famly: calc", ["calc-001", "famly", "unknown field"]),
        ('["42.1648"]', "[42.1648]", ["calc-001", "expect.answer.0", "quotes"]),
        ("today: 2026-05-12", "today: soon", ["calc-001", "today"]),
        ("id: todos-001", "id: calc-001", ["calc-001", "two tasks"]),
        ('"13:00"', "13:00", ["todos-001", "state.events.0.time", "quotes"]),
        ('{answer: ["42.1648"]}', "{answer: []}", ["calc-001", "nothing is checked"]),
        ('["42.1648"]', '[""]', ["calc-001", "expect.answer.0", "blank"]),
        ('["42.1648"]', '["5", [none, " "]]', ["calc-001", "expect.answer.1", "blank"]),
        ('["42.1648"]', '["5", []]', ["calc-001", "expect.answer.1", "empty list"]),
        ('["42.1648"]', "[[none, no]]", ["calc-001", "expect.answer.0", "False", "quotes"]),
        (
            "todos: [milk]",
            "tables: {t: {columns: [a], rows: [[2026-05-12]]}}",
            ["state.tables.t.rows", "2026", "quotes"],
        ),
        ("todos: [milk]", "stock: [{item: a, stock: 1.5, price: 1}]", ["todos-001", "state.stock.0.stock"]),
        ("todos: [milk]", "inbox: [{sender: a@x.org, subject: s, body: b}]", ["state.inbox.0.sender", "unknown field"]),
        ("todos: [milk]", "todo: [milk]", ["todos-001", "state.todo", "unknown field"]),
        ("  ask: Add bread to my list\n", "", ["todos-001", "ask"]),
        ("- id: calc-001\n  family", "- family", ["task number 1", "id"]),
        ("2026-05-12, time", '"2026-13-45", time', ["todos-001", "state.events.0.date", "2026-13-45"]),
        ('"13:00"', '"25:00"', ["todos-001", "state.events.0.time"]),
        ("todos: [milk]", 'todos: [" "]', ["todos-001", "state.todos.0"]),
        ("todos: [milk]", "inbox: [{from: x, subject: s, body: b}]", ["state.inbox.0", "not an email address"]),
        ("todos: [milk]", "files: {../a: x}", ["todos-001", "state.files", "leaves the folder"]),
        ("todos: [milk]", "files: {a: x, a/b: y}", ["todos-001", "a is a file and a folder"]),
        (
            "todos: [milk]",
            "orders: [{order: 1, customer: a, item: b, quantity: 1, status: lost}]",
            ["todos-001", "state: orders[0]", "lost"],
        ),
        ("todos: [milk, bread]", "sent: [{to: x, subject: s, body: b}]", ["todos-001", "expect.state.sent.0"]),
        ("[convert_units]", "[convert_unit]", ["calc-001", "tools", "'convert_unit'", "convert_units"]),
        ("item: bread", 'item: !!binary "/w=="', ["todos-001", "expect.calls.0.arguments", "not JSON"]),
        ("item: bread", "item: 2026-05-12", ["todos-001", "expect.calls.0.arguments", "quotes"]),
        ("tasks:", "taskz:", ["taskz"]),
        ("name: tiny", "name: [", ["line"]),
        ("  family: calc", "  family: calc\n  family: todos", ["line", "'family' stands here twice"]),
    ],
)
def test_each_mistake_names_file_task_and_field(tmp_path: Path, old: str, new: str, named: list[str]) -> None:
    assert old in SUITE
    path = write(tmp_path, SUITE.replace(old, new, 1))
    with pytest.raises(BadInput) as caught:
        load_suite(path)
    for part in [str(path), *named]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "name: x\ntasks: []", "name: x\ntasks: !!set {a: }", "!!python/object/apply:os.system [ls]", "\x00"],
)
def test_files_that_are_no_suite(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match=r"tiny\.yaml"):
        load_suite(write(tmp_path, text))


def test_broken_json_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line 2"):
        load_suite(write(tmp_path, '{"id": "a"}\n{oops\n', "x.jsonl"))


def test_half_a_character_is_named(tmp_path: Path) -> None:
    row = {"id": "a", "ask": "x", "today": "2026-05-12", "state": {"todos": ["\ud800"]}, "expect": {"answer": ["y"]}}
    with pytest.raises(BadInput, match=r"task 'a'.*half of a Unicode character"):
        load_suite(write(tmp_path, json.dumps(row), "x.jsonl"))


def test_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(NotFound) as caught:
        find_suite("no-such-suite")
    for name in known_suites():
        assert name in str(caught.value)


def test_packaged_suites_hold_together() -> None:
    for name in known_suites():
        suite = find_suite(name)
        assert suite.name == name
        assert len(suite.tasks) > 1


def test_limit_takes_turns_between_families(tmp_path: Path) -> None:
    rows = [
        {"id": f"{family}{i}", "family": family, "ask": "x", "today": "2026-05-12", "expect": {"answer": ["y"]}}
        for family in ("calc", "mail")
        for i in range(5)
    ]
    suite = load_suite(write(tmp_path, "\n".join(map(json.dumps, rows)), "x.jsonl"))
    assert [t.id for t in suite.first(3).tasks] == ["calc0", "calc1", "mail0"]
    assert suite.first(None) is suite
    assert suite.first(99) is suite
    with pytest.raises(BadInput):
        suite.first(0)
