"""Runs killed with SIGKILL, in a process of their own, and continued in this one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from trimtab.agent import Agent, Journal, RoutingPolicy
from trimtab.agent.testing import ReplayEngine, call
from trimtab.errors import BadInput, TrimtabError
from trimtab.models.chat import Usage
from trimtab.tools import tool

CHILD = """
    import os, signal, sys, time
    from pathlib import Path
    from trimtab.agent import Agent, Journal, RoutingPolicy
    from trimtab.agent.testing import ReplayEngine, call, calls
    from trimtab.tools import tool

    place = Path(sys.argv[1])

    def note(word):
        with (place / "acts").open("a") as file:
            file.write(word + "\\n")

    @tool
    def quick() -> str:
        '''Act at once.'''
        note("quick")
        return "quick"

    @tool
    def slow() -> str:
        '''Act and be killed.'''
        note("slow")
        time.sleep(60)

    @tool(changes=True)
    def change() -> str:
        '''Change something and be killed.'''
        note("change")
        time.sleep(60)

    def script(request):
        if len(request.messages) == 1:
            return {first}
        os.kill(os.getpid(), signal.SIGKILL)

    Agent([quick, slow, change], engine=ReplayEngine(script), journal=Journal(place / "journal.db"),
          policy=RoutingPolicy()).run("go")
"""


def killed(place: Path, first: str, until: str | None = None) -> str:
    """Run the child until it kills itself, or until it noted a word; the id of its run."""
    code = textwrap.dedent(CHILD).replace("{first}", first)
    child = subprocess.Popen([sys.executable, "-c", code, str(place)])
    if until is not None:
        deadline = time.monotonic() + 60
        while until not in acts(place):
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(child.pid, signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL
    return Journal(place / "journal.db").runs()[0].run_id


def acts(place: Path) -> list[str]:
    path = place / "acts"
    return path.read_text().split() if path.exists() else []


def continued(place: Path, script: Any) -> tuple[Any, Any]:
    def act(word: str) -> str:
        with (place / "acts").open("a") as file:
            file.write(word + "\n")
        return word

    @tool
    def quick() -> str:
        """Act at once."""
        return act("quick")

    @tool
    def slow() -> str:
        """Act."""
        return act("slow")

    @tool(changes=True)
    def change() -> str:
        """Change something."""
        return act("change")

    engine: Any = ReplayEngine(script)
    journal = Journal(place / "journal.db")
    return Agent([quick, slow, change], engine=engine, journal=journal, policy=RoutingPolicy()), engine


def test_killed_between_a_tool_call_and_the_next_model_call(tmp_path: Path) -> None:
    run_id = killed(tmp_path, 'call("quick")')
    agent, engine = continued(tmp_path, ["done"])
    result = agent.run("go", resume=run_id)
    assert result.answer == "done"
    assert acts(tmp_path) == ["quick"]
    assert [m.content for m in engine.requests[0].messages] == ["go", None, '"quick"']
    # The second model call was made, and its answer died with the process: what it used is not known.
    assert [step.tool or "model" for step in result.steps] == ["model", "quick", "model", "model"]
    assert "no answer" in (result.steps[2].error or "")
    assert (result.usage, result.cost) == (Usage(), None)


def test_killed_during_a_tool_call_which_may_be_repeated(tmp_path: Path) -> None:
    run_id = killed(tmp_path, 'calls(("quick", {}), ("slow", {}))', until="slow")
    agent, engine = continued(tmp_path, ["done"])
    result = agent.run(resume=run_id)
    assert result.answer == "done"
    assert sorted(acts(tmp_path)) == ["quick", "slow", "slow"]
    cut = [step for step in result.steps if step.error is not None]
    assert [(step.tool, step.error, step.result) for step in cut] == [("slow", "interrupted, outcome unknown", None)]
    assert [m.content for m in engine.requests[0].messages[2:]] == ['"quick"', '"slow"']


def test_killed_during_a_call_that_changes_something_which_is_never_repeated(tmp_path: Path) -> None:
    run_id = killed(tmp_path, 'call("change")', until="change")
    agent, engine = continued(tmp_path, ["I do not know whether it happened."])
    result = agent.run(resume=run_id)
    assert acts(tmp_path) == ["change"]
    assert engine.requests[0].messages[-1].content == '{"error": "interrupted, outcome unknown"}'
    assert result.answer == "I do not know whether it happened."


def test_a_run_that_is_going_on_is_not_continued_beside_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")

    @tool
    async def meddle() -> str:
        """Try to go on with this very run."""
        run_id = journal.runs()[0].run_id
        return (
            await Agent([meddle], engine=ReplayEngine([]), journal=Journal(journal.path)).arun(resume=run_id)
        ).answer

    engine: Any = ReplayEngine([call("meddle"), "no"])
    result: Any = Agent([meddle], engine=engine, journal=journal, policy=RoutingPolicy()).run("go")
    assert "is going on" in result.steps[1].error
    assert not list(tmp_path.glob("*.lock"))


def test_a_resumed_run_needs_its_tools(tmp_path: Path) -> None:
    run_id = killed(tmp_path, 'call("quick")')
    engine: Any = ReplayEngine(["x"])
    with pytest.raises(BadInput, match="slow"):
        Agent(engine=engine, journal=Journal(tmp_path / "journal.db"), policy=RoutingPolicy()).run(resume=run_id)
    assert not engine.requests


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from trimtab.agent import Agent, Journal, RoutingPolicy
    from trimtab.agent.testing import ReplayEngine, call
    from trimtab.errors import TrimtabError
    from trimtab.tools import tool

    @tool
    def act() -> str:
        '''Act.'''
        Path(sys.argv[1], "acted").write_text("yes")

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path(sys.argv[1], "journal.db")
    engine = ReplayEngine(lambda request: call("act"))
    agent = Agent([act], engine=engine, journal=Journal(path), policy=RoutingPolicy())
    # From here on no file may grow beyond what the journal has already: the disk is full.
    size = max(file.stat().st_size for file in path.parent.glob("journal.db*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        agent.run("go")
    except TrimtabError as error:
        print(error)
"""


def test_a_full_disk_is_one_clear_error_before_any_tool_acts(tmp_path: Path) -> None:
    code = textwrap.dedent(FULL)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "journal.db: the journal cannot be used" in done.stdout
    assert not (tmp_path / "acted").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrimtabError, match="journal cannot be used"):
        Agent(engine=ReplayEngine(["x"]), journal=tmp_path / "file" / "journal.db").run("go")
