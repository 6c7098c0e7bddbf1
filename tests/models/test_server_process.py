"""The life of a server process, with a small real server: nothing is left behind, whoever dies and however."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from trimtab.errors import BadInput, EngineUnavailable, NotFound
from trimtab.models.registry import (
    RunningServer,
    find_server,
    process_start,
    register,
    running_servers,
    unregister,
)
from trimtab.models.server import Server, free_port, meaningful_lines, new_log, require_port

SERVER = """
import http.server, os, signal, subprocess, sys, time
mode = sys.argv[2]
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "broken":
    print("INFO 11-23 10:00:00 [x.py:1] all is well")
    print("(EngineCore pid=3) ERROR 11-23 10:00:00 [core.py:9] ValueError: the shoe does not fit")
    sys.exit(3)
helper = subprocess.Popen(["sleep", "600"])
print(f"helper {helper.pid}\\nLoading weights now", flush=True)
if mode == "slow":
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

Make = Callable[..., Server]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    script = tmp_path / "server.py"
    script.write_text(SERVER)

    def build(mode: str = "good") -> Server:
        port = free_port()
        return Server(
            [sys.executable, "-S", str(script), str(port), mode],
            environment={},
            url=f"http://127.0.0.1:{port}",
            log=new_log("test"),
            stages=[("Loading weights", "loading the weights")],
            fixes=[("shoe does not fit", "Take another shoe")],
        )

    return build


def helper_pid(server: Server) -> int:
    return next(int(line.split()[1]) for line in server.log.read_text().splitlines() if line.startswith("helper"))


def helper_of(server: Server) -> psutil.Process:
    return psutil.Process(helper_pid(server))


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two looks
        return True


async def ended(*processes: psutil.Process) -> bool:
    for _ in range(100):
        if all(map(gone, processes)):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_start_tells_and_stop_leaves_nothing(make: Make) -> None:
    server, told = make(), []
    await server.start(told.append, timeout=30)
    assert told == ["loading the weights"]
    assert server.alive()
    assert server.pid is not None
    main, helper = psutil.Process(server.pid), helper_of(server)
    assert os.getpgid(server.pid) != os.getpgid(0)
    await server.stop()
    assert not server.alive()
    assert await ended(main, helper)
    await server.stop()  # once more does no harm


async def test_a_server_that_ignores_the_stop_is_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.models.server.GRACE_SECONDS", 0.3)
    server = make("stubborn")
    await server.start(timeout=30)
    assert server.pid is not None
    main, helper = psutil.Process(server.pid), helper_of(server)
    await server.stop()
    assert await ended(main, helper)


@pytest.mark.parametrize("victim", ["server", "guard", "both"])
async def test_a_killed_server_takes_its_helpers_along(make: Make, victim: str) -> None:
    server = make()
    await server.start(timeout=30)
    assert server.pid is not None
    main, helper = psutil.Process(server.pid), helper_of(server)
    guard = main.parent()
    assert guard is not None
    for process in {"server": [main], "guard": [guard], "both": [guard, main]}[victim]:
        process.kill()
    assert await ended(main)
    assert not server.alive()
    await server.stop()
    assert await ended(main, helper, guard)


