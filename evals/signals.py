"""Run asynchronous work so that Ctrl-C, SIGTERM and a closed terminal end it in an orderly way."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any


def run_orderly(work: Coroutine[Any, Any, int]) -> int:
    """Run `work` to its end and return its exit code; after a signal, 128 plus its number.

    At the first signal the work is cancelled and may clean up as long as it needs; later ones change nothing, since
    cutting the clean-up short is what would leave servers behind.
    """
    caught: list[signal.Signals] = []

    async def main() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            if not caught:
                print(f"\nstopping ({number.name}) ...", file=sys.stderr, flush=True)
                task.cancel()
            caught.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    try:
        code = asyncio.run(main())
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]
    return 128 + caught[0] if caught else code
