"""One event loop in a thread of its own, for those who call an agent without `await`.

Engines belong to an event loop; with one lasting loop for all synchronous calls they stay open between calls, and it
works inside notebooks, where a loop is running already.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..errors import BadInput

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _forget() -> None:
    """A forked child has the loop, but not the thread that runs it: it would wait for ever."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)


def call(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the portal's loop and wait for it.

    An interrupt (Ctrl-C) cancels the work, waits until it has cleaned up, and is then raised.

    Raises:
        BadInput: called from the portal's own loop, which would wait for itself.
    """
    loop = _running()
    if threading.current_thread().name == "trimtab-portal":
        work.close()
        raise BadInput("the synchronous call was made from asynchronous code", fix="Use `await ...arun()` there")
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except (KeyboardInterrupt, SystemExit):
        future.cancel()
        # The future is marked cancelled at once, the task behind it still cleans up; only an own task tells when it is
        # done.
        concurrent.futures.wait([asyncio.run_coroutine_threadsafe(_settled(), loop)], timeout=60)
        raise


async def _settled() -> None:
    me = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not me and task.cancelling()]
    await asyncio.wait(others) if others else None


def _running() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="trimtab-portal", daemon=True).start()
        return _loop
