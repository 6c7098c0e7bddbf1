"""Which servers run on this machine: one small file each under `home()/servers`, so that commands find each other's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import NotFound
from ..home import home, write_atomic


@dataclass(frozen=True)
class RunningServer:
    """A server that answers requests.

    Attributes:
        model: the id under which the base model is served.
        sha256: of the model's weights.
        pid: of the vLLM server process.
        started: when that process began, seconds since the epoch; with `pid` it tells one process from another.
        roots: folders its profiles come from.
        log: its log file.
        dtype: the number format it computes in.
    """

    model: str
    sha256: str
    url: str
    pid: int
    started: float
    roots: tuple[str, ...]
    log: str
    dtype: str = "float32"

    @property
    def file(self) -> Path:
        return home() / "servers" / f"{self.model}-{self.sha256[:8]}-{self.dtype}.json"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def alive(self) -> bool:
        """Whether that very process is still there."""
        began = process_start(self.pid)
        return began is not None and abs(began - self.started) < 1.0


def process_start(pid: int) -> float | None:
    """When a process began, in seconds since the epoch; None when there is no such process, or it is a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def register(server: RunningServer) -> None:
    """Make a server known to other commands."""
    write_atomic(server.file, json.dumps({**asdict(server), "port": server.port}, indent=1) + "\n")


def unregister(server: RunningServer) -> None:
    """Take a server's file away, unless another server has taken its place."""
    found = _read(server.file)
    if found is None or found.pid == server.pid:
        server.file.unlink(missing_ok=True)


def running_servers() -> list[RunningServer]:
    """The servers whose process is alive. Files of dead ones are removed."""
    found = []
    for path in sorted((home() / "servers").glob("*.json")):
        server = _read(path)
        if server is not None and server.alive():
            found.append(server)
        else:
            path.unlink(missing_ok=True)
    return found


def find_server() -> str:
    """The URL of the server that runs on this machine, the newest where there are several.

    Raises:
        NotFound: none runs that this user started with `trimtab serve`.
    """
    servers = running_servers()
    if not servers:
        raise NotFound("no server runs", fix="Start one with `trimtab serve`, or give its --url")
    return max(servers, key=lambda server: server.started).url


def _read(path: Path) -> RunningServer | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data.pop("port", None)
        return RunningServer(**{**data, "roots": tuple(data["roots"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
