"""Requests that are refused, rewritten or passed on, in front of an application that answers with what it was sent.

The engine behind it is a stand-in here; test_vllm_server.py asks the same of a real one.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from trimtab.errors import LimitExceeded, TrimtabError
from trimtab.home import file_sha256
from trimtab.steering.document import Document
from trimtab.steering.profile import load_profile, save_profile
from trimtab.steering.store import ProfileStore
from trimtab.steering.strength import at_strength

pytest.importorskip("vllm")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from trimtab.steering.vllm.endpoints import TrimtabMiddleware
from trimtab.steering.vllm.launch import FULL_AFTER

WIDTH, LAYERS = 4, 3
CHAT = "/v1/chat/completions"
DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(300), [])


class Engine:
    """Stands for vLLM's engine client: remembers what it was asked, answers as a worker would."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.asked: dict[str, dict[str, Any]] = {}
        self.applied: dict[str, Any] = {}
        self.room = 99
        self.other_rank_has_room = True

    async def collective_rpc(self, method: str, timeout: float, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        if method == "trimtab_load":
            full = {**LimitExceeded("the bank is full", where="bank", fix="Unload one").as_dict(), "status": 429}
            if len(self.live) >= self.room:
                return [{"error": full}]
            self.live.append(at_strength(load_profile(Path(args[0])), args[2]).sha256)
            if not self.other_rank_has_room:
                return [{}, {"error": full}]
        if method == "trimtab_door":
            return [{"address": None}]
        if method == "trimtab_unload" and args[0] in self.live:
            self.live.remove(args[0])
        if method == "trimtab_receipt":
            asked = self.asked.get(args[0])
            if asked is None:
                return [{"requests": None}]
            entry = {"profile": asked.get("trimtab"), "adapter": None, "steered": 12, "restored": 4, "seen": 12}
            return [{"requests": [entry | self.applied]}]
        return [
            {"dtype": "float32", "hidden_size": WIDTH, "num_layers": LAYERS, "rows": 4, "rows_used": len(self.live)}
        ]


class Bench:
    """An application with the middleware, as vLLM builds it, and a client of it."""

    def __init__(self, folder: Path, engine: Engine, **args: Any) -> None:
        self.engine, self.folder, self.hold = engine, folder, threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.hold.set()
        paths = [CHAT, "/v1/completions", "/v1/responses", "/tokenize"]
        self.app = Starlette(
            routes=[Route(path, self.answer, methods=["POST"]) for path in paths]
            + [Route("/v1/models", self.models), Route("/health", lambda _: Response())],
            middleware=[Middleware(TrimtabMiddleware)],
        )
        models = SimpleNamespace(
            base_model_paths=[SimpleNamespace(name="base")], model_config=SimpleNamespace(model=str(folder))
        )
        self.app.state.engine_client, self.app.state.openai_serving_models = engine, models
        self.app.state.args = SimpleNamespace(api_key=None, **args)
        self.client = TestClient(self.app)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "base", "object": "model", "max_model_len": 64}]})

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        xargs = body.get("vllm_xargs") or {}
        if "trimtab_id" in xargs:
            self.engine.asked[xargs["trimtab_id"]] = xargs
        if body.get("fail"):
            return JSONResponse({"error": {"message": "no", "code": 400}}, status_code=400)
        while not self.hold.is_set():
            await asyncio.sleep(0.01)
        data = {"id": f"chatcmpl-{len(self.bodies)}", "object": "chat.completion", "model": body.get("model")}
        if not body.get("stream"):
            return JSONResponse({**data, "choices": []})

        async def chunks() -> Any:
            for text in ("one", "two"):
                event = f"data: {json.dumps({**data, 'choices': [{'delta': {'content': text}}]})}\n\n".encode()
                yield event[:9]  # events may come in pieces
                yield event[9:]
            yield b"data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    def post(self, path: str = CHAT, **body: Any) -> Any:
        return self.client.post(path, json={"messages": [], **body})


