"""An evaluation on the real vLLM server: every model call comes with the receipt of what was asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trimtab.evals.arms import Side, arm_of, builder, require_profile
from trimtab.evals.run import run_suite
from trimtab.evals.suite import find_suite

TOOLS = {"calc": ("convert_units", "calculate"), "todos": ("add_todo", "find_contact", "list_todos")}
"""Few, so that the conversation fits even the random model of a checkout without weights."""

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]  # the first one here waits for the server's start


async def test_every_call_has_its_receipt(server: Any, tmp_path: Path) -> None:
    suite = find_suite("demo").first(2)
    suite = replace(suite, tasks=tuple(replace(task, tools=TOOLS[task.family]) for task in suite.tasks))
    known = await server.engine.profiles()
    # In a checkout whose models are being trained anew there are no profiles; the bare model must still be evaluated.
    profile = "calc" if "calc" in known else None
    await require_profile(server.engine, profile)
    arm = arm_of(Side(server.model, "vllm", profile), server.engine, concurrency=5)
    assert arm.dtype == "float32"
    got = await run_suite(suite, builder(profile, server.engine), arm, records=tmp_path / "records.jsonl")
    assert "engine_error" not in {r.code for r in got.records}, [r.reason for r in got.records]
    for record in got.records:
        assert len(record.receipts) == len(record.spent)
        for receipt in record.receipts:
            assert receipt["engine"] == "vllm"
            assert (receipt["profile"] or "").partition("@")[0] == (profile or "")
        assert all(s.usage.prompt_tokens and s.usage.completion_tokens for s in record.spent)
    assert any(record.receipts for record in got.records)
    assert got.wall_seconds > 0
