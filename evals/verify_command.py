"""`trimtab verify`: once, or on a timer with an alarm."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import above_zero, need_png
from ..errors import BadInput, printable
from .options import count, need_url

if TYPE_CHECKING:
    from ..steering.proof import Report
    from .verify import Client


def add_command(subparsers: Any) -> None:
    """Add `verify` to the command line."""
    verify = subparsers.add_parser(
        "verify",
        help="prove that live profiles fire, and touch nothing else",
        description="Ask a server the same prompts under the base model and every live profile, and hold what it says, "
        "token by token, to Hugging Face, PEFT and hooks in float32. Exit code 1 when anything differs.",
    )
    verify.add_argument("profile", nargs="*", help="profiles to check (default: all live ones)")
    verify.add_argument("--model", default="trimtab-nano", metavar="M", help="the base model: a name or a folder")
    verify.add_argument("--url", help="a server (default: the one that runs, else one is started for this)")
    verify.add_argument("--tokens", type=count, metavar="N", help="tokens of each answer (default: 16)")
    verify.add_argument(
        "--tolerance",
        type=above_zero,
        metavar="NATS",
        help="largest difference of a log probability (default: 0.001 of a server in float32, 0.5 in bfloat16)",
    )
    verify.add_argument(
        "--every",
        type=above_zero,
        metavar="SECONDS",
        help="a canary: check again and again; a profile that fails is told on stderr and taken off the server, which "
        "refuses it from then on",
    )
    verify.add_argument("--times", type=count, metavar="N", help="with --every: end after so many checks")
    verify.add_argument("--plot", type=Path, metavar="FILE", help="a .png file; with --every: of the last check")
    verify.add_argument("--json", action="store_true", help="print one JSON document (with --every: one a check)")
    verify.set_defaults(handler=_verify)


def _verify(args: argparse.Namespace) -> int:
    from .signals import run_orderly

    if args.times is not None and args.every is None:
        raise BadInput("goes with --every only", where="--times")
    if args.url is not None:
        need_url(args.url, "--url")
    need_png(args.plot, "--plot")
    return run_orderly(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from ..home import write_atomic
    from ..models.card import find_model
    from ..models.engines import open_engine
    from ..models.engines.http import key_from_environment
    from ..steering.proof import LENGTHS, NEW
    from ..steering.reference import Reference
    from .verify import Client, verify
    from .verify_picture import verify_png

    card, store, new = find_model(args.model), args.default_store(), args.tokens or NEW
    if card.context is not None and max(LENGTHS) + new > card.context:
        raise BadInput(
            f"{card.name} reads {card.context} tokens, prompts of up to {max(LENGTHS)} among them",
            where=f"--tokens {new}",
            fix="Ask for fewer",
        )
    async with AsyncExitStack() as stack:
        url = args.url
        if url is None:
            engine: Any = await stack.enter_async_context(open_engine("vllm", model=args.model, progress=_say))
            url = engine.url
        client = Client(url, card.name, key_from_environment())
        stack.push_async_callback(client.aclose)
        reference = await asyncio.to_thread(Reference, card.path)
        code, done = 0, 0
        while True:
            report = await verify(
                client,
                reference,
                store,
                args.profile,
                seed=time.time_ns() % 2**40,
                new=new,
                tolerance=args.tolerance,
            )
            done += 1
            _print(report, args.json)
            if not report.ok:
                code = 1
                if args.every is not None:
                    await _refuse(report, client)
            if args.plot is not None:
                write_atomic(args.plot, verify_png(report))
            if args.every is None or done == args.times:
                return code
            await asyncio.sleep(args.every)


async def _refuse(report: Report, client: Client) -> None:
    """Take what failed off the server: an error is better than an answer that is not what it says."""
    for check in report.checks:
        if check.problems and check.sha256 is not None:
            await client.unload(check.name)
            _say(f"ALARM: {check.name} failed ({check.problems[0]}) and was taken off {report.url}")
        elif check.problems:
            _say(f"ALARM: the base model {check.name} failed ({check.problems[0]}) on {report.url}")


def _print(report: Report, as_json: bool) -> None:
    from .verify import table

    print(json.dumps(report.to_json()) if as_json else printable(table(report)), flush=True)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
