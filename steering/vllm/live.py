"""The live profiles of a server: loading, finding by name, unloading, receipts. Lives in the process that speaks HTTP.

A profile is live when its adapter is in vLLM, its vectors are in the bank of every worker, and its name answers. All
of it holds or nothing: a step that fails takes back the ones before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import BadInput, EngineError, LimitExceeded, NotFound, TrimtabError
from ...home import home
from ..files import model_sha256
from ..profile import Profile, load_profile
from ..store import ProfileStore, load_named, some, version_key
from ..strength import at_strength
from ..weights import merged_adapter, served_name
from .ladder import Ladder
from .launch import FULL_AFTER
from .served import LiveProfile, ServedAdapter
from .workers import Workers

log = logging.getLogger("vllm.trimtab")


class LiveProfiles:
    """The live profiles of one server.

    Args:
        client: vLLM's engine client.
        models: vLLM's `OpenAIServingModels`.
        roots: roots of the profile store.
    """

    def __init__(self, client: Any, models: Any, roots: Sequence[Path]) -> None:
        self._client, self._models = client, models
        self._workers = Workers(client)
        self._store = ProfileStore(*roots) if roots else None
        self._live: dict[str, LiveProfile] = {}
        self._adapters: dict[str, ServedAdapter] = {}
        self._ladder = Ladder()
        self._lock = asyncio.Lock()
        self._base_sha: str | None = None
        self.worker: dict[str, Any] = {}
        self.refused: dict[str, str] = {}

    @property
    def base_names(self) -> list[str]:
        """The ids under which the base model answers."""
        return [path.name for path in self._models.base_model_paths]

    def model_folder(self) -> Path:
        """Where the base model's files are. Raises BadInput when they are not on this machine."""
        return _model_folder(str(self._models.model_config.model))

    def profiles(self) -> list[LiveProfile]:
        """The live profiles, oldest first."""
        return [entry for entry in self._live.values() if not entry.closing]

    def adapter_names(self) -> set[str]:
        """The names vLLM knows adapters under; clients may not use them, they would get half a profile."""
        return {adapter.name for adapter in self._adapters.values()}

    async def start(self, wanted: Sequence[str] | None) -> None:
        """Check that steering is installed where the model runs, then load profiles.

        Args:
            wanted: the profiles, each of which must load, and nothing else is read; None takes every one in the store
                that fits the model, as long as there is room, and notes for the others why they are not live.

        Raises:
            TrimtabError: steering is not installed, or a wanted profile does not load.
        """
        self.worker = await self.ask_worker()
        await self._workers.open_doors()
        if wanted is not None:
            for spec in wanted:
                await self.load(spec)
            return
        if self._store is None:
            return
        folders = await asyncio.to_thread(self._store.folders)
        crowded = 0
        for done, (claimed, folder) in enumerate(folders.items(), 1):
            try:
                await self._load(functools.partial(self._checked, folder))
                crowded = 0
            except BadInput as error:
                self.refused[claimed] = str(error)
            except LimitExceeded as error:
                self.refused[claimed] = str(error)
                crowded += 1
                if crowded == FULL_AFTER and done < len(folders):
                    self.refused["..."] = f"{len(folders) - done} more were not tried: there is no room"
                    break
        for name, reason in self.refused.items():
            log.warning("Profile %s is not live: %s", name, reason)

    async def ask_worker(self) -> dict[str, Any]:
        """What runs the model, and how full its bank is. Raises EngineError when it does not answer."""
        return await self._workers.ask("trimtab_describe")

    def resolve(self, model: str) -> LiveProfile | None:
        """The live profile a request's `model` names, or None for the base model.

        A bare name means the version that was promoted, else the newest one that is live.

        Raises:
            NotFound: neither, or the promoted version is not live; the names there are are listed.
        """
        if model in self.base_names:
            return None
        name, _, rest = model.partition("@")
        if not rest and (promoted := self._promoted(name)) is not None:
            rest = promoted
        sha = rest.removeprefix("sha256:") if rest.startswith("sha256:") else None
        meant = [
            entry
            for entry in self.profiles()
            if entry.profile.name == name
            and (not rest or rest == entry.profile.version or _begins(entry.profile.sha256, sha))
        ]
        if meant:
            return max(meant, key=lambda entry: version_key(entry.profile.version))
        known = list(dict.fromkeys(entry.profile.name for entry in self.profiles()))
        why = next((reason for key, reason in self.refused.items() if key.partition("@")[0] == name), None)
        if rest and model == name:
            why = f"{name}@{rest} is promoted and not live"
        raise NotFound(
            f"The model or profile `{model}` does not exist" + (f" here ({why})" if why else ""),
            where="model",
            fix=f"Known: {some([*self.base_names, *known])}",
        )

    def named(self) -> dict[str, LiveProfile]:
        """What each bare name stands for; a name whose promoted version is not live is left out."""
        out = {}
        for name in dict.fromkeys(entry.profile.name for entry in self.profiles()):
            with contextlib.suppress(NotFound):
                found = self.resolve(name)
                if found is not None:
                    out[name] = found
        return out

    def _promoted(self, name: str) -> str | None:
        """The version that the store says a live profile's bare name stands for; None where it says nothing."""
        if self._store is None or not any(entry.profile.name == name for entry in self.profiles()):
            return None
        history = self._store.history(name)
        return history[-1] if history else None

    async def load(self, spec: str) -> LiveProfile:
        """Make a profile of the store live; one that is live already stays as it is.

        Raises:
            NotFound: the store has no such profile.
            BadInput: it is broken, or not made for this base model.
            LimitExceeded: there is no room for it.
        """
        store = self._need_store()
        return await self._load(lambda: self._checked(store.find(spec)))

    async def put(self, folder: Path, spec: str) -> LiveProfile:
        """Save the profile in a folder in the store, and make it live.

        Args:
            spec: the `name@version` it must have.

        Raises:
            BadInput: it has another, does not load, does not fit the model, or its place is taken by other content;
                the store is unchanged.
            LimitExceeded: there is no room for it; it is in the store.
        """
        store = self._need_store()
        found = await asyncio.to_thread(lambda: load_profile(folder, **self._base()))
        if found.id != spec:
            raise BadInput(f"the profile is {found.id}, not {spec}", where="path", fix="PUT it under its own name")
        return await self._load(lambda: found, lambda: self._checked(store.save(folder).directory))

    def _need_store(self) -> ProfileStore:
        if self._store is None:
            raise BadInput("this server has no profile store", where="TRIMTAB_PROFILES", fix="Start it with one")
        return self._store

    async def _load(self, read: Callable[[], Profile], keep: Callable[[], Profile] | None = None) -> LiveProfile:
        """Make a profile live that `read` reads and checks, in a thread of its own; `keep` stores it before that, once
        nothing speaks against it, and reads it from there."""
        async with self._lock:
            profile = await asyncio.to_thread(read)
            if profile.name in self.base_names:
                raise BadInput("the base model has this name", where=f"profile {profile.id}", fix="Rename the profile")
            for other in self._live.values():
                if other.profile.id == profile.id and other.profile.sha256 != profile.sha256:
                    raise BadInput(
                        f"{profile.id} is live with other content ({other.profile.sha256[:12]})",
                        where=f"profile {profile.id}",
                        fix="Raise the version of the new one, or unload the old one first",
                    )
            if keep is not None:
                profile = await asyncio.to_thread(keep)
            live = self._live.get(profile.sha256)
            if live is not None:
                return live
            entry = await self._ladder.with_room(lambda: self._made(profile, profile.sha256), self._gone)
            self._live[profile.sha256] = entry
            self.refused.pop(profile.id, None)
            log.info("Profile %s (%s) is live", profile.id, profile.sha256[:12])
            return entry

    async def at(self, entry: LiveProfile, strength: float) -> LiveProfile:
        """A live profile at another strength; made live on demand, and given up when room is needed and nobody uses it.

        Raises:
            NotFound: the profile is not live any more.
            BadInput: it has no strength, or not this one.
            LimitExceeded: there is no room, and all other strengths are in use.
        """
        if strength == 1.0:
            at_strength(entry.profile, strength)
            return entry
        rung = self._ladder.get(entry.own_sha256, strength)
        if rung is not None:
            return rung
        async with self._lock:
            if entry.closing or self._live.get(entry.own_sha256) is not entry:
                raise NotFound(f"{entry.profile.id} is not live", where="model")
            rung = self._ladder.get(entry.own_sha256, strength)
            if rung is None:
                profile = at_strength(entry.profile, strength)
                make = functools.partial(self._made, profile, entry.own_sha256, strength)
                rung = await self._ladder.with_room(make, self._gone, counts=True)
                self._ladder.add(rung)
            return rung

    async def _made(self, profile: Profile, own_sha256: str, strength: float = 1.0) -> LiveProfile:
        """Put a profile's adapter into vLLM and its vectors into the banks: both, or neither, also where whoever waits
        is cancelled: what vLLM or a worker has begun to read it would else hold, and nobody would know of it."""
        making = asyncio.ensure_future(self._make(profile, own_sha256, strength))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            made = (await asyncio.gather(making, return_exceptions=True))[0]
            if isinstance(made, LiveProfile):
                await self._gone(made)
            raise

    async def _make(self, profile: Profile, own_sha256: str, strength: float) -> LiveProfile:
        adapter = await self._take_adapter(profile, strength)
        try:
            await self._workers.load(str(profile.directory.resolve()), own_sha256, strength)
        except BaseException:
            with contextlib.suppress(TrimtabError):  # what one worker took, and another had no room for
                await self._workers.ask("trimtab_unload", profile.sha256)
            await self._release_adapter(adapter)
            raise
        return LiveProfile(profile, adapter, own_sha256, strength)

    async def _gone(self, entry: LiveProfile) -> None:
        """Take out of banks and vLLM what `_made` put there; no request may use it any more."""
        await self._workers.ask("trimtab_unload", entry.profile.sha256)
        await self._release_adapter(entry.adapter)

    def _checked(self, folder: Path) -> Profile:
        """The profile in a folder of the store, checked against the served base model."""
        return load_named(folder, **self._base())

    def _base(self) -> dict[str, Any]:
        """What a profile must fit, as `load_profile` takes it. Blocking: reads the model's weights once."""
        if self._base_sha is None:
            self._base_sha = model_sha256(self.model_folder())
        return {
            "hidden_size": self.worker["hidden_size"],
            "num_layers": self.worker["num_layers"],
            "base_sha256": self._base_sha,
        }

    async def unload(self, spec: str, timeout: float = 60.0) -> LiveProfile:
        """Take a profile's name away at once, wait for its requests to end, then free what it held.

        Raises:
            NotFound: it is not live.
            LimitExceeded: its requests did not end within `timeout` seconds; it is live again.
        """
        async with self._lock:
            entry = self.resolve(spec)
            if entry is None:
                raise BadInput("this is the base model", where=spec, fix="Name a profile")
            rungs = self._ladder.of(entry.own_sha256)
            leaving = [*rungs, entry]
            for one in leaving:
                one.closing = True
            try:
                async with asyncio.timeout(timeout):
                    for one in leaving:
                        await one.idle.wait()
            except BaseException as error:
                for one in leaving:
                    one.closing = False
                if not isinstance(error, TimeoutError):
                    raise
                raise LimitExceeded(
                    f"{sum(one.in_flight for one in leaving)} requests still run under it after {timeout:g} s",
                    where=f"profile {entry.profile.id}",
                    fix="Try again later",
                ) from None
            try:
                for one in rungs:
                    self._ladder.remove(one)
                    await self._gone(one)
                await self._workers.ask("trimtab_unload", entry.profile.sha256)
            except BaseException:
                entry.closing = False
                raise
            del self._live[entry.profile.sha256]
            await self._release_adapter(entry.adapter)
            log.info("Profile %s is no longer live", entry.profile.id)
            return entry

    async def receipt(self, receipt: str, entry: LiveProfile | None) -> dict[str, Any] | None:
        """What was really applied under a receipt id, or None when nothing is known of it.

        Raises:
            EngineError: it is not what the profile says. This would be a defect of the server.
        """
        requests = (await self._workers.ask("trimtab_receipt", receipt))["requests"]
        if requests is None:
            return None
        profile = entry.profile if entry else None
        adapter = entry.adapter if entry else None
        expected = (profile.sha256 if profile else None, adapter.name if adapter else None)
        for request in requests:
            if (request["profile"], request["adapter"]) != expected:
                raise EngineError("the engine applied another profile than was asked for", where=f"request {receipt}")
        return {
            "engine": "vllm",
            "model": self.base_names[0],
            "profile": profile.id if profile else None,
            "profile_sha256": entry.own_sha256 if entry else None,
            "strength": entry.strength if entry else None,
            "adapter_sha256": adapter.sha256 if adapter else None,
            "layers": list(profile.layers) if profile else [],
            "tokens_steered": None
            if any(request["steered"] is None for request in requests)
            else sum(request["steered"] for request in requests),
        }

    async def _take_adapter(self, profile: Profile, strength: float) -> ServedAdapter | None:
        # Whoever may ask for strengths may ask for any number of them: the adapters made for them are not kept.
        passing = strength != 1.0 and bool(profile.deltas)
        cache = self._ladder.scratch() if passing else home() / "cache" / "adapters"
        merged = await asyncio.to_thread(merged_adapter, profile, cache)
        if merged is None:
            return None
        folder, sha256 = merged
        adapter = self._adapters.get(sha256)
        if adapter is None:
            from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

            adapter = ServedAdapter(served_name(profile, sha256), sha256, folder if passing else None)
            answer = await self._models.load_lora_adapter(
                LoadLoRAAdapterRequest(lora_name=adapter.name, lora_path=str(folder))
            )
            if not isinstance(answer, str):
                raise BadInput(
                    f"vLLM refused the adapter: {answer.error.message}",
                    where=f"profile {profile.id}",
                    fix="Start the server with --enable-lora and a --max-lora-rank that holds it",
                )
            self._adapters[sha256] = adapter
        adapter.users += 1
        return adapter

    async def _release_adapter(self, adapter: ServedAdapter | None) -> None:
        if adapter is None:
            return
        adapter.users -= 1
        if adapter.users:
            return
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        del self._adapters[adapter.sha256]
        number = self._models.lora_requests[adapter.name].lora_int_id
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=adapter.name))
        await self._client.remove_lora(number)
        if adapter.scratch is not None:
            await asyncio.to_thread(shutil.rmtree, adapter.scratch, ignore_errors=True)


def _model_folder(model: str) -> Path:
    """The folder of a model given as folder or as hub id that is in the local cache. Raises BadInput."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception as error:
        raise BadInput(f"the files of {model} are not on this machine ({error})", where="vllm --model") from None


def _begins(sha256: str, sha: str | None) -> bool:
    """Whether `sha` is the beginning of a hash, long enough to mean it."""
    return sha is not None and len(sha) >= 8 and sha256.startswith(sha)
