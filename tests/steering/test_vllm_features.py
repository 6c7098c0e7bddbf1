"""Steering beside other features of the engine, on vLLM itself: several ranks, and what is refused at the start."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def profiles(width: int, layers: int) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """One that adds at every layer, one that adds to what is generated, a rank-1 term, and one under a condition."""
    generator = torch.Generator().manual_seed(7)
    tensors = {f"v{i}": torch.randn(width, generator=generator) for i in range(layers)}
    adds = [{"layer": i, "file": "v.safetensors", "tensor": f"v{i}", "strength": 1.5} for i in range(layers)]
    ablate = {"kind": "ablate", "layer": 1, "file": "v.safetensors", "tensor": "v0"}
    gate = {"layer": 0, "file": "v.safetensors", "tensor": "v1", "threshold": 0.0, "hold": "prompt"}
    made: dict[str, dict[str, Any]] = {
        "all": {"interventions": adds},
        "generated": {"interventions": [{**adds[1], "tokens": "generated"}]},
        "reads": {"interventions": [ablate, adds[2]]},
        "gated": {"interventions": adds[1:], "gate": gate},
    }
    return made, tensors


@pytest.mark.parametrize("compiled", [False, True])
def test_two_ranks_steer_as_the_reference_does_and_count_once(
    compiled: bool,
    run_engine: Any,
    ask_for: Any,
    save_profiles: Any,
    write_adapter: Any,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """Each rank has a runner with a bank of its own. That all of them answer alike is checked where they are asked."""
    made = save_profiles(tmp_path, tiny_model, *profiles(64, 3))
    adapters = [write_adapter(tmp_path / "adapter", 1, size=0.1, base=tiny_model)]
    options = {"tensor_parallel_size": 2, "enforce_eager": not compiled, "max_num_batched_tokens": 24}
    options |= {"enable_lora": True, "max_lora_rank": 8}
    with run_engine(tiny_model, tmp_path, made[:1], adapters, terms=4, gates=compiled, **options) as engine:
        assert (engine.facts["ranks"], engine.facts["compiled"]) == (2, compiled)
        engine.hold([ask_for(p, a, [60, 61, 62], 200) for p in (None, 0) for a in (None, 0)], load=made[1:])
        prompts = [[40 + (7 * i + 3 * n) % 50 for i in range(n)] for n in (3, 40)]
        batch = [ask_for(p, a, prompt, 6) for prompt in prompts for a in (None, 0) for p in (None, *range(len(made)))]
        for request, applied in zip(batch, engine.hold(batch), strict=True):
            every = len(request.prompt) + request.tokens - 1
            counts = {None: 0, 0: every, 1: request.tokens - 1, 2: every}
            if request.profile in counts:
                assert applied["steered"] == counts[request.profile]
        plain, *steered = (engine.logprobs(prompts[1], [50, 51, 52], p, None) for p in (None, *made[:3]))
        assert all(one != pytest.approx(plain, abs=0.05) for one in steered), "a profile that would not show"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative decoding",
        ),
        ({"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline parallelism"),
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        ({"kv_sharing_fast_prefill": True}, "fast prefill of layers that share a cache"),
    ],
)
def test_an_engine_with_it_does_not_start(
    options: dict[str, Any], name: str, run_engine: Any, tiny_model: Path, tmp_path: Path
) -> None:
    with (
        pytest.raises(AssertionError, match=f"steering does not support {name} yet. Start the server without it"),
        run_engine(tiny_model, tmp_path, [], [], enforce_eager=True, **options),
    ):
        pass
