"""Steering, adapters and the prefix cache on a real vLLM server, held to Hugging Face and PEFT."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trimtab.home import file_sha256
from trimtab.models.embedded import PROFILES
from trimtab.steering.document import Document
from trimtab.steering.files import model_sha256
from trimtab.steering.hooks import adapted, steered
from trimtab.steering.profile import Profile, load_profile, save_profile
from trimtab.steering.strength import at_strength
from trimtab.steering.weights import merged_adapter

pytestmark = pytest.mark.server

NEW = 12
"""Tokens generated where answers are compared."""

BLOCK = 32
"""Tokens in a block of the prefix cache."""

_fresh = itertools.count(int(time.time()) % 100_000 * 1000)


class Bench:
    """The server, its base model in Hugging Face, and profiles made for the tests."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.url, self.model, self.folder = server.url, server.model, folder
        self.roots = server.roots
        self.http = httpx.Client(base_url=server.url, timeout=120)
        self.hf: PreTrainedModel = AutoModelForCausalLM.from_pretrained(server.model_dir, dtype=torch.float32).eval()
        config = self.hf.config
        self.width, self.layers, self.vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
        self.base_sha = model_sha256(server.model_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(server.model_dir)
        self.edited = 0
        """Tokens that were edited in the last answer of the reference."""
        self.profiles: dict[str, Profile | None] = {self.model: None}
        self.norm = self._typical_norm()

    def _typical_norm(self) -> float:
        """How long a residual vector is in the middle of the model: test vectors are of that size."""
        with torch.no_grad():
            out = self.hf(torch.tensor([self.prompt(16)]), output_hidden_states=True)
        return float(out.hidden_states[self.layers // 2].norm(dim=-1).median())

    def prompt(self, length: int) -> list[int]:
        """Token ids no earlier test used."""
        g = torch.Generator().manual_seed(next(_fresh))
        return [int(i) for i in torch.randint(10, self.vocabulary - 40, (length,), generator=g)]

    def vector(self, seed: int) -> torch.Tensor:
        v = torch.randn(self.width, generator=torch.Generator().manual_seed(seed))
        return v / v.norm() * self.norm

    def adapter(self, seed: int, rank: int = 4) -> Path:
        """A random PEFT adapter, strong enough to change answers."""
        from peft import LoraConfig, get_peft_model

        target = self.folder / f"adapter-{seed}"
        if not target.exists():
            state = torch.random.get_rng_state()
            torch.manual_seed(seed)
            wrapped = get_peft_model(
                self.hf, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"])
            )
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            wrapped.save_pretrained(target)
            wrapped.unload()
            torch.random.set_rng_state(state)
        return target

    def make(
        self,
        name: str,
        vectors: Sequence[tuple[int, Any]] = (),
        adapter: int | None = None,
        more: Sequence[dict[str, Any]] = (),
        **fields_: Any,
    ) -> None:
        """Write a profile to the store and make it live while the server runs.

        Args:
            vectors: (layer, tokens) of each added vector.
            more: entries of other kinds; their tensors are unit vectors `u0` to `u3` and `u`, three of them.
        """
        source = None if adapter is None else self.adapter(adapter)
        fields: dict[str, Any] = {
            "format": 1,
            "name": name,
            "base": {"model": self.model, "sha256": self.base_sha},
            "interventions": [
                {"layer": layer, "file": "v.safetensors", "tensor": f"t{i}", "strength": 1.0, "tokens": tokens}
                for i, (layer, tokens) in enumerate(vectors)
            ]
            + [{"file": "u.safetensors", **entry} for entry in more],
            **fields_,
        }
        tensors = {"v.safetensors": {f"t{i}": self.vector(i) for i in range(len(vectors))}} if vectors else {}
        if more or "gate" in fields_:
            units = {f"u{i}": self.vector(50 + i) / self.norm for i in range(4)}
            tensors["u.safetensors"] = units | {"u": torch.stack([units["u0"], units["u1"], units["u2"]])}
        if source is not None:
            fields["adapter"] = {"path": "adapter", "sha256": file_sha256(source / "adapter_model.safetensors")}
        self.profiles[name] = save_profile(
            self.roots[0] / f"{name}@1",
            Document.model_validate(fields),
            tensors=tensors,
            adapters={"adapter": source} if source is not None else None,
            replace=True,
        )
        answer = self.http.post("/v1/trimtab/profiles/load", json={"name": name})
        assert answer.status_code == 200, answer.text

    def drop(self, name: str) -> None:
        answer = self.http.post("/v1/trimtab/profiles/unload", json={"name": name})
        assert answer.status_code == 200, answer.text
        del self.profiles[name]
        shutil.rmtree(self.roots[0] / f"{name}@1")

    def reference(self, name: str, prompt: list[int], new: int = NEW) -> list[int]:
        """What Hugging Face, PEFT and hooks answer, greedily and without an end token."""
        return self.scored(name, prompt, new)[0]

    @torch.no_grad()
    def scored(self, name: str, prompt: list[int], new: int = NEW) -> tuple[list[int], list[float]]:
        """As `reference`, with the natural log of each token's probability."""
        profile = self.profiles[name]
        with ExitStack() as stack:
            model: Any = self.hf
            if profile is not None:
                merged = merged_adapter(profile, self.folder / "merged")
                model = stack.enter_context(adapted(self.hf, merged[0] if merged else None))
                run = stack.enter_context(steered(model, profile, len(prompt), tokenizer=self.tokenizer))
            out = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        self.edited = 0 if profile is None else run.edited
        ids = [int(i) for i in out.sequences[0, len(prompt) :]]
        rows = [logits[0].float().log_softmax(-1) for logits in out.logits]
        return ids, [float(row[i]) for row, i in zip(rows, ids, strict=True)]

    def body(self, name: str, prompt: list[int], new: int = NEW, **more: Any) -> dict[str, Any]:
        fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "logprobs": 1}
        return {"model": name, "prompt": prompt, "max_tokens": new, "trimtab": {"receipt": True}, **fixed, **more}

    def ask(self, name: str, prompt: list[int], new: int = NEW, **more: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/completions", json=self.body(name, prompt, new, **more))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def together(self, asked: Sequence[tuple[str, list[int]]], new: int = NEW) -> list[dict[str, Any]]:
        """Ask for all at once, so that the engine batches them."""

        async def run() -> list[dict[str, Any]]:
            async with httpx.AsyncClient(base_url=self.url, timeout=240) as http:
                answers = await asyncio.gather(
                    *(http.post("/v1/completions", json=self.body(name, prompt, new)) for name, prompt in asked)
                )
            for answer in answers:
                assert answer.status_code == 200, answer.text
            return [answer.json() for answer in answers]

        return asyncio.run(run())


def tokens(answer: dict[str, Any]) -> list[int]:
    return list(answer["choices"][0]["token_ids"])


def cached(answer: dict[str, Any]) -> int:
    return int((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


def receipt(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer["trimtab"]["receipt"])


@pytest.fixture(scope="module")
def bench(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(server, tmp_path_factory.mktemp("plugin"))
    top = made.layers - 1
    made.make("t-all", [(0, "all"), (top, "all")])
    made.make("t-scoped", [(0, "prompt"), (1, "generated")])
    made.make("t-adapter", adapter=1)
    made.make("t-both", [(1, "generated")], adapter=1)
    made.make(
        "t-terms",
        [(1, "all")],
        more=[
            {"kind": "ablate", "layer": 0, "tensor": "u"},
            {"kind": "clamp", "layer": top, "tensor": "u3", "low": 2.0, "tokens": "generated"},
            {"kind": "reft_r1", "layer": 1, "tensor": "u3", "strength": 3.0},
            {"kind": "clamp_feature", "layer": 1, "encoder": "u1", "decoder": "u2", "value": 4.0, "bias": -0.1},
        ],
        adapter=1,
    )
    made.make(
        "t-places",
        [(0, {"first": 4}), (1, {"last": 3}), (1, {"at": [0, 2]}), (top, {"phase": "generated", "first": 5})],
    )
    made.make("t-text", [(1, {"after": "e"}), (top, {"until": "a"})])
    made.make("t-answer", [(1, "all")], steps=["answer"])
    gate = {"layer": 0, "file": "u.safetensors", "tensor": "u3", "threshold": 0.0}
    made.make("t-gate", [(0, "all"), (top, "all")], gate=gate)
    made.make("t-below", [(1, "all")], gate={**gate, "passes": "below", "hold": "prompt"}, adapter=1)
    made.make("t-held", [(0, "all"), (1, "generated")], gate={**gate, "hold": "prompt"})
    yield made
    for name in [name for name, profile in made.profiles.items() if profile is not None]:
        made.drop(name)
    made.http.close()


NAMES = ("t-all", "t-scoped", "t-adapter", "t-both", "t-terms", "t-places", "t-text", "t-answer", "t-gate", "t-held")
ADAPTED = ("t-adapter", "t-both", "t-terms", "t-below")


def test_a_mixed_batch_equals_the_reference_for_each_request(bench: Bench) -> None:
    asked = [(name, bench.prompt(length)) for length in (3, 40, 77) for name in (bench.model, *NAMES)]
    answers = bench.together(asked)
    for (name, prompt), answer in zip(asked, answers, strict=True):
        ids, logprobs = bench.scored(name, prompt)
        assert tokens(answer) == ids, f"{name}, {len(prompt)} prompt tokens"
        assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=2e-3), name
        found = receipt(answer)
        assert found["tokens_steered"] == bench.edited
        profile = bench.profiles[name]
        assert answer["model"] == (bench.model if profile is None else profile.id)
        assert found["profile_sha256"] == (None if profile is None else profile.sha256)
        assert found["layers"] == ([] if profile is None else list(profile.layers))
        assert (found["adapter_sha256"] is not None) == (name in ADAPTED)


def test_profiles_change_answers(bench: Bench) -> None:
    """The comparisons above would mean little if the profiles did nothing."""
    asked = [bench.prompt(40) for _ in range(4)]  # what one answer says may give a profile that reads it no occasion
    names = [name for name in bench.profiles if name not in ("t-held", "t-below")]  # these may be held shut
    scores = {
        name: [p for prompt in asked for p in bench.ask(name, prompt)["choices"][0]["logprobs"]["token_logprobs"]]
        for name in names
    }
    for one, other in itertools.combinations(scores, 2):
        assert scores[one] != pytest.approx(scores[other], abs=0.02), f"{one} and {other} answer alike"


@pytest.mark.parametrize("strength", [0.5, -1.0, 0])
def test_a_strength_scales_the_steering_alone(bench: Bench, strength: float) -> None:
    names = ["t-all", "t-both", "t-terms", "t-below"]
    if "calc-casual" in live_names(bench):  # a weight delta, where the shipped profiles fit the model
        bench.profiles["calc-casual"] = load_profile(PROFILES / "calc-casual@1")
        names.append("calc-casual")
    try:
        for name in names:
            profile, prompt = bench.profiles[name], bench.prompt(40)
            assert profile is not None
            answer = bench.ask(name, prompt, trimtab={"receipt": True, "strength": strength})
            bench.profiles["scaled"] = at_strength(profile, strength)
            ids, logprobs = bench.scored("scaled", prompt)
            assert tokens(answer) == ids, name
            assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=2e-3), name
            assert receipt(answer)["profile_sha256"] == profile.sha256
            assert receipt(answer)["strength"] == strength
            assert receipt(answer)["tokens_steered"] == bench.edited
    finally:
        bench.profiles.pop("scaled", None)
        bench.profiles.pop("calc-casual", None)


def live_names(bench: Bench) -> set[str]:
    return {entry["name"] for entry in bench.http.get("/v1/trimtab/profiles").json()["profiles"]}


def test_prefills_in_chunks_equal_the_reference(bench: Bench) -> None:
    """Together these prompts are longer than the tokens of one step, so some are computed in pieces."""
    asked = [(name, bench.prompt(420)) for name in (bench.model, *NAMES, *NAMES)]
    for (name, prompt), answer in zip(asked, bench.together(asked, new=4), strict=True):
        assert tokens(answer) == bench.reference(name, prompt, 4), name
        assert receipt(answer)["tokens_steered"] == bench.edited


def test_a_held_condition_is_decided_for_each_request_alone(bench: Bench) -> None:
    """Of requests in one batch some pass and some do not, on either side of the threshold."""
    asked = [(name, bench.prompt(12 + n)) for n in range(8) for name in ("t-held", "t-below")]
    counts = []
    for (name, prompt), answer in zip(asked, bench.together(asked), strict=True):
        assert tokens(answer) == bench.reference(name, prompt), name
        assert receipt(answer)["tokens_steered"] == bench.edited
        counts.append(bench.edited)
    assert 0 in counts
    assert NEW in counts  # the last prompt token, and all generated ones that are fed back


def test_profiles_never_share_cached_states(bench: Bench) -> None:
    prompt = bench.prompt(3 * BLOCK)
    for name in (bench.model, *NAMES):
        first, second = bench.ask(name, prompt), bench.ask(name, prompt)
        assert cached(first) == 0, f"{name} was served another one's states"
        assert cached(second) >= BLOCK
        assert tokens(first) == tokens(second) == bench.reference(name, prompt)
        if name == "t-gate":  # whether a restored token was let through is not known, and is not guessed
            assert receipt(second) == {**receipt(first), "tokens_steered": None}
        else:
            assert receipt(first) == receipt(second), "restored positions count as steered: they were"


def test_a_clients_salt_parts_the_cache_within_a_profile(bench: Bench) -> None:
    prompt = bench.prompt(3 * BLOCK)
    assert cached(bench.ask("t-all", prompt, cache_salt="ann")) == 0
    assert cached(bench.ask("t-all", prompt, cache_salt="bob")) == 0
    assert cached(bench.ask("t-all", prompt)) == 0
    assert cached(bench.ask("t-all", prompt, cache_salt="ann")) >= BLOCK


@pytest.mark.parametrize("name", ["t-all", "t-scoped", "t-both", "t-places", "t-text", "t-answer", "t-gate", "t-held"])
def test_an_answer_that_comes_back_as_prompt_is_what_a_cold_server_would_make_of_it(bench: Bench, name: str) -> None:
    start = bench.prompt(2 * BLOCK)
    answer = tokens(bench.ask(name, start, 2 * BLOCK + 5))
    turn = bench.ask(name, start + answer + bench.prompt(5))
    prompt = start + answer
    again = bench.ask(name, prompt)
    assert tokens(again) == bench.reference(name, prompt)
    if name in ("t-all", "t-gate"):
        assert cached(turn) > 2 * BLOCK, "with one vector for all tokens the answer's states can be used again"
    else:
        kept = (
            BLOCK if name in ("t-places", "t-answer", "t-held") else 2 * BLOCK
        )  # the prompt's last tokens are treated apart
        assert cached(turn) <= kept, "states of generated tokens are not those of prompt tokens"


def test_requests_without_adapter_beside_full_slots_equal_the_base_model(bench: Bench) -> None:
    slots = bench.http.get("/v1/trimtab/profiles").json()["worker"]["lora_slots"]
    names = [f"t-slot-{i}" for i in range(slots)]
    for i, name in enumerate(names):
        bench.make(name, adapter=100 + i)
    try:
        asked = [(name, bench.prompt(20)) for name in names] + [(bench.model, bench.prompt(20)) for _ in range(3)]
        asked.append(("t-all", bench.prompt(20)))
        for _ in range(2):  # in the second round every slot is taken from the first step on
            for (name, prompt), answer in zip(asked, bench.together(asked), strict=True):
                assert tokens(answer) == bench.reference(name, prompt), name
    finally:
        for name in names:
            bench.drop(name)


def test_an_idle_connection_outlives_those_that_clients_keep(bench: Bench) -> None:
    url = httpx.URL(bench.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=60)
    connection.request("GET", "/health")
    connection.getresponse().read()
    socket = connection.sock
    time.sleep(6)  # stock vLLM closes after 5, as long as httpx keeps a connection
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is socket
    connection.close()


def test_streams_carry_the_receipt_in_their_last_chunk(bench: Bench) -> None:
    client = openai.OpenAI(base_url=f"{bench.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model="t-all",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=5,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"trimtab": {"receipt": True}, "ignore_eos": True},
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {"t-all@1"}
    usage = next(chunk.usage for chunk in chunks if chunk.usage)
    last: Any = chunks[-1]
    assert last.choices == []
    assert last.trimtab["receipt"]["tokens_steered"] == usage.prompt_tokens + usage.completion_tokens - 1
    later = bench.http.get(f"/v1/trimtab/receipts/{last.id}").json()["receipt"]
    assert later == last.trimtab["receipt"]


def test_several_choices_are_each_steered_and_counted(bench: Bench) -> None:
    prompt = bench.prompt(10)
    answer = bench.ask("t-all", prompt, n=2, temperature=1.0, seed=1)
    assert len(answer["choices"]) == 2
    assert receipt(answer)["tokens_steered"] == 2 * (10 + NEW - 1)


def test_the_model_list_names_profiles_and_no_internal_adapters(bench: Bench) -> None:
    client = openai.OpenAI(base_url=f"{bench.url}/v1", api_key="none")
    names = [model.id for model in client.models.list()]
    assert names[0] == bench.model
    assert set(NAMES) <= set(names)
    assert not [name for name in names if "@" in name]


@pytest.mark.parametrize("model", ["nobody", "t-all@9"])
def test_unknown_profiles_are_refused(bench: Bench, model: str) -> None:
    client = openai.OpenAI(base_url=f"{bench.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="t-all"):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])


def test_half_a_profile_cannot_be_asked_for(bench: Bench) -> None:
    profile = bench.profiles["t-both"]
    assert profile is not None
    merged = merged_adapter(profile, bench.folder / "merged")
    assert merged is not None
    for path in ("/v1/completions", "/v1/responses"):
        body = {"model": f"t-adapter@{merged[1][:12]}", "prompt": [11], "input": "x"}
        assert bench.http.post(path, json=body).status_code == 404
    smuggled = {"model": bench.model, "prompt": [11], "vllm_xargs": {"trimtab": profile.sha256}}
    assert bench.http.post("/v1/completions", json=smuggled).status_code == 400


def test_loading_and_unloading_disturb_nobody(bench: Bench) -> None:
    prompt = bench.prompt(12)
    wanted = bench.reference("t-all", prompt, 60)

    async def run() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=bench.url, timeout=240) as http:
            asked = [http.post("/v1/completions", json=bench.body("t-all", prompt, 60)) for _ in range(4)]
            answers = asyncio.gather(*asked)
            for _ in range(2):
                await asyncio.to_thread(bench.make, "t-passing", [(0, "all")])
                await asyncio.to_thread(bench.drop, "t-passing")
            return [answer.json() for answer in await answers]

    for answer in asyncio.run(run()):
        assert tokens(answer) == wanted
    gone = bench.http.post("/v1/completions", json=bench.body("t-passing", prompt))
    assert gone.status_code == 404


def test_a_client_that_hangs_up_leaves_nothing_in_flight(bench: Bench) -> None:
    body = bench.body("t-all", bench.prompt(8), 400, stream=True)
    with bench.http.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
    wait_until(lambda: in_flight(bench, "t-all") == 0)


def in_flight(bench: Bench, name: str) -> int:
    live = bench.http.get("/v1/trimtab/profiles").json()["profiles"]
    return int(next(profile["in_flight"] for profile in live if profile["name"] == name))


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
