"""The engine that runs stock vLLM as a server process of its own, with LoRA and the steering plugin."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from ...errors import BadInput, EngineUnavailable, NotFound, TrimtabError
from ...home import home
from ...steering.profile import Profile
from ...steering.store import ProfileStore
from ...steering.vllm.launch import (
    DTYPES,
    FULL_AFTER,
    bank_rows,
    server_arguments,
    server_environment,
    wanted_live,
)
from ..card import ModelCard
from ..chat import ChatRequest, Delta, Reply, Sampling, user
from ..registry import RunningServer, process_start, register, running_servers, unregister
from ..server import Progress, Server, free_port, new_log, require_port
from .http import HttpEngine

LONGEST_CONTEXT = 8192
"""Tokens of context served at most: the KV cache must hold at least one whole request."""
MOST_ADAPTERS = 16
"""Adapter slots of one batch at most; every slot costs memory and time in each step."""

SMALLEST_RANK = 32
"""Room for adapters at least, so that profiles learned while the server runs can be loaded."""

SPARE_TERMS = 16
"""Room for rank-1 terms, so that profiles learned while the server runs can be loaded."""

WARM_UP_TOOL = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}}}

STAGES = (
    (r"Resolved architecture", "vLLM is imported, the model's configuration read"),
    (r"Initializing a V1 LLM engine", "the engine process starts"),
    (r"Starting to load model", "loading the weights"),
    (r"KV cache size", "warming up"),
    (r"init engine \(", "warm; making the profiles live"),
)
FIXES = (
    (r"torchvision::nms does not exist", 'torchvision does not fit torch: uninstall it (`pip uninstall torchvision`)'),
    (r"[Aa]ddress already in use", "Another program took the port: choose another one"),
    (r"available KV cache|No available memory for the cache blocks", "Free some memory, or take a smaller model"),
    (r"tilezero|Illegal instruction|SIGILL", "The processor's AMX kernel died: start again, with float32"),
    (r"MemoryError|Cannot allocate memory|not enough memory|OutOfMemory", "Free some memory, or take a smaller model"),
    (r"No space left on device", "Free some space on the disk"),
)  # fmt: skip


def require_vllm() -> None:
    """Raises EngineUnavailable when vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineUnavailable(
            "vLLM is not installed",
            where=sys.prefix,
            fix='Install it with `pip install "trimtab[cpu]"` (or trimtab[cuda]), or use --engine transformers',
        )


