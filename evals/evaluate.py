"""What `trimtab eval` and `trimtab compare` do with what was asked of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import need_place
from ..errors import BadInput, Unknown, printable
from ..home import home
from ..models.chat import Usage
from ..models.price import Prices, cost, load_prices
from . import report
from .arms import AUTO, Side, arm_of, builder, identity, open_side, require_here, require_profile, side
from .compare import Summary, compare_evaluations, energy_notes, notes, summarise, verdict
from .options import MOST
from .progress import shown
from .records import Arm, Evaluation
from .run import run_suite
from .suite import Suite, find_suite

if TYPE_CHECKING:
    from ..models.engine import Engine


async def evaluate(args: argparse.Namespace) -> int:
    """One arm on one suite; see `commands.py` for the arguments."""
    suite = find_suite(args.suite).first(args.limit)
    if len(suite.tasks) * args.trials > MOST:
        raise BadInput(f"{len(suite.tasks)} tasks make more than {MOST} runs", where=f"--trials {args.trials}")
    chosen = side(args.model, args.engine, args.profile)
    prices = load_prices(args.prices)
    need_place(args.resume, "--resume")
    need_place(record_folder(), "TRIMTAB_HOME", folder=True)
    async with open_sides([chosen], quiet=args.json) as [engine]:
        arm = arm_of(chosen, engine, concurrency=args.concurrency)
        if args.prices is not None:
            require_price(arm, prices)
        records = args.resume or new_record_file(suite, arm)
        try:
            evaluation = await run_arm(suite, chosen, arm, engine, trials=args.trials, records=records, quiet=args.json)
            summary = summarise(evaluation, prices)
            lacking = unpriced(args, summary)
        except BaseException:
            print(f"recorded so far: {records} (go on with --resume {records})", file=sys.stderr)
            raise
    if args.json:
        document = {
            "suite": suite.name,
            "suite_sha256": suite.sha256,
            **summary.to_json(),
            **({} if lacking is None else {"error": lacking.as_dict()}),
            "wall_seconds": evaluation.wall_seconds,
            "records": str(records),
            "tasks": [r.to_json() for r in evaluation.records],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)
    else:
        print_table(f"Suite {suite.name}", summary)
        for line in (*summary.spending.assumptions, *energy_notes(summary)):
            print(printable(f"- {line}"))
        print(f"Records: {records}", flush=True)
    return ended(lacking)


async def compare_arms(args: argparse.Namespace) -> int:
    """Two arms on one suite; see `commands.py` for the arguments."""
    suite = find_suite(args.suite).first(args.limit)
    if not 0 < args.margin < 1:
        raise BadInput(f"{args.margin} is not a share between 0 and 1", where="--margin", fix="5 points are 0.05.")
    if args.escalate and args.small != AUTO:
        raise BadInput("only the router hands steps on", where="--escalate", fix="Use it with --small auto.")
    small, large = side(args.small_model, args.engine, args.small), side(args.large, args.engine)
    prices = load_prices(args.prices)
    need_place(args.report, "--report", folder=True)
    need_place(record_folder(), "TRIMTAB_HOME", folder=True)
    async with open_sides([small, large], quiet=args.json) as [first, second]:
        hand_on = second if args.escalate else None
        arms = (
            arm_of(small, first, concurrency=args.concurrency, large=hand_on),
            arm_of(large, second, concurrency=args.concurrency),
        )
        if args.prices is not None:
            for arm in arms:
                require_price(arm, prices)
        files = new_record_file(suite, arms[0], "small"), new_record_file(suite, arms[1], "large")
        try:
            # One after the other: side by side they would slow each other down and the latencies would mean nothing.
            left = await run_arm(suite, small, arms[0], first, large=hand_on, records=files[0], quiet=args.json)
            right = await run_arm(suite, large, arms[1], second, records=files[1], quiet=args.json)
            comparison = compare_evaluations(left, right, prices, margin=args.margin)
            lacking = unpriced(args, comparison.small, comparison.large)
        except BaseException:
            if begun := [str(file) for file in files if file.exists()]:
                print(f"recorded so far: {', '.join(begun)}", file=sys.stderr)
            raise
    # What was found is shown before anything else can fail.
    if args.json:
        places = [] if args.report is None else report.report_files(args.report)
        more: dict[str, Any] = {"report": [str(path) for path in places], "records": [str(file) for file in files]}
        more |= {} if lacking is None else {"error": lacking.as_dict()}
        print(json.dumps(comparison.to_json() | more, indent=2, ensure_ascii=False), flush=True)
    else:
        print_table(f"Suite {suite.name}", comparison.small, comparison.large)
        print(verdict(comparison))
        for line in notes(comparison):
            print(printable(f"- {line}"))
        print(f"Records: {', '.join(map(str, files))}", flush=True)
    if args.report is not None:
        written = report.write_report(comparison, args.report)
        if not args.json:
            print(f"Written: {', '.join(map(str, written))}", flush=True)
    return ended(lacking)


async def run_arm(
    suite: Suite,
    chosen: Side,
    arm: Arm,
    engine: Engine,
    *,
    large: Engine | None = None,
    trials: int = 1,
    records: Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """One arm on a suite, with its progress shown."""
    build = builder(chosen.profile, engine, large=large)
    with shown(arm.label, quiet=quiet) as progress:
        return await run_suite(
            suite, build, arm, trials=trials, records=records, identity=identity(chosen), progress=progress
        )


@asynccontextmanager
async def open_sides(sides: Sequence[Side], *, quiet: bool = False) -> AsyncIterator[list[Engine]]:
    """The engines of all sides, coming up at the same time; a model that two sides share is opened once.

    Raises:
        NotFound, BadInput, EngineUnavailable: as `require_here` and `open_side`.
    """
    for one in sides:
        require_here(one)

    def tell(text: str) -> None:
        if not quiet:
            print(f"  {printable(text)}", file=sys.stderr, flush=True)

    async with AsyncExitStack() as stack:
        opening: dict[tuple[str, str | None], asyncio.Task[Engine]] = {}
        for one in sides:
            key = one.engine, one.model
            if key not in opening:
                bare = Side(one.model, one.engine)
                opening[key] = asyncio.create_task(_held(stack, open_side(bare, tell)))
        try:
            await asyncio.gather(*opening.values())
        except BaseException:
            for task in opening.values():
                task.cancel()
            await asyncio.gather(*opening.values(), return_exceptions=True)
            raise
        engines = [opening[one.engine, one.model].result() for one in sides]
        for one, engine in zip(sides, engines, strict=True):
            await require_profile(engine, one.profile)
        yield engines


async def _held(stack: AsyncExitStack, manager: Any) -> Any:
    return await stack.enter_async_context(manager)


def require_price(arm: Arm, prices: Prices) -> None:
    """Raises Unknown, before anything is spent, when a model of the arm has no price that one can reckon with."""
    for model in filter(None, (arm.model, arm.large)):
        if cost(Usage(0, 0), 0.0, model, prices) is None:
            half = model in prices and "an entry, but no price follows from it"
            raise Unknown(
                f"model {model!r} has {half or 'no price'}",
                where="--prices",
                fix="Give input_cost_per_token and output_cost_per_token, cost_per_second or machine_cost_per_hour.",
            )


def unpriced(args: argparse.Namespace, *summaries: Summary) -> Unknown | None:
    """What is wrong where prices were asked for and one is not known after all: an engine may not count its tokens."""
    try:
        for summary in summaries if args.prices is not None else ():
            summary.spending.require_dollars()
    except Unknown as error:
        return error
    return None


def ended(lacking: Unknown | None) -> int:
    """The exit code, once all that was measured is shown: that alone is no reason to withhold it."""
    if lacking is None:
        return 0
    print(printable(f"trimtab: {lacking}"), file=sys.stderr)
    return lacking.exit_code


def record_folder() -> Path:
    """Where evaluations are recorded."""
    return home() / "evaluations"


def new_record_file(suite: Suite, arm: Arm, role: str = "") -> Path:
    """A file of its own for this evaluation.

    Args:
        role: tells two arms of one comparison apart.
    """
    name = "-".join(filter(None, (suite.name, role, arm.label)))
    words = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    return record_folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{words}.jsonl"


def print_table(title: str, *summaries: Summary) -> None:
    """The table of one or two arms on stdout."""
    from rich.console import Console

    console = Console()
    # Into a pipe or a file the table keeps its width; on a terminal it fits the window.
    Console(width=None if console.is_terminal else 120).print(report.table(*summaries, title=title))
