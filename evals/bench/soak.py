"""A server under load while profiles come, go and change, and clients hang up: is any answer wrong?

Clients ask for random profiles, some at other strengths, some in streams, some hanging up. Meanwhile a manager loads
and unloads profiles and publishes new versions of one, and the server may be killed and started again. Every answer
must carry the receipt of just what was asked for, and afterwards every answer is read by the reference (Hugging Face,
PEFT and hooks): the log probabilities of its tokens must agree. A refusal is right only for a profile that was not live
all the while; an error only while the server was down.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from ...models.card import ModelCard
from ...models.engines.vllm import make_server
from ...models.server import Server
from ...steering.asking import LIMITS
from ...steering.document import BaseEntry, Document
from ...steering.entries import AddEntry
from ...steering.profile import save_profile
from ...steering.reference import Reference
from ...steering.store import ProfileStore
from ...steering.strength import at_strength
from .profiles import conditional, vectors
from .soak_tally import TOLERANCE, Case, Said, Soaked, Tally

PLAIN, GATED = 20, 4
"""Profiles with vectors, and with conditions, that come and go."""
STRENGTHS = (0.5, -1.0)
LENGTHS = (6, 33, 70)
"""Tokens of the prompts."""
NEW = (4, 12)
"""Tokens of the answers."""
CHANGING = "changing"
"""The profile of which new versions are published."""

Told = Callable[[str], None]


class Soak:
    """One run: the server, what is live on it, and the tally."""

    def __init__(self, card: ModelCard, store: ProfileStore, scratch: Path, seed: int, told: Told) -> None:
        self.card, self.store, self.scratch, self.told = card, store, scratch, told
        self.rng = random.Random(seed)
        self.reference = Reference(card.path)
        self.prompts = self.reference.prompts(LENGTHS, seed)
        vectors(card, PLAIN, scratch)
        conditional(card, GATED, 2, scratch)
        self.profiles = {p.id: p for p in store.each() if not isinstance(p, Exception) and p.base_sha256 == card.sha256}
        self.server: Server | None = None
        self.http: httpx.AsyncClient | None = None
        self.tally = Tally()
        self.down = 0
        """Times that the server has been taken down; odd while it is."""
        self.moved: dict[str, int] = {}
        """By profile, how often it was loaded or unloaded; odd while it is on the way or not live."""
        self.version = 0
        self.end = asyncio.Event()

    async def start(self) -> None:
        """A server with everything that the store holds."""
        self.server = make_server(self.card, self.store)
        await self.server.start()
        self.http = httpx.AsyncClient(base_url=self.server.url, timeout=120, limits=LIMITS)
        live = {entry["id"] for entry in (await self.http.get("/v1/trimtab/profiles")).json()["profiles"]}
        self.moved = {name: 0 if name in live else 1 for name in self.profiles}

    async def close(self) -> None:
        """Stop the server."""
        if self.http is not None:
            await self.http.aclose()
        if self.server is not None:
            await self.server.stop()

    def draw(self) -> Case:
        """What to ask for next."""
        rng = self.rng
        prompt, new = rng.randrange(len(self.prompts)), rng.choice(NEW)
        name = None if rng.random() < 0.1 else rng.choice(list(self.moved))
        profile = self.profiles.get(name or "")
        strong = profile is not None and (profile.interventions or profile.deltas) and rng.random() < 0.15
        return Case(name, rng.choice(STRENGTHS) if strong else None, prompt, new)

    async def client(self, wanted: int | None) -> None:
        """Ask until the end, or until so many are answered."""
        while not self.end.is_set():
            if wanted is not None and self.tally.counts["answered"] >= wanted:
                self.end.set()
                return
            if self.down % 2:
                await asyncio.sleep(0.1)
                continue
            case, kind = self.draw(), self.rng.random()
            moved, down = self.moved.get(case.name or ""), self.down
            try:
                if kind < 0.05:
                    await self._hang_up(case)
                    self.tally.counts["hung up"] += 1
                    continue
                status, data = await (self._stream(case) if kind < 0.3 else self._whole(case))
            except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: the client was closed
                if down == self.down:
                    self.tally.lost.append(f"{case}: {type(error).__name__} {error}")
                self.tally.counts["down"] += 1
                await asyncio.sleep(0.2)
                continue
            if status == 200:
                self.tally.counts["answered"] += 1
                self._judge(case, data)
            elif status in (404, 429):
                self.tally.counts[f"refused {status}"] += 1
                steady = case.name is None or (moved == self.moved.get(case.name) and not (moved or 0) % 2)
                if steady and down == self.down and not down % 2 and not (status == 429 and case.strength):
                    self.tally.lost.append(f"{case}: HTTP {status} {str(data)[:200]}")
            elif down == self.down and not down % 2:
                self.tally.lost.append(f"{case}: HTTP {status} {str(data)[:200]}")

    def _body(self, case: Case, **more: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"receipt": True}
        if case.strength is not None:
            options["strength"] = case.strength
        fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "logprobs": 1}
        model = case.name or self.card.name
        prompt = self.prompts[case.prompt]
        return {"model": model, "prompt": prompt, "max_tokens": case.new, "trimtab": options, **fixed, **more}

    async def _whole(self, case: Case) -> tuple[int, Any]:
        assert self.http is not None
        answer = await self.http.post("/v1/completions", json=self._body(case))
        if answer.status_code != 200:
            return answer.status_code, answer.text
        data: Any = answer.json()
        choice = data["choices"][0]
        said = Said(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))
        return 200, (data["model"], data["trimtab"]["receipt"], said)

    async def _stream(self, case: Case) -> tuple[int, Any]:
        assert self.http is not None
        ids: list[int] = []
        logprobs: list[float] = []
        model, receipt = None, None
        async with self.http.stream("POST", "/v1/completions", json=self._body(case, stream=True)) as answer:
            if answer.status_code != 200:
                return answer.status_code, (await answer.aread()).decode(errors="replace")
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                data = json.loads(line.removeprefix("data: "))
                if "error" in data:
                    return 502, data
                model = data.get("model", model)
                receipt = (data.get("trimtab") or {}).get("receipt", receipt)
                for choice in data["choices"]:
                    ids += choice["token_ids"] or []
                    logprobs += (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"]
        if len(ids) < case.new:
            raise httpx.RemoteProtocolError("the stream ended early")
        return 200, (model, receipt, Said(tuple(ids), tuple(logprobs)))

    async def _hang_up(self, case: Case) -> None:
        assert self.http is not None
        body = self._body(case, stream=True, max_tokens=60)
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                return

    def _judge(self, case: Case, data: Any) -> None:
        model, receipt, said = data
        profile = self.profiles.get(case.name or "")
        strength = None if profile is None else case.strength or 1.0
        wanted = (case.name, profile.sha256 if profile else None, strength, case.name or self.card.name)
        found = receipt and (receipt["profile"], receipt["profile_sha256"], receipt["strength"], model)
        if found != wanted:
            self.tally.wrong.append(f"{case}: the receipt says {found}")
        elif len(said.ids) != case.new or len(said.logprobs) != case.new:
            self.tally.wrong.append(f"{case}: {len(said.ids)} tokens came")
        else:
            self.tally.note(case, said)

    async def manager(self) -> None:
        """Load, unload and publish."""
        while not self.end.is_set():
            await asyncio.sleep(self.rng.uniform(0.1, 0.5))
            if self.down % 2:
                continue
            down = self.down
            try:
                if self.rng.random() < 0.4:
                    await self._publish()
                else:
                    await self._toggle(self.rng.choice([n for n in self.moved if not n.startswith(CHANGING)]))
            except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
                if down == self.down:
                    self.tally.lost.append(f"manager: {type(error).__name__} {error}")

    async def _post(self, what: str, name: str) -> httpx.Response:
        assert self.http is not None
        return await self.http.post(f"/v1/trimtab/profiles/{what}", json={"name": name})

    async def _toggle(self, name: str) -> None:
        if self.moved[name] % 2:
            answer = await self._post("load", name)
            if answer.status_code == 200:
                self.moved[name] += 1
        else:
            self.moved[name] += 1
            answer = await self._post("unload", name)
        if answer.status_code != 200 and not self.down % 2:
            self.tally.lost.append(f"manager, {name}: {answer.text[:200]}")
        self.tally.counts["loads and unloads"] += 1

    async def _publish(self) -> None:
        """A new version of the profile that changes; the one before it goes."""
        import torch

        self.version += 1
        direction = torch.randn(self.card.hidden_size, generator=torch.Generator().manual_seed(self.version))
        entry = AddEntry(layer=1, file="v.safetensors", tensor="v", strength=3.0)
        document = Document(
            format=1,
            name=CHANGING,
            version=str(self.version),
            base=BaseEntry(model=self.card.name, sha256=self.card.sha256),
            interventions=[entry],
        )
        place = self.scratch / f"{CHANGING}@{self.version}"
        tensors = {"v.safetensors": {"v": direction / direction.norm()}}
        profile = await asyncio.to_thread(save_profile, place, document, tensors=tensors)
        self.profiles[profile.id] = profile
        start = time.perf_counter()
        answer = await self._post("load", profile.id)
        seconds = time.perf_counter() - start
        if answer.status_code != 200:
            if not self.down % 2:
                self.tally.lost.append(f"manager, {profile.id}: {answer.text[:200]}")
            return
        self.tally.swaps.append(seconds)
        self.tally.counts["published"] += 1
        self.moved[profile.id] = 0
        before = f"{CHANGING}@{self.version - 1}"
        if before in self.moved:
            self.moved[before] += 1
            await self._post("unload", before)
            del self.moved[before]
            shutil.rmtree(self.scratch / before)  # or else a server that is started again would load them all

    async def killer(self, seconds: Sequence[float]) -> None:
        """Kill the server outright at these times, and start it again."""
        start = time.monotonic()
        for moment in seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.end.wait(), max(0.0, start + moment - time.monotonic()))
                return
            assert self.server is not None
            assert self.server.pid is not None
            self.told("killing the server")
            self.down += 1
            os.kill(self.server.pid, signal.SIGKILL)
            await self.close()
            await self.start()
            self.down += 1
            self.tally.counts["kills"] += 1
        await self.end.wait()  # the soak ends with its first task

    def replay(self) -> tuple[int, float | None]:
        """Hold every distinct answer to the reference; what differs, or cannot be compared, is wrong. How many there
        were, and the largest difference in nats; None of none."""
        done, worst = 0, None
        for case, answers in sorted(self.tally.said.items(), key=lambda item: str(item[0])):
            profile = self.profiles.get(case.name or "")
            if profile is not None and case.strength is not None:
                profile = at_strength(profile, case.strength)
            for said in answers:
                scores, _ = self.reference.scored(profile, self.prompts[case.prompt], said.ids)
                apart = max(abs(a - b) for a, b in zip(scores, said.logprobs, strict=True))
                worst, done = apart if worst is None else max(worst, apart), done + 1
                if not apart <= TOLERANCE:  # NaN, too
                    self.tally.wrong.append(f"{case}: {apart:.2g} nats from the reference")
        return done, worst


async def soak(
    card: ModelCard,
    store: ProfileStore,
    scratch: Path,
    *,
    minutes: float | None = None,
    requests: int | None = None,
    clients: int = 24,
    kills: int = 0,
    seed: int = 0,
    told: Told = lambda text: print(text, file=sys.stderr, flush=True),
) -> Soaked:
    """Run a soak.

    Args:
        store: its first root is `scratch`, an empty folder that new profiles are written to.
        minutes: how long, or
        requests: until so many were answered.
        clients: how many ask at once.
        kills: how often the server is killed; with `minutes` only.
    """
    run = Soak(card, store, scratch, seed, told)
    told(f"starting the server, with {len(run.profiles)} profiles")
    await run.start()
    begin = time.monotonic()
    length = None if minutes is None else minutes * 60
    try:
        tasks = [asyncio.create_task(run.client(requests)) for _ in range(clients)]
        tasks.append(asyncio.create_task(run.manager()))
        if length is not None and kills:
            moments = [length * (i + 1) / (kills + 1) for i in range(kills)]
            tasks.append(asyncio.create_task(run.killer(moments)))
        while not run.end.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(run.end.wait(), 10.0 if length is None else min(10.0, length))
            passed = time.monotonic() - begin
            told(
                f"{passed:>5.0f} s  {run.tally.counts['answered']:,} answered, {len(run.tally.swaps)} versions "
                f"published, {len(run.tally.lost)} lost, {len(run.tally.wrong)} wrong"
            )
            if (length is not None and passed >= length) or any(task.done() for task in tasks):
                run.end.set()
        await asyncio.gather(*tasks)
        seconds = time.monotonic() - begin
    finally:
        await run.close()
    told("replaying every distinct answer on the reference")
    replayed, difference = await asyncio.to_thread(run.replay)
    return Soaked(card.name, seconds, run.tally, replayed, difference)
