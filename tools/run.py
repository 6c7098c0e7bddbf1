"""Run a tool's function under a time limit, wherever it belongs: in a thread, or on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import ToolFailure

T = TypeVar("T")
LAST_WORDS = 1.0  # seconds a cancelled async tool gets to clean up


async def run(
    function: Callable[..., Any],
    values: Mapping[str, Any],
    finish: Callable[[Any], T],
    *,
    name: str,
    timeout: float,
    changes: bool = False,
) -> T:
    """`finish(function(**values))` within `timeout` seconds of wall time; `changes` says whether it changes something.

    Raises:
        ToolFailure: it took longer, or tried to end the process.
        Exception: whatever the function raised.
        asyncio.CancelledError: the awaiting task was cancelled; the function is cancelled or abandoned first.
    """
    task: asyncio.Future[T]
    if _is_async(function):
        task = asyncio.ensure_future(_guarded(function, values, finish))
    else:
        task = _threaded(lambda: finish(_forbid_awaitable(function(**values), name)), name)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            task.cancel()
            # Wait a moment for its clean-up, but no longer: it may swallow the cancellation.
            await asyncio.wait({task}, timeout=LAST_WORDS)
            # A thread goes on, and what was cancelled may have been half done.
            end = ": nobody knows whether it happened, or will" if changes else " and was stopped"
            raise ToolFailure(f"{name} took longer than {timeout:g} seconds{end}")
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        task.add_done_callback(_look_at)
    if task.cancelled():
        raise ToolFailure(f"{name} was cancelled from inside")
    return task.result()


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _guarded(function: Callable[..., Any], values: Mapping[str, Any], finish: Callable[[Any], T]) -> T:
    try:
        return finish(await function(**values))
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        # Ctrl-C reaches the main thread alone. Anywhere else the tool itself raised, and would end the event loop, on
        # which others wait.
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        raise ToolFailure(f"the tool raised {type(error).__name__}") from None


def _threaded(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Start `work` in a daemon thread of its own.

    Not in the loop's executor: a hung tool would hold one of its few workers for good, and Python waits for executor
    threads before it exits. Python has no way to stop a thread, so one that outlives its limit is abandoned; being a
    daemon it does not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(value)  # type: ignore[arg-type]  # T, as `work` returned it
            else:
                future.set_exception(error)

    def body() -> None:
        value: T | None = None
        problem: BaseException | None = None
        try:
            value = context.run(work)
        except Exception as error:
            # A future refuses StopIteration, and would pass it on as something else.
            problem = ToolFailure(f"StopIteration: {error}") if isinstance(error, StopIteration) else error
        except BaseException as error:
            problem = ToolFailure(f"the tool raised {type(error).__name__}")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits for the answer
            loop.call_soon_threadsafe(settle, value, problem)

    context = contextvars.copy_context()
    threading.Thread(target=body, name=f"tool {name}", daemon=True).start()
    return future


def _forbid_awaitable(value: Any, name: str) -> Any:
    if inspect.iscoroutine(value):
        value.close()
        raise ToolFailure(f"{name} gave a coroutine: its function must be declared with async def")
    return value


def _look_at(task: asyncio.Future[Any]) -> None:
    """Take note of a late exception, so that asyncio does not report it as never retrieved."""
    if not task.cancelled():
        task.exception()
