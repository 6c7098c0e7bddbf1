"""The life of a server process: start, wait until it answers, notice its death, stop it and everything it started."""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from ..errors import BadInput, EngineUnavailable
from ..home import home
from .registry import process_start

Progress = Callable[[str], None]

START_SECONDS = 300.0
GRACE_SECONDS = 8.0
"""How long a server may take to come up, and to end after SIGTERM before it is killed."""
POLL_SECONDS = 0.25
KEPT_LOGS = 20

_running: WeakSet[Server] = WeakSet()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free at this moment. Raises BadInput when the host is not one of this machine's."""
    return _bound(host, 0)


def require_port(host: str, port: int) -> None:
    """Make sure a server could listen there.

    Raises:
        BadInput: the port is taken, forbidden or out of range, or the host is not one of this machine's.
    """
    if not 0 < port < 65536:
        raise BadInput(f"{port} is not a port", where="--port", fix="Give a number from 1 to 65535")
    _bound(host, port)


def _bound(host: str, port: int) -> int:
    """The port that can be bound there: for 0, one that is free. Raises BadInput."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        ours = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise BadInput(
            f"cannot listen on {host}:{port} ({error.strerror or error})",
            where="--port" if ours else "--host",
            fix="Choose another port with --port, or stop what listens there (`trimtab doctor` lists our servers)"
            if ours
            else "Give an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them",
        ) from None


def new_log(name: str) -> Path:
    """The path of a fresh log file under `home()/logs`; the oldest beyond the kept ones are removed."""
    folder = home() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("server-*.log"), key=lambda p: p.stat().st_mtime)[: -KEPT_LOGS + 1]:
        old.unlink(missing_ok=True)
    return (
        folder / f"server-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}.log"
    )


class Server:
    """A server as a child process, behind a guard that leaves nothing of it behind (see `guard.py`).

    Args:
        command: the executable's absolute path and its arguments.
        environment: variables set on top of this process's own.
        url: where it will answer `GET /health` with 200.
        stages: (pattern in the log, what to tell the user) pairs; each is told once.
        fixes: (pattern in the log, what to do about it) pairs for a start that fails.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        url: str,
        log: Path,
        stages: Sequence[tuple[str, str]] = (),
        fixes: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.url = url
        self.log = log
        self.pid: int | None = None
        self._command, self._environment = list(command), dict(environment)
        self._stages, self._fixes = list(stages), list(fixes)
        self._guard: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def spawn(self) -> None:
        """Start the process and return at once."""
        ours, theirs = socket.socketpair()
        with self.log.open("ab") as log, theirs:
            self._guard = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")),
                    str(theirs.fileno()), str(GRACE_SECONDS), *self._command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )  # fmt: skip
        self._control = ours
        _running.add(self)
        ours.settimeout(10.0)
        with suppress(OSError, ValueError):
            self.pid = int(ours.recv(32))

    def alive(self) -> bool:
        """Whether the server process runs."""
        if self._guard is None or self._guard.poll() is not None:
            return False
        return self.pid is not None and process_start(self.pid) is not None

    @property
    def exit_code(self) -> int | None:
        """As a shell sees it (128 + signal for a killed one); None while it runs or before it was started."""
        return None if self._guard is None else self._guard.poll()

    async def start(self, progress: Progress | None = None, timeout: float = START_SECONDS) -> None:
        """Start the process and wait until it answers. When that fails, or is cancelled, nothing is left of it.

        Raises:
            EngineUnavailable: it ended, or did not answer in time; with the last lines of its log.
        """
        import httpx

        self.spawn()
        began, told, seen = time.monotonic(), 0.0, 0
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
                while True:
                    if self.exit_code is not None:
                        raise self._failure(f"the server ended with exit code {self.exit_code} before it was ready")
                    seen = self._tell(seen, progress)
                    with suppress(httpx.HTTPError):
                        if (await client.get(f"{self.url}/health")).status_code == 200:
                            return
                    waited = time.monotonic() - began
                    if waited > timeout:
                        raise self._failure(f"the server was not ready within {timeout:.0f} s")
                    if progress and waited - told > 15:
                        told = waited
                        progress(f"still starting after {waited:.0f} s (log: {self.log})")
                    await asyncio.sleep(POLL_SECONDS)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the server in an orderly way, by force where it does not listen. Safe to call again."""
        self._signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS + 3
        while self.exit_code is None and self._guard is not None and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self._finish()

    def stop_now(self) -> None:
        """As `stop`, for where nothing can be awaited."""
        self._signal(signal.SIGTERM)
        if self._guard is not None:
            with suppress(subprocess.TimeoutExpired):
                self._guard.wait(GRACE_SECONDS + 3)
        self._finish()

    def _signal(self, number: int) -> None:
        if self._guard is not None and self._guard.poll() is None:
            with suppress(ProcessLookupError):
                self._guard.send_signal(number)

    def _finish(self) -> None:
        _running.discard(self)
        if self._guard is not None:
            # The guard heads the group. While it is not collected its number cannot be another's; afterwards it may be,
            # so the group is only killed when the guard had to be, or was killed by someone else.
            if self._guard.poll() is None or self._guard.returncode < 0:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
        if self._control is not None:
            self._control.close()
            self._control = None

    def _tell(self, seen: int, progress: Progress | None) -> int:
        """Report stages found in what the log gained since byte `seen`; how far it was read."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(seen)
            raw = file.read()
            text = raw.decode(errors="replace")
            for pattern, words in list(self._stages):
                if re.search(pattern, text):
                    self._stages.remove((pattern, words))
                    if progress:
                        progress(words)
            # A line cut in two is read again from its beginning.
            return seen + raw.rfind(b"\n") + 1
        return seen

    def _failure(self, what: str) -> EngineUnavailable:
        text = ""
        with suppress(OSError):
            text = self.log.read_text(errors="replace")[-100_000:]
        fix = next((words for pattern, words in self._fixes if re.search(pattern, text)), None)
        if fix is None and self.exit_code in (132, 137):
            fix = {
                132: "The processor refused an instruction (SIGILL): start again, with float32",
                137: "It was killed, most likely for memory: free some, or take a smaller model",
            }[self.exit_code]
        told = "\n".join(f"  {line}" for line in meaningful_lines(text))
        return EngineUnavailable(
            f"{what}; its log ends with\n{told}\n" if told else what,
            where=self.url,
            fix=f"{fix or 'Run `trimtab doctor`'}. The whole log: {self.log}",
        )


