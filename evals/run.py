"""Run a suite: every task in its own fresh world, several at once, each result on disk before the next begins."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BadInput, EngineError, EngineRefused, NotFound, TrimtabError
from ..models.chat import Usage
from .cost import Spent
from .records import Arm, Evaluation, Record, RecordLog
from .score import Called, Outcome, score
from .suite import Suite, Task, check_tasks

if TYPE_CHECKING:
    from ..agent.steps import Result, Step
    from ..tools import Toolset

TOO_MANY_BROKEN = 5
"""After so many infrastructure errors in a row the engine is given up, rather than every task with it."""

TOO_LONG = re.compile(r"context (length|window)|model's context|too many tokens|prompt is too long", re.IGNORECASE)
"""How engines say that a conversation no longer fits: vLLM, OpenAI and others, and the one in this process."""

Builder = Callable[["Toolset"], Any]
"""Makes an agent for a set of tools."""
Progress = Callable[[int, int, int | None], None]
"""Told after each run: how many are done, of how many, and how many of them succeeded (None: nobody judges yet)."""


async def run_suite(
    suite: Suite,
    build: Builder,
    arm: Arm,
    *,
    trials: int = 1,
    records: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run every task of a suite, `arm.concurrency` at once.

    Args:
        build: makes the agent under test for the tools of a task.
        trials: runs of every task.
        records: the record file. Runs that it already holds are not repeated, except broken ones; None keeps nothing.
        identity: hashes of what is evaluated (model, profile); a record file with another identity is refused.

    Raises:
        BadInput: a task names an unknown tool or a state that cannot be, or the record file is of another evaluation.
        EngineError: the engine broke run after run; what was recorded stays recorded.
    """
    check_tasks(suite.tasks, f"suite {suite.name!r}")
    header = {
        "format": 1,
        "suite": suite.name,
        "suite_sha256": suite.sha256,
        "tasks": len(suite.tasks),
        "trials": trials,
        "arm": asdict(arm),
        "identity": dict(identity or {}),
    }
    log = RecordLog(records, header, metered=arm.here)
    try:
        todo = [(t, i) for t in suite.tasks for i in range(trials) if (t.id, i) not in log.done]
        await _run_all(todo, build, arm, log, progress, total=len(suite.tasks) * trials)
    finally:
        log.close()
    order = {(t.id, i): n for n, (t, i) in enumerate((t, i) for t in suite.tasks for i in range(trials))}
    finished = sorted(log.done.values(), key=lambda r: order[r.task, r.trial])
    return Evaluation(suite.name, suite.sha256, arm, tuple(finished), log.wall_seconds, log.joules)


async def _run_all(
    todo: list[tuple[Task, int]], build: Builder, arm: Arm, log: RecordLog, progress: Progress | None, *, total: int
) -> None:
    broken = 0
    queue = iter(todo)

    async def worker() -> None:
        nonlocal broken
        for task, trial in queue:
            record = await run_task(task, build, trial=trial)
            log.add(record)
            broken = broken + 1 if record.success is None else 0
            if progress is not None:
                progress(len(log.done), total, sum(r.success is True for r in log.done.values()))
            if broken >= TOO_MANY_BROKEN:
                raise EngineError(
                    f"{broken} runs in a row broke; the last: {record.reason}",
                    where=f"task {task.id!r}",
                    fix="See to the engine, then continue with the same record file.",
                )

    if progress is not None:
        progress(len(log.done), total, sum(r.success is True for r in log.done.values()))
    tasks = [asyncio.create_task(worker()) for _ in range(min(arm.concurrency, len(todo)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_task(task: Task, build: Builder, *, trial: int = 0) -> Record:
    """Run one task in a world of its own and judge it. Never raises for what the agent or the engine does."""
    from ..tools import Toolset
    from ..tools.builtin import builtin_tools
    from ..tools.builtin.state import seed, snapshot

    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="trimtab-task-", dir=folder) as name:
        home = Path(name)
        seed(home, dict(task.state))
        before = snapshot(home)
        everything = builtin_tools(home, today=lambda: task.today)
        tools = everything if task.tools is None else Toolset([everything.get(n) for n in task.tools])
        start = time.perf_counter()
        steps: list[Step] = []
        result: Result | None = None
        limit = broken = None
        try:
            async for event in build(tools).stream(task.ask):
                if event.step is not None:
                    steps.append(event.step)
                result = event.result
        except EngineRefused as error:
            # A conversation that outgrows the model is the model's own failure; anything else refused is ours.
            limit, broken = (error.what, None) if TOO_LONG.search(error.what) else (None, str(error))
        except TrimtabError as error:
            broken = str(error)
        except Exception as error:
            broken = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        outcome = outcome_of(result, tools, steps=steps, limit=limit, broken=broken)
        judged = score(task, outcome, before, snapshot(home))
    models = [s for s in steps if s.kind == "model"]
    return Record(
        task=task.id,
        family=task.family,
        trial=trial,
        ask=task.ask,
        success=judged.success,
        code=judged.code,
        reason=judged.reason,
        answer=outcome.answer,
        calls=tuple((c.name, c.arguments) for c in outcome.calls),
        steps=len(steps),
        seconds=seconds,
        spent=tuple(Spent(s.model or "unknown", s.usage or Usage(), s.seconds) for s in models),
        receipts=tuple(
            {**asdict(s.receipt), "layers": list(s.receipt.layers)} for s in models if s.receipt is not None
        ),
        escalated=any(s.route is not None and s.route.engine == "large" for s in models),
    )


def outcome_of(
    result: Result | None,
    tools: Toolset,
    *,
    steps: Sequence[Step] = (),
    limit: str | None = None,
    broken: str | None = None,
) -> Outcome:
    """A run in the terms of the scorer.

    Args:
        result: None for a run that an error ended; then `steps` are those it came to, `limit` or `broken` the reason.
    """
    calls = []
    for step in steps if result is None else result.steps:
        if step.kind != "tool" or step.tool is None:
            continue
        arguments = step.arguments
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        calls.append(Called(step.tool, text, bool(step.ok), None if step.ok else _fault(step.tool, text, tools)))
    if result is None:
        why = broken if broken or limit else "the run ended without a result"
        return Outcome(None, tuple(calls), limit, broken=why)
    stop = result.stopped
    if stop is None:
        return Outcome(result.answer, tuple(calls))
    if stop.kind in ("steps", "tokens", "seconds", "tool_calls", "loop"):
        return Outcome(result.answer, tuple(calls), stop.reason)
    return Outcome(result.answer, tuple(calls), stopped=(stop.kind, stop.reason))


def _fault(name: str, arguments: str, tools: Toolset) -> Literal["malformed", "unknown_tool"] | None:
    """What kept a failed call from running, by the tools' own judgement."""
    try:
        tools.get(name).validate(arguments)
    except NotFound:
        return "unknown_tool"
    except BadInput:
        return "malformed"
    return None