def make_server(
    card: ModelCard,
    store: ProfileStore,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    dtype: str = DTYPES[0],
    compile: bool = False,
) -> Server:
    """A vLLM server for a model and the profiles of a store, not started yet.

    Args:
        dtype: the number format to compute in, one of `DTYPES`.
        compile: let vLLM compile the layers: a slower start, and more tokens per second.

    Raises:
        EngineUnavailable: vLLM is not installed.
        BadInput: the port is taken, or no model is served in this format.
    """
    if dtype not in DTYPES:
        raise BadInput(f"no model is served in {dtype!r}", where="dtype", fix=f"One of: {', '.join(DTYPES)}")
    require_vllm()
    if port is None:
        port = free_port()
    require_port(host, port)
    room = needs(card, store)
    arguments = server_arguments(
        card.path,
        served_name=card.name,
        host=host,
        port=port,
        max_model_len=min(card.context or LONGEST_CONTEXT, LONGEST_CONTEXT),
        max_loras=min(max(room.adapters, 4), MOST_ADAPTERS),
        max_lora_rank=room.rank,
        dtype=dtype,
        compile=compile,
    )
    environment = server_environment([root.resolve() for root in store.roots], None, room.terms, gates=room.gated)
    return Server(
        [sys.executable, *arguments],
        # A folder called `tools` or `models` where the user stands must not be imported by the server.
        environment={**environment, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
        url=f"http://{_reached_at(host)}:{port}",
        log=new_log(card.name),
        stages=STAGES,
        fixes=FIXES,
    )


def _reached_at(host: str) -> str:
    """The host of a URL for a server that listens there."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True)
class Needs:
    """Room that a server's profiles take.

    Attributes:
        adapters: how many different ones.
        rank: the largest among them.
        terms: rank-1 terms at the layer where each profile takes most, all together.
        gated: whether any has a condition.
    """

    adapters: int = 0
    rank: int = SMALLEST_RANK
    terms: int = SPARE_TERMS
    gated: bool = False


def needs(card: ModelCard, store: ProfileStore) -> Needs:
    """The room for the profiles that a server of this model makes live at start: those that `TRIMTAB_LIVE` names, else
    those for which its bank has rows, in the store's order. As the server does, this reads no other profile, and no
    more once profile after profile finds no row. What does not load is left for the server to judge."""
    from ...steering.bank import terms_needed
    from ...steering.intervention import variants
    from ...steering.weights import merged_adapter

    found, out, crowded = set(), Needs(), 0
    free, named = bank_rows() - 1, wanted_live()
    for profile in store.each() if named is None else _each(store, named):
        if isinstance(profile, BadInput) or profile.base_sha256 != card.sha256:
            continue
        wanted = variants(profile.interventions)
        if len(wanted.edits) > free:
            crowded += 1
            if crowded == FULL_AFTER:
                break
            continue
        crowded, free = 0, free - len(wanted.edits)
        out = replace(out, terms=out.terms + terms_needed(wanted), gated=out.gated or profile.gate is not None)
        merged = merged_adapter(profile, home() / "cache" / "adapters")
        if merged is not None:
            found.add(merged[1])
            rank = int(json.loads((merged[0] / "adapter_config.json").read_text())["r"])
            out = replace(out, adapters=len(found), rank=max(out.rank, rank))
    return out


def _each(store: ProfileStore, names: Sequence[str]) -> Iterator[Profile]:
    for name in names:
        with suppress(TrimtabError):
            yield store.get(name)


def describe(card: ModelCard, store: ProfileStore, server: Server, dtype: str) -> RunningServer:
    """The registry entry of a server that runs."""
    pid = server.pid or 0
    return RunningServer(
        model=card.name,
        sha256=card.sha256,
        url=server.url,
        pid=pid,
        started=process_start(pid) or time.time(),
        roots=tuple(str(root.resolve()) for root in store.roots),
        log=str(server.log),
        dtype=dtype,
    )


async def find_running(card: ModelCard, roots: Sequence[Path], dtype: str | None = None) -> RunningServer | None:
    """A healthy registered server with the same weights and at least these profile folders, in this number format or,
    for None, in any."""
    wanted = {str(root.resolve()) for root in roots}
    for running in running_servers():
        if running.model != card.name or running.sha256 != card.sha256 or not wanted <= set(running.roots):
            continue
        if dtype not in (None, running.dtype):
            continue
        probe = HttpEngine(running.url, card.name, trimtab=True)
        try:
            if (await probe.get("/health")).status_code == 200:
                return running
        except EngineUnavailable:
            continue
        finally:
            await probe.aclose()
    return None


class VllmEngine:
    """Chat with a model on a vLLM server: one that runs already, else one of its own.

    A server that dies is started again once; the requests it took with it are asked again, unless part of a streamed
    answer was already handed out. Use `open_engine`, which closes it.

    Args:
        share: make a server of its own known to other commands (see `registry`).
        port: for a server of its own; with a port, a running server is never taken instead.
        dtype: the number format, one of `launch.DTYPES`; None takes a server that runs whatever it has, and starts one
            in the first of them.
    """

    name = "vllm"

    def __init__(
        self,
        card: ModelCard,
        store: ProfileStore,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        share: bool = False,
        reuse: bool = True,
        dtype: str | None = None,
        compile: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.card, self.store = card, store
        self._host, self._port, self._share = host, port, share
        self._reuse, self._dtype, self._compile = reuse and port is None, dtype, compile
        self._progress = progress or (lambda _: None)
        self._http: HttpEngine | None = None
        self._running: RunningServer | None = None
        self._server: Server | None = None
        self._restarted = False
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    @property
    def model(self) -> str:
        return self.card.name

    @property
    def url(self) -> str:
        """Where the server answers."""
        return self._live.root

    @property
    def pid(self) -> int:
        """The pid of the vLLM server process."""
        if self._running is None:
            raise EngineUnavailable("the engine is not open", where=self.name)
        return self._running.pid

    @property
    def dtype(self) -> str:
        """The number format that the server computes in, one of `launch.DTYPES`."""
        if self._running is None:
            raise EngineUnavailable("the engine is not open", where=self.name)
        return self._running.dtype

    @property
    def log(self) -> Path:
        """The server's log file."""
        if self._running is None:
            raise EngineUnavailable("the engine is not open", where=self.name)
        return Path(self._running.log)

    async def open(self) -> VllmEngine:
        """Find or start the server.

        Raises:
            EngineUnavailable: vLLM is not installed, or the server does not start.
            BadInput: the port is taken.
        """
        running = await find_running(self.card, self.store.roots, self._dtype) if self._reuse else None
        if running is None:
            try:
                await self._start()
            except BaseException:
                await self.aclose()
                raise
        else:
            self._progress(f"using the server that runs at {running.url}, in {running.dtype}")
            self._connect(running)
        return self

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer one request; see `Engine.chat`."""
        server = self._live
        try:
            return await server.chat(request)
        except (EngineUnavailable, NotFound) as error:
            await self._mend(server, request, error)
        return await self._live.chat(request)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Answer one request in pieces; see `Engine.stream`."""
        for last in (False, True):
            server, begun = self._live, False
            pieces = server.stream(request)
            try:
                async for piece in pieces:
                    begun = True
                    yield piece
                return
            except (EngineUnavailable, NotFound) as error:
                if begun or last:
                    raise
                await self._mend(server, request, error)
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]

    async def profiles(self) -> list[str]:
        """The names of the live profiles."""
        return await self._live.profiles()

    async def keep(self) -> None:
        """Wait until the server dies, and start it again.

        Raises:
            EngineUnavailable: it died a second time, or did not start again.
        """
        server = self._live
        while self._running is not None and self._running.alive():
            await asyncio.sleep(0.5)
        await self._revive(server, EngineUnavailable("the server is gone", where=self.name))

    async def aclose(self) -> None:
        """Stop a server of its own; leave another's alone."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()
        if self._running is not None and self._share:
            unregister(self._running)
        self._running = None
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    @property
    def _live(self) -> HttpEngine:
        if self._http is None:
            raise EngineUnavailable("there is no server", where=self.name)
        return self._http

    def _connect(self, running: RunningServer) -> None:
        self._running = running
        # A dead server is noticed here, so retrying a refused connection for long would only delay its restart.
        self._http = HttpEngine(running.url, self.card.name, trimtab=True, retries=1)

    async def _start(self) -> None:
        # A server that takes another's place computes as that one did.
        dtype = self._dtype or (DTYPES[0] if self._running is None else self._running.dtype)
        server = make_server(
            self.card, self.store, host=self._host, port=self._port, dtype=dtype, compile=self._compile
        )
        self._progress(f"starting vLLM for {self.card.name} (log: {server.log})")
        began = time.monotonic()
        await server.start(self._progress)
        self._server = server
        running = describe(self.card, self.store, server, dtype)
        self._connect(running)
        # The first request finds much unprepared (4 s on two cores): no user's step should pay for that.
        await self._live.chat(ChatRequest((user("Hello"),), (WARM_UP_TOOL,), sampling=Sampling(max_tokens=2)))
        if self._share:
            register(running)
        self._progress(f"ready at {server.url} after {time.monotonic() - began:.0f} s")

    async def _mend(self, server: HttpEngine, request: ChatRequest, error: EngineUnavailable | NotFound) -> None:
        """Make it worth while to ask again: bring a dead server back, make a profile of the store live; else raise."""
        if isinstance(error, EngineUnavailable):
            await self._revive(server, error)
            return
        if request.profile is None:
            raise error
        try:
            # A profile learned after the server started. The store says whether there is one, or names those there are.
            await asyncio.to_thread(self.store.get, request.profile)
        except NotFound:
            raise error from None
        self._progress(f"making profile {request.profile} live")
        await server.load(request.profile)

    async def _revive(self, asked: HttpEngine, error: EngineUnavailable) -> None:
        """Start the server again if it died under a request to `asked`; else pass the error on."""
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self._http is not asked:
                return  # another request brought the server back
            if self._running is None or not await _gone(self._running):
                raise error
            log = self._running.log
            # The connection to the dead server stays until there is a new one: requests that come meanwhile fail on it
            # and wait here.
            server, self._server = self._server, None
            if server is not None:
                await server.stop()
            if self._restarted:
                self._http = None
                raise EngineUnavailable(
                    "the server died a second time", where=self.name, fix=f"Its log: {log}"
                ) from error
            self._restarted = True
            self._progress("the server died; starting it again")
            try:
                await self._start()
            except BaseException as failure:
                self._http = None
                if not isinstance(failure, TrimtabError):
                    raise
                raise EngineUnavailable(
                    f"the server died and did not start again ({failure.what})", where=self.name, fix=f"Its log: {log}"
                ) from failure


async def _gone(running: RunningServer) -> bool:
    """Whether the process is dead, or dies within the moments in which its last connections break."""
    for _ in range(20):
        if not running.alive():
            return True
        await asyncio.sleep(0.1)
    return False
