"""Profiles going live, seen from the process that speaks HTTP: whoever waited may be gone before one is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trimtab.steering.profile import Profile
from trimtab.steering.vllm.live import LiveProfiles

pytest.importorskip("vllm")


class SlowWorker:
    """A worker, as vLLM's client asks it, that reads a profile only when it is let; asking cannot be taken back."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        self.holds: list[str] = []

    async def collective_rpc(self, method: str, timeout: float, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        return await asyncio.shield(asyncio.ensure_future(self._answer(method, *args)))

    async def _answer(self, method: str, *args: Any) -> list[dict[str, Any]]:
        if method == "trimtab_load":
            self.asked.set()
            await self.let.wait()
            self.holds.append(args[1])
        elif method == "trimtab_unload" and args[0] in self.holds:
            self.holds.remove(args[0])
        return [{"hidden_size": 32, "num_layers": 3} if method == "trimtab_describe" else {}]


def test_what_was_loaded_for_somebody_who_is_gone_is_taken_back(
    tmp_path: Path, base: Path, save_profiles: Callable[..., list[Profile]]
) -> None:
    entry = {"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 1.0, "tokens": "all"}
    save_profiles(tmp_path, base, {"terse": {"interventions": [entry]}}, {"v": torch.ones(32)})

    async def scene() -> None:
        worker = SlowWorker()
        models = SimpleNamespace(base_model_paths=[], model_config=SimpleNamespace(model=str(base)))
        live = LiveProfiles(worker, models, [tmp_path])
        live.worker = await live.ask_worker()
        waiting = asyncio.create_task(live.load("terse@1"))
        await worker.asked.wait()
        waiting.cancel()
        await asyncio.sleep(0.05)
        worker.let.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert worker.holds == []
        assert live.profiles() == []
        entry = await live.load("terse@1")
        assert worker.holds == [entry.profile.sha256]

    asyncio.run(scene())
