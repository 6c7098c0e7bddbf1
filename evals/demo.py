"""`trimtab demo`: the three uses of Trimtab on this machine, with nothing played back.

1  start real model servers              3  swap the steering of the running server
2  run tasks with tools, step by step    4  compare small with large
                                         5  stop everything
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import need_place
from ..errors import EngineError, printable
from ..models.embedded import LARGE, SMALL
from ..models.price import load_prices
from . import report, swap
from .arms import AUTO, Side, arm_of, builder, open_side
from .background import ComingEngine, in_background
from .compare import compare_evaluations, notes, verdict
from .evaluate import run_arm
from .run import outcome_of
from .score import score
from .suite import Task, find_suite

if TYPE_CHECKING:
    from rich.console import Console

    from ..models.engine import Engine

QUICK = 8
CONCURRENCY = 4


@dataclass
class Stage:
    """Where the demo speaks: numbered sections with the seconds since its start."""

    console: Console
    began: float

    @classmethod
    def open(cls) -> Stage:
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_terminal:
            # In a pipe or a file there is no window to fit into.
            console = Console(highlight=False, width=120)
        return cls(console, time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def section(self, number: int, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{number}  {title}[/bold]  [dim]{self.seconds:.0f} s[/dim]", align="left")

    def say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(printable(text), style=style))

    def tell(self, who: str) -> Any:
        """A progress callback that says who reports and when."""
        return lambda text: self.say(f"  {self.seconds:5.1f} s  {who}: {text}", "dim")


async def demo(*, engine: str = "vllm", folder: Path, quick: bool = False) -> int:
    """Run the demo and return the exit code. Whatever happens, nothing it started is left running.

    Args:
        engine: `vllm` or `transformers`.
        folder: for JSON, Markdown and chart.
        quick: compare on a few tasks only.
    """
    need_place(folder, "--report", folder=True)
    stage = Stage.open()
    stage.say("Trimtab: agents on small, steered, proven models. Everything below happens now, on this machine.")
    stage.section(1, f"Start the engines ({engine})")
    small_side, large_side = Side(SMALL, engine), Side(LARGE, engine)
    pids: list[int] = []
    try:
        async with (
            in_background(large_side, LARGE, stage.tell(f"{LARGE} (stand-in)")) as large,
            open_side(small_side, stage.tell(SMALL)) as small,
        ):
            pids.append(process_of(small))
            known = ", ".join(sorted(await small.profiles()))
            stage.say(f"{small.model} is up as process {pids[0]}; profiles: {known}.")
            stage.section(2, "Run tasks with tools that really act")
            await run_tasks(stage, small, large)
            stage.section(3, "Swap the steering of the running server")
            await swap_profiles(stage, small)
            stage.section(4, "Compare small with large")
            if not large.up:
                stage.say("waiting for the large stand-in's server ...", "dim")
            ready = await large.ready()
            pids.append(process_of(ready))
            await compare_models(stage, small, ready, large_side, folder, quick=quick)
            stage.section(5, "Stop what was started")
    except BaseException:
        stage.section(5, "Stop what was started, before the end")
        raise
    finally:
        left = [pid for pid in dict.fromkeys(pids) if pid != os.getpid() and alive(pid)]
        stage.say(f"still running: {left} (it was running before)" if left else "No server is left running.")
    stage.say(f"Done in {stage.seconds:.0f} s.", "bold")
    stage.say(
        'Next: `trimtab run "convert 80 kg to pounds"`, `trimtab serve`, `trimtab profiles list`, `trimtab --help`.'
    )
    return 0


def process_of(engine: Engine) -> int:
    """The process in which an engine's model runs: a server's, or this one."""
    pid = getattr(engine, "pid", None)
    return pid if isinstance(pid, int) else os.getpid()


def alive(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def run_tasks(stage: Stage, small: Engine, large: ComingEngine) -> None:
    """The tasks of the packaged suite `demo`, each in a fresh world, step by step."""
    suite = find_suite("demo")
    stage.say(
        "The router picks profile and engine for each step; each step shows its receipt: what was really applied."
    )
    if not large.up:
        stage.say("(Times include the other server starting on the same processor.)", "dim")
    build = builder(AUTO, small, large=large)
    right = 0
    for number, task in enumerate(suite.tasks, 1):
        stage.console.print()
        stage.say(f"Task {number}: {task.ask}", "bold")
        right += await show_task(stage, task, build)
    stage.console.print()
    stage.say(f"{right} of {len(suite.tasks)} ended as they should, judged by answer and final state.")


async def show_task(stage: Stage, task: Task, build: Any) -> bool:
    """One task, printed as it goes; whether it ended as it should."""
    from ..agent.show import render_end, render_step
    from ..tools.builtin import builtin_tools
    from ..tools.builtin.state import seed, snapshot

    with tempfile.TemporaryDirectory(prefix="trimtab-demo-") as name:
        home = Path(name)
        seed(home, dict(task.state))
        before = snapshot(home)
        tools = builtin_tools(home, today=lambda: task.today)
        result = None
        async for event in build(tools).stream(task.ask):
            if event.step is not None:
                stage.console.print(render_step(event.step))
            result = event.result
        after = snapshot(home)
    if result is None:
        raise EngineError("the run ended without a result", where=f"task {task.id!r}")
    stage.console.print(render_end(result))
    for key in after:
        if after[key] != before[key]:
            stage.say(f"  {key}: {before[key]} -> {after[key]}", "cyan")
    judged = score(task, outcome_of(result, tools), before, after)
    if judged.success:
        stage.say("  as it should be", "green")
    else:
        stage.say(f"  not as it should be: {judged.code} ({judged.reason})", "red")
    return bool(judged.success)


async def swap_profiles(stage: Stage, small: Engine) -> None:
    """One task under opposite activation profiles and a weight-space profile, on the same running server."""
    from rich.table import Table
    from rich.text import Text

    before = process_of(small)
    task = find_suite("demo").tasks[0]
    stage.say(f"The same task under four profiles, one after the other: {task.ask}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("profile", "steered by", "answer", "words", "receipt"):
        table.add_column(column, overflow="fold")
    for profile, kind in swap.PROFILES.items():
        answer, receipt = await swap.answer_under(profile, small, task)
        swap.require_receipt(profile, kind, receipt)
        shown = textwrap.shorten(answer, 300, placeholder=" ...") if " " in answer else answer[:300]
        table.add_row(profile, kind, Text(printable(shown)), str(len(answer.split())), swap.receipt_line(receipt))
    stage.console.print(table)
    measured = await swap.measure(small)
    stage.say(
        f"\nMeasured on {measured[0].asks} asks: the same tool results, answered under each profile, "
        f"all {measured[0].asks * len(measured)} requests in flight at once:"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("profile", "tokens per answer", "words", "brief", "casual", "mean log-prob per token"):
        table.add_column(column, justify="left" if column == "profile" else "right")
    for row in measured:
        logprob = "unknown" if row.logprob is None else f"{row.logprob:.3f}"
        tokens = "unknown" if row.tokens is None else f"{row.tokens:.1f}"
        table.add_row(row.profile, tokens, f"{row.words:.1f}", f"{row.brief:.0%}", f"{row.casual:.0%}", logprob)
    stage.console.print(table)
    stage.say(swap.difference(measured))
    after = process_of(small)
    same = "the same process" if before == after else "NOT the same process"
    stage.say(f"Nothing was restarted: served by process {before} before and {after} after, {same}.")


async def compare_models(
    stage: Stage, small: Engine, large: Engine, large_side: Side, folder: Path, *, quick: bool
) -> None:
    """Both arms on the packaged suite `small`, the table, and the report."""
    suite = find_suite("small").first(QUICK if quick else None)
    sides = Side(SMALL, large_side.engine, AUTO), large_side
    arms = [arm_of(one, engine, concurrency=CONCURRENCY) for one, engine in zip(sides, (small, large), strict=True)]
    stage.say(
        f"{len(suite.tasks)} tasks in phrasings that no model was trained on. Small: the router over the profiles of "
        f"{SMALL}, handing nothing on. Large: {LARGE}, a stand-in for a large model, made by this project."
    )
    left = await run_arm(suite, sides[0], replace(arms[0], label=f"{SMALL}, routed"), small)
    right = await run_arm(suite, sides[1], replace(arms[1], label=f"{LARGE} (stand-in)"), large)
    comparison = compare_evaluations(left, right, load_prices())
    stage.console.print(report.table(comparison.small, comparison.large))
    stage.say(verdict(comparison))
    for line in notes(comparison):
        stage.say(f"- {line}", "dim")
    paths = await asyncio.to_thread(
        report.write_report, comparison, folder, title="Small against large, as in the demo"
    )
    stage.say(f"Written: {', '.join(map(str, paths))}")
