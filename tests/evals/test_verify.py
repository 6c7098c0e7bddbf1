"""`trimtab verify` on the real server: all is well, and each way of going wrong is told."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from trimtab.cli import main
from trimtab.errors import NotFound
from trimtab.evals.verify import Client, verify
from trimtab.models.card import find_model
from trimtab.models.engines.vllm import VllmEngine
from trimtab.steering.document import Document
from trimtab.steering.files import model_sha256
from trimtab.steering.profile import save_profile
from trimtab.steering.proof import Report
from trimtab.steering.reference import Reference
from trimtab.steering.store import ProfileStore

pytestmark = pytest.mark.server
_seeds = itertools.count(time.time_ns() % 2**40)


@pytest.fixture(scope="module")
def reference(server: Any) -> Reference:
    return Reference(server.model_dir)


@pytest.fixture
def steering(server: Any, reference: Reference) -> Iterator[str]:
    """A live profile that adds a strong vector to all tokens at one layer, and another one to answers at the next."""
    width = reference.model.config.hidden_size
    entries = [
        {"layer": layer, "file": "v.safetensors", "tensor": f"t{layer}", "strength": 3.0, "tokens": tokens}
        for layer, tokens in ((0, "all"), (1, "generated"))
    ]
    document = {
        "format": 1,
        "name": "v-check",
        "base": {"model": server.model, "sha256": model_sha256(server.model_dir)},
    }
    vectors = {f"t{n}": torch.randn(width, generator=torch.Generator().manual_seed(n)) for n in (0, 1)}
    folder = server.roots[0] / "v-check@1"
    save_profile(
        folder,
        Document.model_validate({**document, "interventions": entries}),
        tensors={"v.safetensors": vectors},
        replace=True,
    )
    ProfileStore(*server.roots).get("v-check")
    assert _post(server, "load").status_code == 200
    yield "v-check@1"
    _post(server, "unload")
    if folder.exists():
        ProfileStore(*server.roots).remove("v-check")


def _post(server: Any, action: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/trimtab/profiles/{action}", json={"name": "v-check"}, timeout=60)


def _verified(
    server: Any,
    reference: Reference,
    names: Sequence[str],
    kind: type[Client] = Client,
    tolerance: float | None = None,
) -> Report:
    async def run() -> Report:
        client = kind(server.url, server.model, None)
        try:
            store = ProfileStore(*server.roots)
            return await verify(client, reference, store, names, seed=next(_seeds), new=8, tolerance=tolerance)
        finally:
            await client.aclose()

    return asyncio.run(run())


def test_every_live_profile_fires_and_the_base_is_left_alone(server: Any, reference: Reference, steering: str) -> None:
    report = _verified(server, reference, ())
    assert report.ok, report
    names = [check.name for check in report.checks]
    assert names[0] == server.model
    assert steering in names
    live = httpx.get(f"{server.url}/v1/trimtab/profiles", timeout=60).json()["profiles"]
    assert set(names[1:]) == {entry["id"] for entry in live}
    assert report.base_alone < 1e-4
    assert (report.dtype, report.tolerance) == ("float32", 1e-3)
    ours = report.checks[names.index(steering)]
    assert ours.steered == ours.expected == sum((5, 41, 150)) + 3 * 7  # all prompt tokens, and answers' but the last
    assert ours.moved is not None
    assert ours.moved > 0.1
    assert ours.difference < 1e-3


class _Unsteered(Client):
    """Asks the base model whatever is asked for: a server that is silently not steered."""

    async def ask(self, name: str, prompt: Sequence[int], new: int, salt: str | None = None) -> Any:
        return await super().ask(self.model, prompt, new, salt or f"other-{name.partition(chr(64))[0]}")


class _Confused(Client):
    """Takes the base model's requests for another profile's: contamination."""

    async def ask(self, name: str, prompt: Sequence[int], new: int, salt: str | None = None) -> Any:
        swapped = "v-check@1" if name == self.model and salt is not None else name
        return await super().ask(swapped, prompt, new, salt)


def test_a_server_that_does_not_steer_is_found_out(server: Any, reference: Reference, steering: str) -> None:
    report = _verified(server, reference, [steering], _Unsteered)
    assert not report.ok
    base, ours = report.checks
    assert not base.problems
    told = "; ".join(ours.problems)
    for part in (
        f"answered as {server.model}",
        "other content",
        "other layers",
        "0 steered tokens",
        "log probabilities",
    ):
        assert part in told


class _Lying(Client):
    """Gives the base model's answers with the profile's receipts."""

    async def ask(self, name: str, prompt: Sequence[int], new: int, salt: str | None = None) -> Any:
        said = await super().ask(name, prompt, new, salt)
        base = await super().ask(self.model, prompt, new, f"lie-{salt}-{name.partition(chr(64))[0]}")
        return dataclasses.replace(said, ids=base.ids, logprobs=base.logprobs)


def test_receipts_alone_prove_nothing_whatever_the_tolerance(server: Any, reference: Reference, steering: str) -> None:
    assert _verified(server, reference, [steering], tolerance=99.0).ok
    base, ours = _verified(server, reference, [steering], _Lying, tolerance=99.0).checks
    assert not base.problems
    assert ours.problems == ("what is said is no nearer to the reference with the profile than to that without it",)


@pytest.mark.timeout(900)
def test_a_server_in_bfloat16_is_proven_as_far_as_that_goes(server: Any, reference: Reference, steering: str) -> None:
    card, store = find_model(server.model_dir), ProfileStore(*server.roots)
    engine = VllmEngine(card, store, reuse=False, dtype="bfloat16")
    asyncio.run(engine.open())
    try:
        there = dataclasses.replace(server, url=engine.url, engine=engine)
        report = _verified(there, reference, ())
        _, lie = _verified(there, reference, [steering], _Lying).checks
    finally:
        asyncio.run(engine.aclose())
    assert report.ok, report
    assert steering in [check.name for check in report.checks]
    assert (report.dtype, report.tolerance) == ("bfloat16", 0.5)
    assert 1e-3 < max(check.difference for check in report.checks) < 0.5  # it really is bfloat16
    assert lie.problems


def test_a_base_model_that_is_steered_is_found_out(server: Any, reference: Reference, steering: str) -> None:
    report = _verified(server, reference, [steering], _Confused)
    assert [bool(check.problems) for check in report.checks] == [True, False]
    assert "other requests change what the base model says" in report.checks[0].problems


def test_names_are_checked(server: Any, reference: Reference, steering: str) -> None:
    assert [check.name for check in _verified(server, reference, ["v-check"]).checks] == [server.model, steering]
    with pytest.raises(NotFound, match="'nobody' is not live"):
        _verified(server, reference, ["nobody"])


def test_the_canary_takes_what_it_cannot_prove_off_the_server(
    server: Any, steering: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["verify", "v-check", "--url", server.url, "--model", str(server.model_dir), "--tokens", "4"]
    if server.model != server.model_dir.name:
        pytest.skip("the served name is not the folder's")
    assert main([*words, "--plot", str(tmp_path / "seen.gif")]) == 2
    assert "Name a .png file" in capsys.readouterr().err
    assert main([*words, "--json", "--plot", str(tmp_path / "seen.png")]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    (server.roots[0] / "v-check@1").rename(tmp_path / "gone")  # what is live is now nowhere to be compared with
    assert main([*words, "--every", "0.1", "--times", "1"]) == 1
    printed = capsys.readouterr()
    assert "ALARM: v-check@1" in printed.err
    assert "unknown profile" in printed.out
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "v-check", "prompt": "x"}, timeout=60)
    assert refused.status_code == 404
