"""The agent on the embedded model behind the real vLLM server."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from trimtab.agent import Agent, Journal
from trimtab.tools.builtin import builtin_tools
from trimtab.tools.builtin.state import snapshot

pytestmark = pytest.mark.server


def agent(server: Any, place: Path, profile: str | None = None) -> Any:
    tools = builtin_tools(place, today=lambda: date(2026, 5, 12))
    return Agent(tools, profile, server.url, model=server.model, journal=Journal(place / "journal.db"))


async def test_a_calculation(server: Any, tmp_path: Path) -> None:
    result = await agent(server, tmp_path, "calc").arun("what is 1001 divided by 7")
    assert "143" in result.answer
    assert [step.tool for step in result.steps if step.kind == "tool"] == ["calculate"]
    assert [receipt.profile.partition("@")[0] for receipt in result.receipts] == ["calc", "calc"]
    assert result.usage.prompt_tokens > 0


async def test_a_routed_request_acts(server: Any, tmp_path: Path) -> None:
    result = await agent(server, tmp_path).arun("add milk to my to-do list")
    route = result.steps[0].route
    assert (route.profile, route.engine) == ("todos", "small")
    assert route.confidence > 0.6
    assert snapshot(tmp_path)["todos"] == ["milk"]


async def test_one_session_serves_many_runs(server: Any, tmp_path: Path) -> None:
    async with agent(server, tmp_path) as one:
        results = [await one.arun(task) for task in ("what is 2 plus 2", "add 5 and 6")]
    assert all(result.steps for result in results)
