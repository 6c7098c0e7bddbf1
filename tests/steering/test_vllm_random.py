"""Random profiles, batches, scopes, chunks and preemptions on vLLM itself, every request held to Hugging Face.

Two engines of a tiny random model: an eager one with so few tokens a step and so few cache blocks that prompts are
computed in pieces and requests are thrown out and taken up again; and a compiled one, with LoRA still on, that mixes
adapters with steering in compiled code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trimtab.steering.document import Document
from trimtab.steering.files import model_sha256
from trimtab.steering.hooks import adapted, steered
from trimtab.steering.profile import Profile, save_profile
from trimtab.steering.scope import prompt_end_reach
from trimtab.steering.vllm.launch import server_environment

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

Batch = list[tuple[int | None, int | None, int, int, int]]

PROFILES = 28
ADAPTERS = 3
HIDDEN, LAYERS = 64, 3
"""Of the tiny model."""


def scope(rng: random.Random) -> Any:
    """A token scope of any kind."""
    form = rng.choice(("phase", "phase", "first", "last", "at", "after", "until"))
    if form == "phase":
        return rng.choice(("prompt", "generated", "all"))
    if form == "at":
        return {"at": sorted(rng.sample(range(60), rng.randint(1, 4)))}
    if form in ("after", "until"):
        return {form: chr(rng.randint(97, 122))}
    phase = "all" if form == "last" else rng.choice(("all", "generated", "prompt"))
    return {form: rng.randint(1, 20), "phase": phase}


def entry(rng: random.Random, gated: bool) -> dict[str, Any]:
    """An intervention of any kind at any layer; its tensors are `u0` to `u3`, `m` and `w`."""
    kind = rng.choice(("add", "add", "ablate", "clamp", "clamp_feature", "reft_r1"))
    fields: dict[str, Any] = {"kind": kind, "layer": rng.randrange(LAYERS), "file": "t.safetensors"}
    fields["tokens"] = "all" if gated and rng.random() < 0.5 else scope(rng)
    one = f"u{rng.randrange(4)}"
    if kind == "add":
        return {**fields, "tensor": one, "strength": rng.uniform(-8, 8)}
    if kind == "ablate":
        return {**fields, "tensor": rng.choice((one, "m"))}
    if kind == "clamp":
        return {**fields, "tensor": one, "low": rng.uniform(-1, 0), "high": rng.uniform(0, 1)}
    if kind == "clamp_feature":
        return {**fields, "encoder": one, "decoder": f"u{rng.randrange(4)}", "value": rng.uniform(1, 6), "bias": -0.1}
    return {**fields, "tensor": one, "strength": rng.uniform(-4, 4)}


def write(rng: random.Random, number: int, base: Path, root: Path) -> Profile:
    """A random profile."""
    generator = torch.Generator().manual_seed(number)
    tensors = {f"u{i}": torch.randn(HIDDEN, generator=generator) for i in range(4)}
    tensors = {name: one / one.norm() for name, one in tensors.items()}
    tensors["m"] = torch.randn(3, HIDDEN, generator=generator)
    gated = rng.random() < 0.3
    fields: dict[str, Any] = {
        "format": 1,
        "name": f"r{number}",
        "base": {"model": "tiny", "sha256": model_sha256(base)},
        "interventions": [entry(rng, gated) for _ in range(rng.randint(1, 3))],
    }
    if gated:
        fields["gate"] = {
            "layer": rng.randint(0, min(entry["layer"] for entry in fields["interventions"])),
            "file": "t.safetensors",
            "tensor": "u0",
            "threshold": 0.0,
            "passes": rng.choice(("above", "below")),
            "hold": rng.choice(("token", "prompt")),
        }
    return save_profile(root / f"r{number}@1", Document.model_validate(fields), tensors={"t.safetensors": tensors})


@dataclass
class Engine:
    """A running child, and what its answers are held to."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    profiles: list[Profile]
    adapters: list[Path]
    hf: Any
    tokenizer: Any
    asked: int = 0
    preemptions: int = 0
    cached: int = 0

    def ask(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(requests) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.preemptions = answer["preemptions"]
        return list(answer["requests"])

    @torch.no_grad()
    def logprobs(self, prompt: list[int], ids: list[int], profile: Profile | None, adapter: Path | None) -> list[float]:
        """What the reference says of an answer, token by token: natural logs of probabilities."""
        with ExitStack() as stack:
            model = stack.enter_context(adapted(self.hf, adapter))
            if profile is not None:
                stack.enter_context(steered(model, profile, len(prompt), tokenizer=self.tokenizer))
            logits = model(torch.tensor([prompt + ids])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return [float(row[i]) for row, i in zip(rows, ids, strict=True)]


def write_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A random adapter of every linear layer, written by PEFT itself."""
    wrapped: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4 + seed, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(folder)
    return folder


def engine(base: Path, folder: Path, *, gates: bool, options: dict[str, Any]) -> Iterator[Engine]:
    rng = random.Random(11)
    profiles = [write(rng, number, base, folder) for number in range(PROFILES)]
    adapters = (
        [write_adapter(base, folder / f"adapter-{i}", i) for i in range(ADAPTERS)] if "enable_lora" in options else []
    )
    environment = {
        **os.environ,
        **server_environment([], [], terms=160, gates=gates),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }
    common = {"model": str(base), "max_model_len": 256, "block_size": 32, "max_num_seqs": 8}
    log = (folder / "engine.log").open("w")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("engine_child.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        live = [(str(profile.directory), profile.sha256) for profile in profiles]
        process.stdin.write(json.dumps({"options": {**common, **options}, "profiles": live}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, (folder / "engine.log").read_text()[-3000:]
        hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        yield Engine(process, json.loads(line), profiles, adapters, hf, AutoTokenizer.from_pretrained(base))
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def cramped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Eager: 24 tokens a step, and cache for half of what eight requests need."""
    options = {
        "enforce_eager": True,
        "max_num_batched_tokens": 24,
        "num_gpu_blocks_override": 24,
        "enable_prefix_caching": True,
    }
    yield from engine(tiny_model, tmp_path_factory.mktemp("cramped"), gates=False, options=options)


@pytest.fixture(scope="module")
def compiled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Compiled, with room for conditions, and LoRA."""
    options = {"enable_lora": True, "max_loras": ADAPTERS, "max_lora_rank": 8, "max_num_batched_tokens": 64}
    yield from engine(tiny_model, tmp_path_factory.mktemp("compiled"), gates=True, options=options)


REQUEST = st.tuples(
    st.none() | st.integers(0, PROFILES - 1),
    st.none() | st.integers(0, ADAPTERS - 1),
    st.integers(1, 140),
    st.integers(1, 50),
    st.integers(0, 5),
)
"""Profile, adapter, lengths of prompt and answer, and which text the prompt starts with."""


def hold(engine: Engine, batch: Batch) -> None:
    """Ask for a batch at once, and hold every answer to the reference."""
    requests: list[dict[str, Any]] = []
    for profile, adapter, length, new, text in batch:
        # Few different beginnings, so that prompts share cached blocks with earlier ones.
        prompt = [97 + random.Random(f"{text} {i}").randrange(26) for i in range(length)]
        chosen = None if profile is None else engine.profiles[profile]
        adapter = adapter if engine.adapters else None
        engine.asked += 1
        reach = 0
        if chosen is not None:
            held = chosen.gate is not None and chosen.gate.hold
            reach = prompt_end_reach((part.scope for part in chosen.interventions), held=held)
        requests.append(
            {
                "receipt": f"r{engine.asked}",
                "prompt": prompt,
                "tokens": new,
                "profile": None if chosen is None else chosen.sha256,
                "scoped": reach,
                "adapter": None if adapter is None else [adapter, str(engine.adapters[adapter])],
            }
        )
    for asked, answer in zip(requests, engine.ask(requests), strict=True):
        chosen = next((p for p in engine.profiles if p.sha256 == asked["profile"]), None)
        folder = None if asked["adapter"] is None else Path(asked["adapter"][1])
        wanted = engine.logprobs(asked["prompt"], answer["ids"], chosen, folder)
        assert len(answer["ids"]) == asked["tokens"]
        # A text scope or a condition can hang on a tie; everything else is continuous in what is computed.
        assert answer["logprobs"] == pytest.approx(wanted, abs=2e-3), chosen
        (applied,) = answer["applied"]
        assert applied["profile"] == asked["profile"]
        engine.cached += answer["cached"]


def room(test: Any) -> Any:
    """So many examples that the suite stays quick; the seed is fixed, as an engine lives through all of them."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=25, deadline=None, suppress_health_check=quiet, derandomize=True)(test)


@given(batch=st.lists(REQUEST, min_size=4, max_size=14))
@room
def test_chunks_preemptions_and_cached_blocks_change_nothing(cramped: Engine, batch: Batch) -> None:
    assert not cramped.facts["compiled"]
    hold(cramped, batch)


def test_requests_were_thrown_out_and_blocks_used_again(cramped: Engine) -> None:
    """The test above would mean little otherwise."""
    hold(cramped, [(n, None, 120, 60, n % 2) for n in range(14)])
    assert cramped.preemptions > 0
    hold(cramped, [(n, None, 120, 4, n % 2) for n in range(4)])
    hold(cramped, [(n, None, 120, 4, n % 2) for n in range(4)])
    assert cramped.cached > 0


@given(batch=st.lists(REQUEST, min_size=2, max_size=10))
@room
def test_compiled_layers_steer_and_adapt_as_the_reference_does(compiled: Engine, batch: Batch) -> None:
    assert compiled.facts == {"compiled": True, "lora": True}
    hold(compiled, batch)
