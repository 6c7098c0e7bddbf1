"""The vLLM engine against real servers: found again, killed and brought back, refused, cancelled, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from trimtab.errors import BadInput, EngineRefused, EngineUnavailable, NotFound
from trimtab.models.card import find_model
from trimtab.models.chat import ChatRequest, Sampling, user
from trimtab.models.doctor import examine
from trimtab.models.engines import open_engine
from trimtab.models.engines.http import HttpEngine
from trimtab.models.engines.vllm import VllmEngine, make_server
from trimtab.models.server import free_port
from trimtab.steering.profile import Document, save_profile
from trimtab.steering.store import ProfileStore

pytestmark = pytest.mark.server
OWN_SERVER = pytest.mark.timeout(900)
"""For tests that start servers of their own: half a minute each, and far longer on a busy machine."""

ASK = ChatRequest((user("convert 26.2 miles to kilometres"),), sampling=Sampling(max_tokens=24))
ENDLESS = ChatRequest((user("Write a very long story."),), sampling=Sampling(temperature=2.0, max_tokens=400, seed=8))
"""Hot enough that an answer which does not end at once goes on to the limit."""


async def test_open_engine_finds_the_server_that_runs(server: Any) -> None:
    told: list[str] = []
    async with open_engine("vllm", model=str(server.model_dir), progress=told.append) as engine:
        assert isinstance(engine, VllmEngine)
        assert engine.url == server.url
        reply = await engine.chat(ASK)
    assert "using the server that runs" in told[0]
    assert reply.receipt is not None
    assert (reply.receipt.engine, reply.receipt.model, reply.receipt.profile) == ("vllm", server.model, None)
    assert (await server.engine.chat(ASK)).message == reply.message  # and it still runs


async def test_another_profile_folder_needs_another_server(server: Any, tmp_path: Path) -> None:
    from trimtab.models.engines.vllm import find_running

    card = find_model(server.model_dir)
    assert await find_running(card, server.roots) is not None
    assert await find_running(card, [*server.roots, tmp_path]) is None
    assert await find_running(card, server.roots, "float32") is not None
    assert await find_running(card, server.roots, "bfloat16") is None
    with pytest.raises(BadInput, match="float32, bfloat16"):
        make_server(card, server.engine.store, dtype="float8")


async def test_a_trimtab_server_by_url(server: Any) -> None:
    async with open_engine(server.url, model=None) as engine:
        assert isinstance(engine, HttpEngine)
        assert (engine.trimtab, engine.model, engine.name) == (True, server.model, "vllm")
        assert (await engine.chat(ASK)).message == (await server.engine.chat(ASK)).message
        with pytest.raises(NotFound, match="no-such-profile"):
            await engine.chat(ChatRequest(ASK.messages, profile="no-such-profile"))


async def test_refusals_carry_the_servers_words(server: Any) -> None:
    with pytest.raises(EngineRefused, match="maximum context length"):
        await server.engine.chat(ChatRequest((user("word " * 9000),)))
    with pytest.raises(EngineRefused, match="temperature"):
        await server.engine.chat(ChatRequest((user("x"),), sampling=Sampling(temperature=-1.0)))


async def test_the_same_seed_draws_the_same(server: Any) -> None:
    request = ChatRequest((user("hi"),), sampling=Sampling(temperature=1.5, max_tokens=16, seed=5))
    replies = await asyncio.gather(*[server.engine.chat(request) for _ in range(3)])
    assert len({r.message for r in replies}) == 1


async def test_a_profile_learned_meanwhile_is_made_live_when_it_is_asked_for(server: Any) -> None:
    import torch

    card = find_model(server.model_dir)
    name = "learned-meanwhile"
    document = Document.model_validate(
        {
            "format": 1,
            "name": name,
            "base": {"model": card.name, "sha256": card.sha256},
            "interventions": [{"layer": 0, "file": "v.safetensors", "tensor": "v", "strength": 3.0}],
        }
    )
    folder = server.roots[0] / f"{name}@1"
    save_profile(folder, document, tensors={"v.safetensors": {"v": torch.ones(card.hidden_size)}})
    try:
        assert name not in await server.engine.profiles()
        reply = await server.engine.chat(ChatRequest(ASK.messages, profile=name))
        assert reply.receipt is not None
        assert reply.receipt.profile == f"{name}@1"
        assert name in await server.engine.profiles()
        httpx.post(f"{server.url}/v1/trimtab/profiles/unload", json={"name": name}, timeout=60).raise_for_status()
        stream = [piece async for piece in server.engine.stream(ChatRequest(ASK.messages, profile=name))]
        assert stream[-1].reply is not None
        assert stream[-1].reply.message == reply.message
    finally:
        httpx.post(f"{server.url}/v1/trimtab/profiles/unload", json={"name": name}, timeout=60)
        shutil.rmtree(folder)
    with pytest.raises(NotFound, match=name):
        await server.engine.chat(ChatRequest(ASK.messages, profile=name))


async def running_requests(url: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running"))


async def test_cancelling_and_closing_stop_the_work_on_the_server(server: Any) -> None:
    stream = server.engine.stream(ENDLESS)
    await anext(stream)
    task = asyncio.create_task(server.engine.chat(ENDLESS))
    await asyncio.sleep(0.2)  # on its way
    assert not task.done()
    task.cancel()
    await stream.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if await running_requests(server.url) == 0:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the server goes on with what nobody waits for")


async def test_doctor_sees_the_server(server: Any) -> None:
    findings = {f.name: f for f in await asyncio.to_thread(examine, int(server.url.rpartition(":")[2]))}
    assert findings[f"server {server.url}"].status == "ok", findings[f"server {server.url}"]
    assert server.model in findings[f"server {server.url}"].detail
    assert "used by our server" in findings[f"port {server.url.rpartition(':')[2]}"].detail
    assert findings["vllm"].status == findings["torch"].status == "ok"


@OWN_SERVER
async def test_a_killed_server_comes_back_once(tiny_model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    engine = VllmEngine(find_model(tiny_model), ProfileStore(tmp_path), reuse=False, progress=told.append)
    await engine.open()
    try:
        answer = (await engine.chat(ASK)).message
        # While requests are on their way, one of them streamed: nothing of it was handed out when the server dies.
        waiting = [asyncio.create_task(engine.chat(ENDLESS)) for _ in range(2)]
        await asyncio.sleep(0.2)
        first = engine.pid
        children = psutil.Process(first).children(recursive=True)
        os.kill(first, signal.SIGKILL)
        assert (await engine.chat(ASK)).message == answer
        assert engine.pid != first
        assert all(r.message.content for r in await asyncio.gather(*waiting))
        assert "the server died; starting it again" in told
        assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

        stream = engine.stream(ENDLESS)
        await anext(stream)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable):  # part of this answer was handed out: it is not begun again
            async for _ in stream:
                pass
        with pytest.raises(EngineUnavailable, match="second time"):
            await engine.chat(ASK)
    finally:
        await engine.aclose()


@OWN_SERVER
async def test_a_model_that_vllm_refuses(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(tiny_model, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "no-such-method"}
    (copy / "config.json").write_text(json.dumps(config))
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(EngineUnavailable) as caught:
        await VllmEngine(find_model(copy), ProfileStore(tmp_path / "p"), reuse=False).open()
    text = str(caught.value)
    assert "before it was ready" in text
    assert "no-such-method" in text
    assert "The whole log: " in text
    left = {p.pid for p in psutil.Process().children(recursive=True)} - before
    assert not left


@OWN_SERVER
def test_serve_in_the_foreground(tiny_model: Path, tmp_path: Path) -> None:
    """`trimtab serve` prints its URL when ready, is found by others, and SIGINT ends it and all its processes."""
    port = free_port()
    program = (
        "import argparse, sys\n"
        "from trimtab.models.commands import add_commands\n"
        "parser = argparse.ArgumentParser()\n"
        "add_commands(parser.add_subparsers())\n"
        "args = parser.parse_args(sys.argv[1:])\n"
        "sys.exit(args.handler(args))\n"
    )
    command = [sys.executable, "-c", program, "serve", "--model", str(tiny_model), "--port", str(port)]
    environment = {**os.environ, "TRIMTAB_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        try:
            assert url == f"http://127.0.0.1:{port}"
            assert httpx.get(f"{url}/health").status_code == 200
            assert list((tmp_path / "servers").glob("tiny-*.json"))
            taken = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert taken.returncode != 0
            assert f"cannot listen on 127.0.0.1:{port}" in taken.stderr
            family = psutil.Process(process.pid).children(recursive=True)
            assert len(family) >= 3  # the guard, the server, its engine
        finally:
            began = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(30)
        assert (code, time.monotonic() - began < 20) == (0, True)
        assert "stopped" in process.stderr.read()
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not list((tmp_path / "servers").glob("*.json"))
