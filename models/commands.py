"""`trimtab serve` and `trimtab doctor`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import printable
from ..steering.vllm.launch import DTYPES

if TYPE_CHECKING:
    from ..steering.store import ProfileStore
    from .card import ModelCard
    from .engines.vllm import VllmEngine


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this floor's commands."""
    serve = subparsers.add_parser(
        "serve",
        help="serve a model and its profiles over HTTP, OpenAI-compatible",
        description="Runs vLLM with steering in the foreground; Ctrl-C stops it. Every profile is a model id.",
    )
    serve.add_argument("--model", default=None, help="embedded name or folder (default: trimtab-nano)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 for any free one (default: %(default)s)"
    )
    serve.add_argument(
        "--profiles",
        nargs="+",
        metavar="DIR",
        default=[],
        help="folders of profiles, besides yours and the shipped ones",
    )
    serve.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="number format to compute in (default: %(default)s); bfloat16 is for a GPU, or a processor with AMX",
    )
    serve.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers: about half a minute more at the start, then more tokens per second",
    )
    serve.set_defaults(handler=_serve)

    doctor = subparsers.add_parser(
        "doctor",
        help="say what this machine has, what will be used, what is broken and how to mend it",
        description="Checks this machine and its running servers. The exit code is 1 when something is broken.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument("--port", type=int, default=8000, help="the port to look at (default: %(default)s)")
    doctor.set_defaults(handler=_doctor)


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from ..errors import NotFound
    from ..home import expanded
    from ..steering.store import ProfileStore
    from .card import find_model
    from .embedded import SMALL, default_store
    from .server import free_port

    extra = [expanded(folder, "--profiles") for folder in args.profiles]
    for folder in extra:
        if not folder.is_dir():
            raise NotFound(f"there is no folder {str(folder)!r}", where="--profiles", fix="Give folders of profiles")
    own, *shipped = default_store().roots
    port = args.port or free_port(args.host)
    card, store = find_model(args.model or SMALL), ProfileStore(own, *extra, *shipped)
    return asyncio.run(_keep(card, store, args.host, port, dtype=args.dtype, compile=args.compile))


async def _keep(card: ModelCard, store: ProfileStore, host: str, port: int, *, dtype: str, compile: bool) -> int:
    """Run a server until it is told to stop (0), or dies for good (the error says so)."""
    import asyncio
    import signal
    from contextlib import suppress

    from .engines.vllm import VllmEngine

    engine = VllmEngine(card, store, host=host, port=port, share=True, dtype=dtype, compile=compile, progress=_say)
    work = asyncio.ensure_future(_run(engine))
    loop = asyncio.get_running_loop()
    stopped: list[int] = []

    def stop(number: int) -> None:
        stopped.append(number)
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with suppress(asyncio.CancelledError):
            await work
    finally:
        _say("stopping the server")
        await engine.aclose()
    _say("stopped")
    return 0


async def _run(engine: VllmEngine) -> None:
    """Open the engine, say where it is, start it again once if it dies."""
    await engine.open()
    while True:
        print(engine.url, flush=True)
        names = await engine.profiles()
        _say(f"models: {', '.join([engine.model, *names])}")
        _say("Ctrl-C stops it")
        await engine.keep()


def _doctor(args: argparse.Namespace) -> int:
    import json

    from .doctor import examine

    findings = examine(args.port)
    broken = [f for f in findings if f.status == "broken"]
    if args.json:
        print(json.dumps({"findings": [f.as_dict() for f in findings], "broken": len(broken)}, indent=2))
    else:
        marks = {"ok": "ok    ", "warn": "warn  ", "broken": "BROKEN"}
        for finding in findings:
            print(printable(f"{marks[finding.status]}  {finding.name}: {finding.detail}"))
            if finding.fix and finding.status != "ok":
                print(printable(f"        -> {finding.fix}"))
        print("everything needed is there" if not broken else f"{len(broken)} broken: see the arrows")
    return 1 if broken else 0


def _say(text: str) -> None:
    print(f"trimtab: {printable(text)}", file=sys.stderr, flush=True)
