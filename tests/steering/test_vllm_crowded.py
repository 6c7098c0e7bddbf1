"""One real server with a store of ten thousand profiles and two hundred of them live: room, and proofs over HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

pytest.importorskip("vllm")

from trimtab.models.server import Server, free_port, new_log
from trimtab.steering.document import Document
from trimtab.steering.files import model_sha256
from trimtab.steering.profile import load_profile, save_profile
from trimtab.steering.reference import Reference
from trimtab.steering.vllm.launch import ROWS_VARIABLE, server_arguments, server_environment

pytestmark = pytest.mark.server

LIVE, STORED, KEY = 200, 10_000, "hush"
SPARE = ("x0", "x1")
"""Profiles that fit the model and are not asked for at the start."""
ADMIN = {"x-trimtab-admin-key": KEY}

TWISTED = """
import json, os, pathlib

class Twisted:
    '''In front of the server: takes a request for another one's, as a file says. What a wrong server would do.'''

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        how = json.loads(pathlib.Path(os.environ["TWIST"]).read_text())
        if scope["type"] != "http" or scope["path"] != "/v1/completions" or not how:
            return await self.app(scope, receive, send)
        body = json.loads((await receive())["body"])
        salted = body["model"] + (" salted" if "cache_salt" in body else "")
        body["model"] = how.get(salted, body["model"])
        raw, given = json.dumps(body).encode(), []

        async def again():
            if given:
                return await receive()
            given.append(True)
            return {"type": "http.request", "body": raw, "more_body": False}

        await self.app(scope, again, send)