async def test_the_server_dies_with_the_program_that_started_it(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys, threading, time\n"
        "from pathlib import Path\n"
        "from trimtab.models.server import Server\n"
        "server = Server(sys.argv[2:], environment={}, url=sys.argv[1], log=Path('log'))\n"
        # Started in a thread that ends: the server must outlive it.
        "thread = threading.Thread(target=lambda: asyncio.run(server.start(timeout=30)))\n"
        "thread.start(); thread.join(); time.sleep(0.3)\n"
        "print(server.pid if server.alive() else 0, flush=True)\n"
        "time.sleep(600)\n"
    )
    model = make()
    with subprocess.Popen(
        [sys.executable, str(program), model.url, *model._command], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        main = psutil.Process(int(process.stdout.readline()))
        children = main.children()
        process.send_signal(signal.SIGKILL)
    assert children
    assert await ended(main, *children)


async def test_a_start_that_fails_says_why_and_what_to_do(make: Make) -> None:
    server = make("broken")
    with pytest.raises(EngineUnavailable) as caught:
        await server.start(timeout=30)
    text = str(caught.value)
    assert "exit code 3" in text
    assert "ValueError: the shoe does not fit" in text
    assert "all is well" not in text
    assert "Take another shoe" in text
    assert str(server.log) in text


async def test_a_start_has_a_time_limit(make: Make) -> None:
    server = make("slow")
    with pytest.raises(EngineUnavailable, match="not ready within 2 s"):
        await server.start(timeout=2)
    assert not server.alive()
    assert not psutil.pid_exists(helper_pid(server))


async def test_cancelling_a_start_leaves_nothing(make: Make) -> None:
    server = make("slow")
    task = asyncio.create_task(server.start(timeout=60))
    while "Loading" not in (server.log.read_text() if server.log.exists() else ""):
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(helper_pid(server))


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"127.0.0.1:{port} .*in use"):
            require_port("127.0.0.1", port)
    require_port("127.0.0.1", free_port())
    for bad in (0, -1, 70000):
        with pytest.raises(BadInput, match="is not a port"):
            require_port("127.0.0.1", bad)
    for host in ("203.0.113.7", "nosuch.invalid"):
        with pytest.raises(BadInput, match="address of this machine") as caught:
            require_port(host, 8000)
        assert caught.value.where == "--host"
    if socket.has_ipv6:
        require_port("::1", free_port("::1"))


def test_old_logs_are_cleared_away(trimtab_home: Path) -> None:
    folder = trimtab_home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(30):
        file = folder / f"server-old-{i}.log"
        file.write_text("")
        os.utime(file, (i, i))
    new_log("x")
    assert len(list(folder.glob("server-old-*"))) <= 20
    assert (folder / "server-old-29.log").exists()


def entry(pid: int, started: float, model: str = "m", sha256: str = "0" * 64) -> RunningServer:
    return RunningServer(model, sha256, "http://127.0.0.1:1234", pid, started, ("/a", "/b"), "/log")


def test_the_registry_knows_living_servers_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    with pytest.raises(NotFound, match="trimtab serve"):
        find_server()
    began = process_start(os.getpid())
    assert began is not None
    living = entry(os.getpid(), began)
    register(living)
    other = dataclasses.replace(living, dtype="bfloat16")
    register(other)
    assert set(running_servers()) == {living, other}
    unregister(other)
    register(entry(os.getpid(), began - 1000, "another-process-had-this-pid"))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    register(entry(gone.pid, time.time(), "dead"))
    (tmp_path / "servers" / "broken.json").write_text("{")
    assert running_servers() == [living]
    assert [p.name for p in (tmp_path / "servers").iterdir()] == [living.file.name]
    assert find_server() == living.url
    unregister(entry(1, 0.0))  # an older server must not take away the file of the one that replaced it
    assert running_servers() == [living]
    unregister(living)
    assert running_servers() == []


def test_meaningful_lines_are_the_errors_without_frames() -> None:
    log = (
        "(EngineCore pid=1) ERROR 11-23 10:00:00 [core.py:1] Traceback (most recent call last):\n"
        '(EngineCore pid=1) ERROR 11-23 10:00:00 [core.py:1]   File "x.py", line 3, in f\n'
        "(EngineCore pid=1) ERROR 11-23 10:00:00 [core.py:1] \x1b[31mOSError: disk on fire\x1b[0m\n"
        "(APIServer pid=2) INFO 11-23 10:00:01 [x.py:1] OSError handling is set up\n"
        "Traceback (most recent call last):\n"
        '  File "y.py", line 9, in g\n'
        "    raise\n"
        "    ^^^^^\n"
        "pydantic.ValidationError: 1 validation error for Config\n"
        "  Value error, unknown method\n"
    )
    assert meaningful_lines(log) == [
        "OSError: disk on fire",
        "pydantic.ValidationError: 1 validation error for Config Value error, unknown method",
    ]
    assert meaningful_lines("one\n\ntwo\n") == ["one", "two"]
    assert meaningful_lines("") == []
