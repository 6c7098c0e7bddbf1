import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from trimtab.agent import Agent, Journal, RoutingPolicy
from trimtab.agent.testing import ReplayEngine, call
from trimtab.errors import BadInput, NotFound, TrimtabError
from trimtab.tools import tool


@tool
def one() -> int:
    """Give one."""
    return 1


def agent(journal: Journal, script: Any = ("1",)) -> Any:
    return Agent([one], engine=ReplayEngine(script), journal=journal, policy=RoutingPolicy())


def test_runs_are_listed_newest_first_and_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "journal.db")
    results = [agent(journal, [call("one"), str(n)]).run(f"task {n}") for n in range(3)]
    lines = journal.runs(2)
    assert [line.task for line in lines] == ["task 2", "task 1"]
    assert [(line.status, line.steps, line.answer) for line in lines] == [("done", 3, "2"), ("done", 3, "1")]
    assert journal.path.stat().st_mode & 0o077 == 0
    again = Journal(journal.path)
    assert agent(again).result(results[0].run_id) == results[0]


def test_a_run_with_half_a_character_is_listed_and_shown(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    run_id = agent(journal).run("x").run_id
    step = {**journal.events(run_id)[-1], "message": {"role": "assistant", "content": "done \ud83d"}}
    step["step"] = {**step["step"], "text": "done \ud83d"}
    old = asyncio.run(journal.begin({"kind": "start", "task": "x", "messages": [], "about": {}}))
    asyncio.run(journal.append(old, 1, step))
    assert [line.answer for line in journal.runs() if line.run_id == old] == ["done \ufffd"]
    json.dumps(agent(journal).result(old).to_json(), ensure_ascii=False).encode()


def test_nothing_written_can_be_changed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    agent(journal).run("x")
    with sqlite3.connect(journal.path) as db:
        for statement in ("UPDATE events SET event = '{}'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                db.execute(statement)


def test_it_keeps_no_pickle(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    agent(journal, [call("one"), "1"]).run("x")
    with sqlite3.connect(journal.path) as db:
        assert {type(row[0]) for row in db.execute("SELECT event FROM events")} == {str}


def test_unknown_run_wrong_file_and_newer_format(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run 'x'"):
        Journal(tmp_path / "journal.db").events("x")
    (tmp_path / "text").write_text("this is not a database, whatever its name says " * 40)
    with pytest.raises(TrimtabError, match=r"not a database.*Move the file away"):
        Journal(tmp_path / "text")
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(BadInput, match="format 99"):
        Journal(tmp_path / "new.db")


def test_what_to_do_depends_on_what_is_wrong(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal._db.execute("PRAGMA max_page_count=1")  # as full as a disk can be
    with pytest.raises(TrimtabError, match=r"full.*Free disk space"):
        agent(journal).run("x " * 100_000)
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("PRAGMA user_version=1")
    with pytest.raises(TrimtabError, match=r"no such table.*Move the file away"):
        Journal(tmp_path / "other.db").runs()
    with pytest.raises(TrimtabError, match=r"set TRIMTAB_HOME to a folder that is"):
        Journal(tmp_path / "journal.db" / "below")
    with pytest.raises(BadInput, match="0 is not 1 or more"):
        journal.runs(0)


def test_many_threads_and_journals_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    errors = []

    def work(n: int) -> None:
        try:
            asyncio.run(agent(Journal(path), [call("one"), str(n)]).arun(f"task {n}"))
        except TrimtabError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {(line.status, line.steps) for line in Journal(path).runs()} == {("done", 3)}


def test_a_new_journal_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    begin = threading.Barrier(16)

    def open_together(path: Path) -> int:
        begin.wait()
        return len(Journal(path).runs())

    with ThreadPoolExecutor(16) as pool:
        for n in range(20):
            assert set(pool.map(open_together, [tmp_path / f"{n}.db"] * 16)) == {0}


def test_two_writers_of_one_run_cannot_both_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    run_id = asyncio.run(journal.begin({"kind": "start", "task": "x", "messages": [], "about": {}}))
    asyncio.run(journal.append(run_id, 1, {"kind": "resume"}))
    with pytest.raises(BadInput, match="another process"):
        asyncio.run(Journal(journal.path).append(run_id, 1, {"kind": "resume"}))


def test_importing_the_agent_is_light() -> None:
    code = (
        "import sys, trimtab.agent, trimtab.agent.commands;"
        "print([m for m in ('torch', 'langgraph', 'sklearn', 'pydantic', 'numpy', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