"""


class Crowded:
    """The server, and what its answers are held to."""

    def __init__(self, url: str, pid: int, root: Path, twist: Path, reference: Reference) -> None:
        self.url, self.pid, self.root, self.twist, self.reference = url, pid, root, twist, reference
        self.http = httpx.Client(base_url=url, timeout=120, headers=ADMIN)
        self.seed = 0

    def together(self, names: Sequence[str], new: int = 4, **options: Any) -> list[dict[str, Any]]:
        """Ask each profile for another answer, all at once, and hold each to its receipt and the reference."""
        self.seed += 1
        prompts = self.reference.prompts([6 + n % 5 for n in range(len(names))], self.seed)
        fixed = {"max_tokens": new, "temperature": 0, "ignore_eos": True, "return_token_ids": True, "logprobs": 1}

        async def run() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
                bodies = [
                    {"model": n, "prompt": p, "trimtab": {"receipt": True, **options}, **fixed}
                    for n, p in zip(names, prompts, strict=True)
                ]
                return list(await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies)))

        answers = []
        for name, prompt, reply in zip(names, prompts, asyncio.run(run()), strict=True):
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            answers.append(answer)
            profile, receipt = load_profile(self.root / f"{name}@1"), answer["trimtab"]["receipt"]
            assert (receipt["profile"], receipt["profile_sha256"]) == (profile.id, profile.sha256)
            if not options:
                choice = answer["choices"][0]
                wanted, edited = self.reference.scored(profile, prompt, choice["token_ids"])
                assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-3), name
                assert receipt["tokens_steered"] == edited
        return answers

    def post(self, what: str, name: str) -> httpx.Response:
        return self.http.post(f"/v1/trimtab/profiles/{what}", json={"name": name})

    def live(self) -> dict[str, Any]:
        return dict(self.http.get("/v1/trimtab/profiles").json())

    def verify(self, name: str, key: str | None = KEY) -> httpx.Response:
        headers = {} if key is None else {"x-trimtab-admin-key": key}
        return httpx.post(f"{self.url}/v1/trimtab/profiles/{name}/verify", headers=headers, timeout=120)


@pytest.fixture(scope="module")
def crowded(tiny_model: Path, fill_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowded]:
    folder = tmp_path_factory.mktemp("crowded")
    root, base = folder / "store", model_sha256(tiny_model)
    names = [*(f"w{n:03d}" for n in range(LIVE)), *SPARE]
    vectors = {name: torch.randn(64, generator=torch.Generator().manual_seed(n)) for n, name in enumerate(names)}
    sources = {}
    for kind, sha256 in (("mine", base), ("alien", "0" * 64)):
        entry = {"layer": 1, "file": "v.safetensors", "tensor": "w000", "strength": 3.0, "tokens": "all"}
        data = {"format": 1, "name": kind, "base": {"model": "tiny", "sha256": sha256}, "interventions": [entry]}
        document = Document.model_validate(data)
        sources[kind] = save_profile(folder / kind, document, tensors={"v.safetensors": vectors}).directory
    fill_store(root, sources["mine"], ((name, "1") for name in names))
    for n, name in enumerate(names):
        file = root / f"{name}@1" / "profile.yaml"
        tokens = "generated" if n % 3 == 0 else "all"
        file.write_text(file.read_text().replace("w000", name).replace("tokens: all", f"tokens: {tokens}"))
    fill_store(root, sources["alien"], ((f"alien{n}", "1") for n in range(STORED - len(names))))
    (folder / "code").mkdir()
    (folder / "code" / "twisted.py").write_text(TWISTED)
    twist, port = folder / "twist.json", free_port()
    twist.write_text("{}")
    arguments = server_arguments(tiny_model, served_name="tiny", host="127.0.0.1", port=port, max_model_len=256)
    server = Server(
        [sys.executable, *arguments, "--middleware", "twisted.Twisted"],
        environment={
            **server_environment([root], names[:LIVE]),
            ROWS_VARIABLE: str(LIVE + 1),
            "TRIMTAB_ADMIN_KEY": KEY,
            "PYTHONPATH": str(folder / "code"),
            "TWIST": str(twist),
        },
        url=f"http://127.0.0.1:{port}",
        log=new_log("crowded"),
    )
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, server.start()).result()
        try:
            assert server.pid is not None
            yield Crowded(server.url, server.pid, root, twist, Reference(tiny_model, folder))
        finally:
            pool.submit(asyncio.run, server.stop()).result()


def test_a_start_reads_what_is_asked_for(crowded: Crowded) -> None:
    found = crowded.live()
    assert [entry["name"] for entry in found["profiles"]] == [f"w{n:03d}" for n in range(LIVE)]
    assert found["refused"] == {}, "of those for another model none was looked at"
    assert (found["worker"]["rows"], found["worker"]["rows_used"]) == (LIVE, LIVE)


def test_hundreds_at_once_are_each_their_own(crowded: Crowded) -> None:
    answers = crowded.together([f"w{n:03d}" for n in range(LIVE)])
    assert len({answer["trimtab"]["receipt"]["profile_sha256"] for answer in answers}) == LIVE


def test_beyond_the_room_there_is_an_error_and_the_live_ones_stay_right(crowded: Crowded) -> None:
    before = [entry["id"] for entry in crowded.live()["profiles"]]
    refused = crowded.post("load", "x0")
    assert refused.status_code == 429
    assert f"0 of the bank's {LIVE} rows are free" in refused.json()["error"]["message"]
    assert "Unload a profile first" in refused.json()["error"]["message"]
    for spec in ("x0", "alien5"):
        assert crowded.http.post("/v1/completions", json={"model": spec, "prompt": "x"}).status_code == 404
    assert [entry["id"] for entry in crowded.live()["profiles"]] == before
    some = [f"w{n:03d}" for n in range(0, LIVE, 10)]
    crowded.together(some)
    assert crowded.post("unload", "w000").status_code == 200
    # Strengths take what room is left, and give way: to one another, and to a profile that is to be live.
    for strength in (0.5, 2.0):
        (answer,) = crowded.together(["w001"], strength=strength)
        assert answer["trimtab"]["receipt"]["strength"] == strength
    assert crowded.post("load", "x1").status_code == 200
    assert crowded.live()["worker"]["rows_used"] == LIVE
    crowded.together(["x1", *some[1:]])
    assert crowded.post("unload", "x1").status_code == 200
    assert crowded.post("load", "w000").status_code == 200


def test_a_proof_needs_the_key_and_a_live_profile(crowded: Crowded) -> None:
    for key in (None, "wrong"):
        assert crowded.verify("w007", key).status_code == 403
    for name, status in (("nobody", 404), ("x0", 404), ("tiny", 400)):
        assert crowded.verify(name).status_code == status
    assert not _references(crowded), "nobody asked for a proof that there can be"


def test_a_profile_is_proven_one_at_a_time_while_others_are_served(crowded: Crowded) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(crowded.verify, "w007@1") for _ in range(2)]
        served = 0
        while not all(future.done() for future in asked):
            crowded.together(["w001"])
            served += 1
        replies = sorted((future.result() for future in asked), key=lambda reply: reply.status_code)
    assert served > 3, "the server answers meanwhile"
    assert [reply.status_code for reply in replies] == [200, 409], [reply.text for reply in replies]
    assert "w007@1 is being verified" in replies[1].json()["error"]["message"]
    report = replies[0].json()
    assert (report["ok"], report["url"], report["model"]) == (True, crowded.url, "tiny")
    base, ours = report["checks"]
    assert (base["name"], base["problems"], base["sha256"]) == ("tiny", [], None)
    assert (ours["name"], ours["problems"]) == ("w007@1", [])
    assert ours["sha256"] == load_profile(crowded.root / "w007@1").sha256
    assert ours["steered"] == ours["expected"] == sum((5, 41, 150)) + 3 * 15  # all but the answers' last
    assert ours["moved"] > 0.1
    assert ours["difference"] < report["tolerance"]
    assert not _references(crowded), "the reference ends with the proof"


def test_a_proof_ends_when_whoever_asked_for_it_hangs_up(crowded: Crowded) -> None:
    url, headers = f"{crowded.url}/v1/trimtab/profiles/w007/verify", {"x-trimtab-admin-key": KEY}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, headers=headers, timeout=httpx.Timeout(60, read=0.5))
    time.sleep(0.5)  # a proof takes longer than both: its reference is not even loaded
    assert not _references(crowded)
    assert crowded.verify("w007").status_code == 200


def test_a_server_that_does_otherwise_is_found_out(crowded: Crowded) -> None:
    # It answers for the profile without steering, and steers the base model's requests while others are steered.
    crowded.twist.write_text(json.dumps({"w007@1": "tiny", "tiny salted": "w008@1"}))
    try:
        reply = crowded.verify("w007")
    finally:
        crowded.twist.write_text("{}")
    report = reply.json()
    assert (reply.status_code, report["ok"]) == (409, False)
    assert report["error"]["type"] == "ConflictError"
    base, ours = report["checks"]
    assert (base["name"], base["problems"]) == ("tiny", ["other requests change what the base model says"])
    assert report["base_alone"] is None or report["base_alone"] > report["tolerance"]
    assert ours["name"] == "w007@1"
    told = "; ".join(ours["problems"])
    for part in ("answered as tiny", "names other content", "names other layers", "0 steered tokens", "log prob"):
        assert part in told
        assert part in report["error"]["message"]


def _references(crowded: Crowded) -> list[psutil.Process]:
    children = psutil.Process(crowded.pid).children(recursive=True)
    return [child for child in children if "trimtab.steering.reference_child" in child.cmdline()]
