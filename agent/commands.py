"""`trimtab run` and `trimtab runs`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import positive
from ..errors import BadInput, printable

if TYPE_CHECKING:
    from .agent import Agent
    from .events import RunState
    from .steps import Result, Stop

LIMITS = {"steps": "max_steps", "tokens": "max_tokens", "tool_calls": "max_tool_calls", "seconds": "max_seconds"}
"""The option for each limit of a run."""


def add_commands(subparsers: Any) -> None:
    """Add `run` and `runs` to the command line."""
    run = subparsers.add_parser("run", help="run a task with tools")
    run.add_argument("task", nargs="?", metavar="TASK", help="what to do, in words; left out with --resume")
    run.add_argument("--profile", metavar="P", help="profile for every step (default: the router chooses)")
    run.add_argument("--engine", metavar="E", help="vllm, transformers or a URL (default: vllm)")
    run.add_argument("--model", metavar="M", help="model to serve, or to ask a URL for (default: trimtab-nano)")
    run.add_argument(
        "--large",
        metavar="E",
        help="where hard steps go: vllm, transformers, URL or none (default: the embedded stand-in, same engine)",
    )
    run.add_argument("--large-model", metavar="M", help="model of the large engine")
    run.add_argument("--tools", metavar="NAME,...", help="tools to offer (default: all built-in ones)")
    run.add_argument(
        "--home", type=Path, metavar="DIR", help="folder of the tools' files, calendar, contacts and to-dos"
    )
    run.add_argument("--resume", metavar="ID", help="go on with a run that was cut off or stopped")
    run.add_argument("--max-steps", type=int, metavar="N", help="model calls and tool calls together (default: 40)")
    run.add_argument("--max-tokens", type=int, metavar="N", help="tokens over all model calls (default: 200000)")
    run.add_argument("--max-tool-calls", type=int, metavar="N", help="calls that a tool really runs (default: 30)")
    run.add_argument("--max-seconds", type=float, metavar="S", help="wall time (default: 600)")
    run.add_argument(
        "--prices", type=Path, metavar="FILE", help="prices in litellm's key format, added to the packaged ones"
    )
    run.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    run.set_defaults(handler=run_task)

    runs = subparsers.add_parser("runs", help="look at recorded runs").add_subparsers(metavar="WHAT", required=True)
    listing = runs.add_parser("list", help="the latest runs, newest first")
    listing.add_argument("--limit", type=positive, default=20, metavar="N", help="at most so many (default: 20)")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(handler=list_runs)
    show = runs.add_parser("show", help="the steps of one run")
    show.add_argument("run_id", nargs="?", metavar="ID", help="default: the latest")
    show.add_argument("--json", action="store_true")
    show.set_defaults(handler=show_run)


def add_train_commands(subparsers: Any) -> None:
    """Add `router` to `trimtab train`."""
    router = subparsers.add_parser("router", help="train the classifier that chooses a profile for a request")
    router.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: its place in the package)")
    router.add_argument("--requests", type=int, default=24_000, metavar="N", help="training requests (default: 24000)")
    router.add_argument("--seed", type=int, default=0)
    router.add_argument("--json", action="store_true")
    router.set_defaults(handler=train_router)


def run_task(args: argparse.Namespace) -> int:
    """Run one task, or go on with one, printing each step as it ends."""
    from .portal import call

    if args.task is None and args.resume is None:
        raise BadInput("there is no task", fix='Say what is to be done: trimtab run "what is 6 times 7"')
    agent = _agent(args)
    result = call(_follow(agent, args.task, args.resume, quiet=args.json))
    if args.json:
        print(json.dumps(result.to_json(), ensure_ascii=False, indent=2))
    if result.stopped is None:
        return 0
    error = result.stopped.error()
    way_on = _way_on(result, result.stopped, agent.journal.state(result.run_id))
    print(f"trimtab: {printable(error.what)}. {way_on}", file=sys.stderr)
    return error.exit_code


def _way_on(result: Result, stop: Stop, state: RunState) -> str:
    """What helps a run that stopped. Going on as before would mostly end in the same place."""
    again = f"trimtab run --resume {result.run_id}"
    if stop.kind in LIMITS:
        enough = math.ceil(2 * max(stop.limit or 0, stop.value or 0, 1))
        return f"`{again} --{LIMITS[stop.kind].replace('_', '-')} {enough}` goes on with it"
    if state.about.get("profile") is not None:
        return "Without --profile, other profiles and a larger model may be tried"
    engines = [step.route.engine for step in result.steps if step.route is not None]
    if state.loop_escalated or engines[-1:] == ["large"]:
        return "Say the task in other words, or name another model with --large and --large-model"
    return f"`{again} --large ENGINE` lets a larger model try: vllm, transformers or a URL"


async def _follow(agent: Agent, task: str | None, resume: str | None, *, quiet: bool) -> Result:
    from ..errors import EngineError

    show = _silence if quiet else _console()
    run_id, result = resume, None
    try:
        async for event in agent.stream(task, resume=resume):
            run_id = event.run_id
            if event.step is not None:
                show(event.step)
            if event.result is not None:
                result = event.result
                show(result)
    except EngineError as error:
        if run_id is not None and error.fix is None:
            print(f"trimtab: the run is kept: `trimtab run --resume {run_id}` goes on with it", file=sys.stderr)
        raise
    assert result is not None
    return result


def _silence(thing: Any) -> None:
    """Show nothing."""


def _console() -> Callable[[Any], None]:
    from rich.console import Console

    from .show import render_end, render_step
    from .steps import Step

    console = Console(highlight=False)

    def show(thing: Any) -> None:
        console.print(render_step(thing) if isinstance(thing, Step) else render_end(thing))

    return show


def _agent(args: argparse.Namespace) -> Agent:
    """The agent of the arguments; with --resume, what they leave open is as it was in the run."""
    from ..home import expanded, home
    from ..models.price import load_prices
    from ..tools.builtin import builtin_tools
    from .agent import Agent
    from .engines import STAND_IN
    from .journal import Journal
    from .limits import Limits

    journal = Journal()
    was = journal.state(args.resume).about if args.resume else {}
    engine, model = _engine(args.engine, args.model, was.get("engine"))
    if args.large is None and args.large_model is None and was:
        large, large_model = _engine(None, None, was.get("large")) if was.get("large") else ("none", None)
    else:
        large, large_model = args.large or STAND_IN, args.large_model
    place = expanded(args.home or was.get("home") or home() / "workspace", "--home").absolute()
    tools = builtin_tools(place)
    names = args.tools.split(",") if args.tools else was.get("tools")
    given = {kind: getattr(args, option) for kind, option in LIMITS.items()}
    return Agent(
        tools=tools if names is None else tools.only(name.strip() for name in names),
        profile=args.profile or was.get("profile"),
        engine=engine or "vllm",
        model=model,
        large=large,
        large_model=large_model,
        limits=Limits(**{name: value for name, value in given.items() if value is not None}),
        journal=journal,
        prices=load_prices(args.prices),
        progress=lambda text: print(printable(text), file=sys.stderr, flush=True),
        note={"home": str(place)},
    )


def _engine(kind: str | None, model: str | None, was: dict[str, str | None] | None) -> tuple[str | None, str | None]:
    """Engine and model: as said, else as they were. Another engine than before brings its own default model."""
    if was is None or was["kind"] == "object" or (kind is not None and kind != was["kind"]):
        return kind, model
    return was["kind"], model or was["model"]


def list_runs(args: argparse.Namespace) -> int:
    """Print the latest runs."""
    from .journal import Journal

    lines = Journal().runs(args.limit)
    if args.json:
        print(json.dumps([vars(line) for line in lines], ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .show import short

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("run", "when", "status", "steps"):
        table.add_column(heading, no_wrap=True)
    for heading in ("task", "answer"):
        table.add_column(heading)
    for line in lines:
        cells = (line.run_id, line.at[:16], line.status, str(line.steps))
        texts = (Text(short(text[:60]), no_wrap=True, overflow="ellipsis") for text in (line.task, line.answer))
        table.add_row(*cells, *texts)
    console = Console(highlight=False)
    # A run's id is there to be copied: the cut is for task and answer, and only where a screen is narrow.
    console.width = max(console.width, 80) if console.is_terminal else 240
    console.print(table if lines else "no runs yet")
    return 0


def show_run(args: argparse.Namespace) -> int:
    """Print one run."""
    from .agent import Agent
    from .journal import Journal

    journal = Journal()
    run_id = args.run_id
    if run_id is None:
        latest = journal.runs(1)
        if not latest:
            raise BadInput("there are no runs yet", where=str(journal.path), fix='Make one: trimtab run "TASK"')
        run_id = latest[0].run_id
    result = Agent(journal=journal, large=None).result(run_id)
    if args.json:
        print(json.dumps(result.to_json(), ensure_ascii=False, indent=2))
        return 0
    show = _console()
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(printable(result.task), style="bold"))
    for step in result.steps:
        show(step)
    show(result)
    return 0


def train_router(args: argparse.Namespace) -> int:
    """Train the router on the corpus and print how it does on phrasings it was not trained on."""
    from ..models.embedded import ROUTER
    from ..models.embedded.corpus import labelled_requests
    from .train_router import train

    out = args.out or ROUTER
    data = labelled_requests("train", args.requests, args.seed), labelled_requests("test", 1500, args.seed + 1)
    report = train(out, *data, seed=args.seed)
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
        return 0
    sure = "none" if report.accuracy_followed is None else f"{report.accuracy_followed:.1%}"
    print(f"{out}: {report.accuracy:.1%} right on {report.n} requests of unseen phrasings")
    print(f"at p >= {report.threshold}: {report.followed:.1%} followed, {sure} of them right")
    return 0
