"""The process between Trimtab and a server it starts: whatever happens to either side, nothing of the server is left.

Run by path with the standard library alone: `python -I -S guard.py FD GRACE COMMAND...`. It stands at the head of its
own session and process group, starts the command, writes the command's pid to the socket FD and then waits:

- the command ends by itself, or is killed: what it left behind (vLLM's engine core) is killed, the exit status passed
  on;
- SIGTERM or SIGINT comes, or the other end of FD closes because the starting process is gone, `kill -9` included: the
  command gets SIGTERM, after GRACE seconds SIGKILL, and then the same.

On Linux it is the subreaper of its descendants, so that a grandchild whose parent died is still found. A death signal
tied to the starting *thread* (PR_SET_PDEATHSIG alone) would take the server down with a mere worker thread.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """Linux's prctl(2); nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def start(command: list[str], control: int) -> int:
    """Start the command as a child that dies with this process; its pid."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    os.close(control)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def reap(child: int) -> int | None:
    """Collect every process that ended; the command's exit status if it is among them."""
    status = None
    with suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                status = ended
    return status


def watch(child: int, control: int, wake: int, grace: float) -> int:
    """Wait until the command has ended; its exit status."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: stopping.append(n))
    deadline: float | None = None
    while True:
        status = reap(child)
        if status is not None:
            return status
        waiting = [wake] if deadline else [wake, control]
        ready, _, _ = select.select(
            waiting, [], [], None if deadline is None else max(0.0, deadline - time.monotonic())
        )
        if wake in ready:
            os.read(wake, 512)
        if deadline is None and (stopping or control in ready):
            os.kill(child, signal.SIGTERM)
            deadline = time.monotonic() + grace
        elif deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + 1.0


def sweep() -> None:
    """Kill and collect every descendant that is left. Orphans of a killed one become our children, so look again."""
    listing = f"/proc/self/task/{os.getpid()}/children"
    if not os.path.exists(listing):
        os.killpg(0, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            with open(listing) as file:
                pids = [int(pid) for pid in file.read().split()]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def main(arguments: list[str]) -> int:
    control, grace, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_inheritable(control, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    child = start(command, control)
    with suppress(OSError):
        os.write(control, b"%d\n" % child)
    status = watch(child, control, wake, grace)
    sweep()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
