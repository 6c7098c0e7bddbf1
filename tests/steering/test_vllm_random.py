"""Random profiles, batches, scopes, chunks and preemptions on vLLM itself, every request held to Hugging Face.

Three engines of a tiny random model: an eager one with so few tokens a step and so few cache blocks that prompts are
computed in pieces and requests are thrown out and taken up again; the same with adapters on vLLM's V2 model runner,
whose GPU kernels are interpreted; and a compiled one, with LoRA still on, that mixes adapters with steering in compiled
code. Most of the profiles are loaded while requests run.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trimtab.steering.document import Document
from trimtab.steering.files import model_sha256
from trimtab.steering.profile import Profile, save_profile

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


def profiles_of(base: Path, folder: Path) -> list[Any]:
    """The random profiles, always the same."""
    rng = random.Random(11)
    return [write(rng, number, base, folder) for number in range(PROFILES)]


EARLY = 4
"""Profiles that are live at the start."""


def load_late(engine: Any, ask_for: Any, profiles: list[Profile]) -> None:
    """The other profiles, beside requests of each kind: these must not notice."""
    new = 60 if engine.facts["v2"] else 200  # what is interpreted takes its time
    batch: Batch = [(n, None, 20, new, 0) for n in (None, *range(EARLY))]
    engine.hold(requests_of(ask_for, batch, adapters=False), load=profiles[EARLY:])


CRAMPED = {
    "enforce_eager": True,
    "max_num_batched_tokens": 24,
    "num_gpu_blocks_override": 24,
    "enable_prefix_caching": True,
}
"""24 tokens a step, and cache for half of what eight requests need."""


@pytest.fixture(scope="module")
def cramped(run_engine: Any, ask_for: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("cramped")
    profiles = profiles_of(tiny_model, folder)
    with run_engine(tiny_model, folder, profiles[:EARLY], [], terms=160, **CRAMPED) as engine:
        load_late(engine, ask_for, profiles)
        yield engine


@pytest.fixture(scope="module", params=[False, True], ids=["eager", "compiled"])
def second(
    request: pytest.FixtureRequest,
    run_engine: Any,
    ask_for: Any,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """The V2 runner, as cramped, with LoRA."""
    options = {**CRAMPED, "enforce_eager": not request.param}
    options |= {"enable_lora": True, "max_loras": ADAPTERS, "max_lora_rank": 8}
    folder = tmp_path_factory.mktemp("second")
    adapters = [write_adapter(tiny_model, folder / f"adapter-{i}", i) for i in range(ADAPTERS)]
    profiles = profiles_of(tiny_model, folder)
    gates = bool(request.param)
    with run_engine(
        tiny_model, folder, profiles[:EARLY], adapters, terms=160, gates=gates, v2=True, **options
    ) as engine:
        assert (engine.facts["v2"], engine.facts["compiled"]) == (True, request.param)
        load_late(engine, ask_for, profiles)
        yield engine


@pytest.fixture(scope="module")
def compiled(
    run_engine: Any, ask_for: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Compiled, with room for conditions, and LoRA."""
    options = {"enable_lora": True, "max_loras": ADAPTERS, "max_lora_rank": 8, "max_num_batched_tokens": 64}
    folder = tmp_path_factory.mktemp("compiled")
    adapters = [write_adapter(tiny_model, folder / f"adapter-{i}", i) for i in range(ADAPTERS)]
    profiles = profiles_of(tiny_model, folder)
    with run_engine(tiny_model, folder, profiles[:EARLY], adapters, terms=160, gates=True, **options) as engine:
        load_late(engine, ask_for, profiles)
        yield engine


REQUEST = st.tuples(
    st.none() | st.integers(0, PROFILES - 1),
    st.none() | st.integers(0, ADAPTERS - 1),
    st.integers(1, 140),
    st.integers(1, 50),
    st.integers(0, 5),
)
"""Profile, adapter, lengths of prompt and answer, and which text the prompt starts with."""


def requests_of(ask_for: Any, batch: Batch, *, adapters: bool) -> list[Any]:
    """A batch, with few different beginnings: prompts share cached blocks with earlier ones."""
    return [
        ask_for(profile, adapter if adapters else None, [97 + _letter(text, i) for i in range(length)], new)
        for profile, adapter, length, new, text in batch
    ]


def _letter(text: int, place: int) -> int:
    return random.Random(f"{text} {place}").randrange(26)


def room(test: Any) -> Any:
    """So many examples that the suite stays quick; the seed is fixed, as an engine lives through all of them."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=25, deadline=None, suppress_health_check=quiet, derandomize=True)(test)


@given(batch=st.lists(REQUEST, min_size=4, max_size=14))
@room
def test_chunks_preemptions_and_cached_blocks_change_nothing(cramped: Any, ask_for: Any, batch: Batch) -> None:
    assert not cramped.facts["compiled"]
    cramped.hold(requests_of(ask_for, batch, adapters=False))


def test_requests_were_thrown_out_and_blocks_used_again(cramped: Any, ask_for: Any) -> None:
    """The test above would mean little otherwise."""
    cramped.hold(requests_of(ask_for, [(n, None, 120, 60, n % 2) for n in range(14)], adapters=False))
    assert cramped.preemptions > 0
    for _ in range(2):
        cramped.hold(requests_of(ask_for, [(n, None, 120, 4, n % 2) for n in range(4)], adapters=False))
    assert cramped.cached > 0


def test_the_v2_runner_steers_and_adapts_as_the_reference_does(second: Any, ask_for: Any) -> None:
    """Every profile, by turns under each adapter and none; what is interpreted is slow, so no random batches here."""
    assert second.facts["ahead"]
    numbers = (None, *range(ADAPTERS))
    batch: Batch = [(n, numbers[n % len(numbers)], 3 + 7 * n % 60, 6, n % 3) for n in range(PROFILES)]
    second.hold(requests_of(ask_for, [(None, None, 30, 6, 0), (None, 1, 30, 6, 0), *batch], adapters=True))


def test_the_v2_runner_throws_requests_out_and_uses_blocks_again(second: Any, ask_for: Any) -> None:
    second.hold(requests_of(ask_for, [(n, n % ADAPTERS, 120, 60, n % 2) for n in range(8)], adapters=True))
    assert second.preemptions > 0
    for _ in range(2):
        second.hold(requests_of(ask_for, [(n, None, 70, 3, n) for n in range(3)], adapters=True))
    assert second.cached > 0


@given(batch=st.lists(REQUEST, min_size=2, max_size=10))
@room
def test_compiled_layers_steer_and_adapt_as_the_reference_does(compiled: Any, ask_for: Any, batch: Batch) -> None:
    assert compiled.facts["compiled"]
    assert compiled.facts["lora"]
    compiled.hold(requests_of(ask_for, batch, adapters=True))