def meaningful_lines(text: str, count: int = 8) -> list[str]:
    """What a log says about a failure: its last errors without traceback frames, or its last lines without any."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    # vLLM's prefix: which process, level, time, source line. The level tells errors from chatter.
    prefix = re.compile(r"^(\([^)]*\) )?((INFO|WARNING|ERROR|DEBUG|CRITICAL) \S+ \S+ \[[^\]]*\] ?)?")
    errors: list[str] = []
    rest: list[str] = []
    telling = False  # whether an error was just named: indented lines after it are its message, not a traceback
    for line in lines:
        found = prefix.match(line)
        level = found.group(3) if found else None
        said = (line[found.end() :] if found else line).rstrip()[:400]
        if not said or re.match(r'\s*(File "|[\^~]+$)|Traceback|During handling|The above exception', said):
            telling = False
        elif said[0].isspace():
            if telling:
                errors[-1] = f"{errors[-1]} {said.strip()}"[:600]
        else:
            bare = level is None and bool(re.match(r"[\w.]*(Error|Exception|Interrupt)\b|[Ff]atal|cannot ", said))
            telling = bare or level in ("ERROR", "CRITICAL")
            (errors if telling else rest).append(said)
    return list(dict.fromkeys(errors))[-count:] or rest[-count // 2 :]


@atexit.register
def _stop_all() -> None:
    for server in list(_running):
        server.stop_now()