def add(folder: Path, base: str, name: str, version: str = "1", tokens: str = "all", **more: Any) -> str:
    fields = {"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 2.0, "tokens": tokens}
    document = Document.model_validate(
        {
            "format": 1,
            "name": name,
            "version": version,
            "base": {"model": "base", "sha256": base},
            "interventions": [fields],
            **more,
        }
    )
    tensors = {"v.safetensors": {"v": torch.ones(WIDTH) * len(name + version)}}
    return save_profile(folder / f"{name}@{version}", document, tensors=tensors).sha256


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def make(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    model = tmp_path / "model"
    model.mkdir()
    save_file({"x": torch.zeros(1)}, model / "model.safetensors")
    base = file_sha256(model / "model.safetensors")
    add(store, base, "terse", decoding={"temperature": 0.5, "max_tokens": 9})
    add(store, base, "late", tokens="generated")
    add(store, "0" * 64, "alien")

    def make(live: str | None = "terse,late", **args: Any) -> Bench:
        monkeypatch.setenv("TRIMTAB_PROFILES", os.pathsep.join([str(store), str(tmp_path / "empty")]))
        if live is None:
            monkeypatch.delenv("TRIMTAB_LIVE", raising=False)
        else:
            monkeypatch.setenv("TRIMTAB_LIVE", live)
        return Bench(model, Engine(), **args)

    return make


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Iterator[Bench]:
    made = make()
    with made.client:
        yield made


def profiles(bench: Bench) -> dict[str, Any]:
    return {p["name"]: p for p in bench.client.get("/v1/trimtab/profiles").json()["profiles"]}


def test_a_profile_becomes_the_base_model_its_hash_and_its_salt(bench: Bench) -> None:
    sha = profiles(bench)["terse"]["sha256"]
    for name in ("terse", "terse@1", f"terse@sha256:{sha}", f"terse@sha256:{sha[:8]}"):
        answer = bench.post(model=name, vllm_xargs={"mine": 1})
        assert (answer.status_code, answer.json()["model"]) == (200, "terse@1")
        sent = bench.bodies[-1]
        assert sent["model"] == "base"
        assert (sent["vllm_xargs"]["trimtab"], sent["vllm_xargs"]["mine"]) == (sha, 1)
        assert "trimtab_scoped" not in sent["vllm_xargs"]
        assert (sent["temperature"], sent["max_tokens"]) == (0.5, 9)
    assert bench.post(model="late").status_code == 200
    assert bench.bodies[-1]["vllm_xargs"]["trimtab_scoped"] == 1


def test_a_bare_name_stands_for_the_promoted_version(bench: Bench, store: Path) -> None:
    add(store, file_sha256(bench.folder / "model.safetensors"), "terse", "2")
    assert bench.client.post("/v1/trimtab/profiles/load", json={"name": "terse@2"}).status_code == 200
    assert bench.post(model="terse").json()["model"] == "terse@2"  # the newest
    mine = ProfileStore(store)
    mine.promote("terse@1")
    assert bench.post(model="terse").json()["model"] == "terse@1"
    assert bench.post(model="terse@2").json()["model"] == "terse@2"
    mine.promote("terse@2")
    assert bench.post(model="terse").json()["model"] == "terse@2"
    mine.rollback("terse")
    assert bench.post(model="terse").json()["model"] == "terse@1"
    assert bench.client.post("/v1/trimtab/profiles/unload", json={"name": "terse@1"}).status_code == 200
    refused = bench.post(model="terse")  # never another version in its place
    assert refused.status_code == 404
    assert "terse@1 is promoted and not live" in refused.json()["error"]["message"]


def test_a_bare_name_stands_for_the_newest_version_however_they_went_live(bench: Bench, store: Path) -> None:
    def cards() -> dict[str, str]:
        data = bench.client.get("/v1/models").json()["data"]
        return {card["id"]: card["trimtab"]["id"] for card in data if "trimtab" in card}

    for version in ("11", "9"):
        add(store, file_sha256(bench.folder / "model.safetensors"), "terse", version)
        assert bench.client.post("/v1/trimtab/profiles/load", json={"name": f"terse@{version}"}).status_code == 200
    assert bench.post(model="terse").json()["model"] == "terse@11"
    assert cards() == {"terse": "terse@11", "late": "late@1"}
    ProfileStore(store).promote("terse@9")
    assert cards()["terse"] == "terse@9"


def test_salts_keep_profiles_and_clients_apart(bench: Bench) -> None:
    salts = []
    for model in ("terse", "late"):
        for salt in (None, "mine", "yours"):
            bench.post(model=model, **({"cache_salt": salt} if salt else {}))
            salts.append(bench.bodies[-1]["cache_salt"])
    assert len(set(salts)) == 6
    bench.post(model="terse")
    assert bench.bodies[-1]["cache_salt"] == salts[0]
    bench.post(model="base", cache_salt="mine")
    assert bench.bodies[-1]["cache_salt"] == "mine"
    bench.bodies.clear()
    for path in (CHAT, "/v1/responses"):
        for body in ({"cache_salt": salts[0]}, {"requests": [{"cache_salt": salts[0]}]}):
            stolen = bench.post(path, model="base", **body)
            assert (stolen.status_code, stolen.json()["error"]["param"]) == (400, "cache_salt")
    assert not bench.bodies


def test_what_the_request_says_beats_the_profiles_defaults(bench: Bench) -> None:
    bench.post(model="terse", temperature=0.0, max_completion_tokens=3)
    assert bench.bodies[-1]["temperature"] == 0.0
    assert "max_tokens" not in bench.bodies[-1]


@pytest.mark.parametrize("model", ["nobody", "terse@2", "terse@sha256:12345678", "Terse", "", "alien"])
def test_unknown_models_are_refused_before_generation(bench: Bench, model: str) -> None:
    answer = bench.post(model=model)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (404, "NotFoundError", "model")
    assert "Known: base, terse, late" in error["message"]
    assert not bench.bodies


@pytest.mark.parametrize(
    "body",
    [
        {"model": "base", "vllm_xargs": {"trimtab": "x"}},
        {"model": "terse", "vllm_xargs": {"trimtab_id": "x"}},
        {"model": "base", "sampling_params": {"extra_args": {"trimtab": "x"}}},
        {"model": "base", "requests": [{"vllm_xargs": {"trimtab_scoped": 0}}]},
        {"model": "terse", "vllm_xargs": [1]},
        {"model": "base", "trimtab": True},
        {"model": "base", "trimtab": {"receipt": "yes"}},
        {"model": "base", "trimtab": {"reciept": True}},
        {"model": "base", "trimtab": {"strength": 0.5}},
        {"model": "terse", "trimtab": {"strength": "0.5"}},
        {"model": "terse", "trimtab": {"strength": True}},
        {"model": "terse", "trimtab": {"strength": 10**400}},
        {"model": "terse", "trimtab": {"strength": 101}},
        {"model": "terse", "trimtab": {"profile": "late"}},
        {"model": "base", "trimtab": {"profile": 3}},
        {"model": "base", "tools": DEEP},
    ],
)
def test_fields_of_the_server_and_malformed_options_are_refused(bench: Bench, body: dict[str, Any]) -> None:
    answer = bench.post(**body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)
    assert not bench.bodies


def test_other_routes(bench: Bench) -> None:
    assert bench.post("/v1/responses", model="terse").status_code == 400
    assert bench.post("/v1/responses", vllm_xargs={"trimtab": "x"}).status_code == 400
    assert not bench.bodies
    assert bench.post("/v1/responses", model="base").status_code == 200
    bench.post("/tokenize", model="terse")
    assert bench.bodies[-1]["model"] == "base"
    assert bench.post("/v1/completions", model="late").json()["model"] == "late@1"
    assert bench.client.get("/health").status_code == 200
    assert bench.client.get("/v1/trimtab/nothing").status_code == 404


def test_bodies_that_are_not_json_objects_are_left_to_vllm(bench: Bench) -> None:
    with pytest.raises(json.JSONDecodeError):
        bench.client.post(CHAT, content=b"{", headers={"content-type": "application/json"})


def test_receipts_in_the_answer_and_afterwards(bench: Bench) -> None:
    plain = bench.post(model="terse").json()
    assert "trimtab" not in plain
    answer = bench.post(model="terse", trimtab={"receipt": True}).json()
    receipt = answer["trimtab"]["receipt"]
    assert receipt == {
        "engine": "vllm",
        "model": "base",
        "profile": "terse@1",
        "profile_sha256": profiles(bench)["terse"]["sha256"],
        "strength": 1.0,
        "adapter_sha256": None,
        "layers": [1],
        "tokens_steered": 12,
    }
    for earlier in (plain, answer):
        assert bench.client.get(f"/v1/trimtab/receipts/{earlier['id']}").json() == {"receipt": receipt}
    base = bench.post(model="base", trimtab={"receipt": True}).json()
    assert base["trimtab"]["receipt"]["profile"] is None
    assert bench.client.get("/v1/trimtab/receipts/chatcmpl-99").status_code == 404


def test_a_receipt_that_does_not_fit_the_request_is_an_error(bench: Bench) -> None:
    bench.engine.applied = {"profile": None}
    answer = bench.post(model="terse", trimtab={"receipt": True})
    assert answer.status_code == 502
    text = bench.post(model="terse", stream=True, trimtab={"receipt": True}).text
    assert '"error"' in text.split("\n\n")[2]


def test_streams_are_relabelled_and_end_with_the_receipt(bench: Bench) -> None:
    events = bench.post(model="terse", stream=True, trimtab={"receipt": True}).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert [chunk["model"] for chunk in chunks] == ["terse@1"] * 3
    assert [c["choices"][0]["delta"]["content"] for c in chunks[:2]] == ["one", "two"]
    assert (chunks[2]["choices"], chunks[2]["trimtab"]["receipt"]["tokens_steered"]) == ([], 12)
    assert len(bench.post(model="terse", stream=True).text.strip().split("\n\n")) == 3


def test_errors_of_vllm_pass_unchanged(bench: Bench) -> None:
    answer = bench.post(model="terse", fail=True, trimtab={"receipt": True})
    assert (answer.status_code, answer.json()) == (400, {"error": {"message": "no", "code": 400}})


def test_the_model_list(bench: Bench) -> None:
    cards = bench.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["base", "terse", "late"]
    assert (cards[1]["parent"], cards[1]["max_model_len"], cards[1]["owned_by"]) == ("base", 64, "trimtab")


def test_loading_and_unloading_while_serving(bench: Bench, store: Path) -> None:
    load, unload = "/v1/trimtab/profiles/load", "/v1/trimtab/profiles/unload"
    base = file_sha256(bench.folder / "model.safetensors")
    sha = add(store, base, "terse", "2")
    answer = bench.client.post(load, json={"name": "terse@2"})
    assert (answer.status_code, answer.json()["profile"]["id"]) == (200, "terse@2")
    assert bench.client.post(load, json={"name": "terse@2"}).status_code == 200
    assert bench.engine.live.count(sha) == 1
    assert bench.post(model="terse").json()["model"] == "terse@2"
    assert bench.post(model="terse@1").json()["model"] == "terse@1"
    assert bench.client.post(unload, json={"name": "terse"}).json()["profile"]["id"] == "terse@2"
    assert bench.post(model="terse").json()["model"] == "terse@1"
    assert bench.post(model="terse@2").status_code == 404
    assert sha not in bench.engine.live


@pytest.mark.parametrize(
    ("body", "status"),
    [({"name": "nobody"}, 404), ({"name": "alien"}, 400), ({}, 400), ({"name": 1}, 400), ([], 400)],
)
def test_bad_loads(bench: Bench, body: Any, status: int) -> None:
    answer = bench.client.post("/v1/trimtab/profiles/load", json=body)
    assert (answer.status_code, "message" in answer.json()["error"]) == (status, True)
    assert len(bench.engine.live) == 2


def test_unloading_takes_the_name_at_once_and_waits_for_requests_that_run(bench: Bench) -> None:
    bench.hold.clear()
    done: dict[str, Any] = {}
    running = threading.Thread(target=lambda: done.update(answer=bench.post(model="terse", trimtab={"receipt": True})))
    running.start()
    while not bench.bodies:
        time.sleep(0.01)
    unloading = threading.Thread(
        target=lambda: done.update(unload=bench.client.post("/v1/trimtab/profiles/unload", json={"name": "terse"}))
    )
    unloading.start()
    while bench.post(model="terse", fail=True).status_code != 404:
        time.sleep(0.01)
    assert len(bench.engine.live) == 2, "a running request must keep its vectors"
    bench.hold.set()
    running.join()
    unloading.join()
    assert done["answer"].json()["trimtab"]["receipt"]["profile"] == "terse@1"
    assert done["unload"].status_code == 200
    assert len(bench.engine.live) == 1


def test_start_with_every_profile_skips_and_explains_those_for_other_models(make: Callable[..., Bench]) -> None:
    bench = make(live=None)
    with bench.client:
        assert sorted(profiles(bench)) == ["late", "terse"]
        assert "alien@1" in bench.client.get("/v1/trimtab/profiles").json()["refused"]
        assert "made for base model" in bench.post(model="alien").json()["error"]["message"]


@pytest.mark.parametrize(("live", "words"), [("terse,alien", "made for base model"), ("nobody", "unknown profile")])
def test_a_wanted_profile_that_does_not_load_fails_the_start(make: Callable[..., Bench], live: str, words: str) -> None:
    with pytest.raises(TrimtabError, match=words), make(live=live).client:
        pytest.fail("the application started")


def test_requests_without_the_servers_key_learn_nothing(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.app.state.args.api_key = ["secret"]
    with bench.client:
        bench.post(model="nobody", vllm_xargs={"trimtab": "x"})
        assert bench.bodies[-1]["model"] == "nobody", "it is passed on untouched, for vLLM to refuse"
        assert bench.client.get("/v1/trimtab/profiles").status_code == 404, "the application has no such route"
        bench.client.headers["authorization"] = "Bearer secret"
        assert bench.post(model="nobody").status_code == 404
        assert len(profiles(bench)) == 2


def test_a_profile_named_in_the_options(bench: Bench) -> None:
    for model in ("base", "terse"):
        assert bench.post(model=model, trimtab={"profile": "terse"}).json()["model"] == "terse@1"
    assert bench.post(model="base", trimtab={"profile": "nobody"}).status_code == 404


def test_strengths_are_profiles_of_their_own_inside_and_one_outside(bench: Bench) -> None:
    own = profiles(bench)["terse"]["sha256"]
    sent = {}
    for strength in (1, 1.0, 0.5, 0.5, -2, 0):
        answer = bench.post(model="terse", trimtab={"strength": strength, "receipt": True})
        assert answer.status_code == 200, answer.text
        receipt = answer.json()["trimtab"]["receipt"]
        assert (receipt["profile"], receipt["profile_sha256"], receipt["strength"]) == ("terse@1", own, strength)
        body = bench.bodies[-1]
        sent[strength] = (body["vllm_xargs"]["trimtab"], body["cache_salt"])
    assert sent[1][0] == own
    assert len(set(sent.values())) == len({salt for _, salt in sent.values()}) == 4
    assert len(bench.engine.live) == 2 + 3
    assert len(profiles(bench)) == 2, "they are not listed"
    assert bench.client.delete("/v1/trimtab/profiles/terse").status_code == 200
    assert len(bench.engine.live) == 1, "a profile takes its strengths along"
    assert bench.post(model="terse", trimtab={"strength": 0.5}).status_code == 404


def test_strengths_nobody_uses_give_way(bench: Bench, store: Path) -> None:
    bench.engine.room = 4

    def ask(strength: float) -> int:
        return int(bench.post(model="terse", trimtab={"strength": strength}).status_code)

    assert [ask(s) for s in (0.1, 0.2, 0.1, 0.3)] == [200] * 4
    live = set(bench.engine.live)
    terse = next(p for p in bench.client.get("/v1/trimtab/profiles").json()["profiles"] if p["name"] == "terse")
    loaded = {at_strength(load_profile(store / terse["id"]), s).sha256 for s in (1.0, 0.1, 0.3)}
    assert loaded < live, "the least recently used, 0.2, is gone"
    bench.hold.clear()
    running = [threading.Thread(target=ask, args=(s,)) for s in (0.1, 0.3)]
    before = len(bench.bodies)
    for thread in running:
        thread.start()
    while len(bench.bodies) < before + 2:
        time.sleep(0.01)
    refused = bench.post(model="terse", trimtab={"strength": 0.4})
    assert refused.status_code == 429, "those in use stay"
    assert set(bench.engine.live) == live
    bench.hold.set()
    for thread in running:
        thread.join()
    assert ask(0.4) == 200


def upload(folder: Path) -> dict[str, Any]:
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {"files": {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}}


def test_profiles_are_uploaded_with_the_admin_key_alone(
    bench: Bench, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = file_sha256(bench.folder / "model.safetensors")
    add(tmp_path / "mine", base, "new")
    body, place = upload(tmp_path / "mine" / "new@1"), "/v1/trimtab/profiles/new@1"
    assert bench.client.put(place, json=body).status_code == 403, "without a key set nobody may"
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    for key in ({}, {"x-trimtab-admin-key": "wrong"}):
        assert bench.client.put(place, json=body, headers=key).status_code == 403
        assert bench.client.delete("/v1/trimtab/profiles/terse", headers=key).status_code == 403
        assert bench.client.post("/v1/trimtab/profiles/unload", json={"name": "terse"}, headers=key).status_code == 403
    bench.client.headers["x-trimtab-admin-key"] = "hush"
    assert bench.client.put("/v1/trimtab/profiles/old@1", json=body).status_code == 400
    answer = bench.client.put(place, json=body)
    assert (answer.status_code, answer.json()["profile"]["id"]) == (200, "new@1"), answer.text
    assert bench.client.put(place, json=body).status_code == 200, "the same again is no fault"
    shown = bench.client.get("/v1/trimtab/profiles/new").json()
    assert shown["document"]["interventions"][0]["strength"] == 2.0
    assert bench.post(model="new").status_code == 200
    add(tmp_path / "other", base, "new", tokens="generated")
    assert bench.client.put(place, json=upload(tmp_path / "other" / "new@1")).status_code == 400
    assert bench.client.delete(place).json()["live"] is False
    assert bench.client.get("/v1/trimtab/profiles/new").status_code == 404
    assert ProfileStore(store).get("new").sha256 == load_profile(tmp_path / "mine" / "new@1").sha256
    assert bench.client.post("/v1/trimtab/profiles/load", json={"name": "new"}).status_code == 200, "it is in the store"


def test_a_refused_upload_is_not_in_the_store(
    bench: Bench, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take the place of what is live at the next start."""
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    bench.client.headers["x-trimtab-admin-key"] = "hush"
    shutil.move(store / "terse@1", tmp_path / "empty" / "terse@1")  # live, and in a root that is only read
    base = file_sha256(bench.folder / "model.safetensors")
    for name in ("terse", "base"):
        add(tmp_path / "mine", base, name, tokens="generated")
        body = upload(tmp_path / "mine" / f"{name}@1")
        assert bench.client.put(f"/v1/trimtab/profiles/{name}@1", json=body).status_code == 400
    assert not (store / "terse@1").exists()
    assert not (store / "base@1").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("profile.yaml"),
        lambda files: files.update({"../evil.safetensors": "AA=="}),
        lambda files: files.update({"/tmp/evil.safetensors": "AA=="}),
        lambda files: files.update({"run.py": "AA=="}),
        lambda files: files.update({"v.pt": "AA=="}),
        lambda files: files.update({"v.safetensors": "AAAA"}),
        lambda files: files.update({"v.safetensors": "not base64"}),
        lambda files: files.update({"v.safetensors": 3}),
    ],
)
def test_bad_uploads_leave_nothing(
    bench: Bench, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    add(tmp_path / "mine", file_sha256(bench.folder / "model.safetensors"), "new")
    body = upload(tmp_path / "mine" / "new@1")
    change(body["files"])
    before = sorted(store.rglob("*"))
    answer = bench.client.put("/v1/trimtab/profiles/new@1", json=body, headers={"x-trimtab-admin-key": "hush"})
    assert answer.status_code == 400, answer.text
    assert sorted(store.rglob("*")) == before
    assert len(bench.engine.live) == 2


def references() -> list[psutil.Process]:
    """The processes that read a server's answers."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "trimtab.steering.reference_child" in child.cmdline()]


def test_a_proof_takes_the_admin_key_and_one_live_profile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "/v1/trimtab/profiles/{}/verify"
    assert bench.client.post(place.format("terse")).status_code == 403, "without a key set there are no proofs"
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    assert bench.client.post(place.format("terse")).status_code == 403
    bench.client.headers["x-trimtab-admin-key"] = "hush"
    for name, status in (("nobody", 404), ("alien", 404), ("terse@2", 404), ("base", 400), ("", 404)):
        assert bench.client.post(place.format(name)).status_code == status, name
    assert bench.client.post(place.format("terse"), json={"tolerance": 9}).status_code == 400
    assert bench.client.get(place.format("terse")).status_code == 404
    assert not bench.bodies
    assert references() == []


def test_files_that_are_not_what_went_live_prove_nothing(
    bench: Bench, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    bench.client.headers["x-trimtab-admin-key"] = "hush"
    file = store / "terse@1" / "profile.yaml"
    file.write_text(file.read_text().replace("strength: 2.0", "strength: 2.5"))
    for words in ("the files are not what went live", "profile.yaml is missing"):
        answer = bench.client.post("/v1/trimtab/profiles/terse/verify")
        assert (answer.status_code, "ok" in answer.json()) == (409, False)
        assert words in answer.json()["error"]["message"]
        file.unlink(missing_ok=True)
    assert references() == []


def test_a_proof_that_takes_too_long_or_has_no_reference_is_an_error_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    bench.client.headers["x-trimtab-admin-key"] = "hush"
    monkeypatch.setenv("TRIMTAB_VERIFY_SECONDS", "0.2")
    late = bench.client.post("/v1/trimtab/profiles/terse/verify")
    assert (late.status_code, "ok" in late.json()) == (429, False)
    assert "not proven within 0.2 s" in late.json()["error"]["message"]
    assert references() == []
    monkeypatch.delenv("TRIMTAB_VERIFY_SECONDS")
    monkeypatch.setattr("sys.executable", "/bin/false")
    broken = bench.client.post("/v1/trimtab/profiles/terse/verify")
    assert (broken.status_code, "ok" in broken.json()) == (502, False), "and the one before is out of the way"
    assert "the reference ended with exit code 1" in broken.json()["error"]["message"]
    assert references() == []


def test_what_one_rank_has_no_room_for_is_live_on_none(make: Callable[..., Bench]) -> None:
    bench = make(live="terse")
    with bench.client:
        before = list(bench.engine.live)
        bench.engine.other_rank_has_room = False
        said = bench.client.post("/v1/trimtab/profiles/load", json={"name": "late"})
        assert (said.status_code, bench.engine.live) == (429, before)
        bench.engine.other_rank_has_room = True
        assert bench.client.post("/v1/trimtab/profiles/load", json={"name": "late"}).status_code == 200


def test_a_start_reads_the_profiles_that_are_asked_for(
    make: Callable[..., Bench], store: Path, fill_store: Any, opened_below: Callable[[Path], list[str]]
) -> None:
    fill_store(store, store / "terse@1", ((f"t{n:04d}", "1") for n in range(2_000)))
    bench = make(live="terse,t0500")
    opened_below(store)
    with bench.client:
        assert opened_below(store) == ["t0500@1", "terse@1"]
        assert bench.client.post("/v1/trimtab/profiles/load", json={"name": "t1999"}).status_code == 200
        assert bench.post(model="nobody").status_code == 404
        assert opened_below(store) == ["t1999@1"]


def test_a_start_with_all_profiles_ends_where_there_is_no_more_room(
    make: Callable[..., Bench], store: Path, fill_store: Any, opened_below: Callable[[Path], list[str]]
) -> None:
    fill_store(store, store / "terse@1", ((f"t{n:04d}", "1") for n in range(2_000)))
    bench = make(live=None)
    bench.engine.room = 3
    opened_below(store)
    with bench.client:
        assert sorted(profiles(bench)) == ["late", "t0000", "t0001"]
        assert opened_below(store) == ["alien@1", "late@1", *(f"t{n:04d}@1" for n in range(2 + FULL_AFTER))]
        refused = bench.client.get("/v1/trimtab/profiles").json()["refused"]
        assert len(refused) == 1 + FULL_AFTER + 1
        assert refused["..."] == f"{2_003 - 4 - FULL_AFTER} more were not tried: there is no room"
        assert "the bank is full" in bench.post(model="t0002").json()["error"]["message"]
        assert bench.client.post("/v1/trimtab/profiles/unload", json={"name": "late"}).status_code == 200
        assert bench.client.post("/v1/trimtab/profiles/load", json={"name": "t1000"}).status_code == 200
