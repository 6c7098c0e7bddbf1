"""Architectures that are steered in vLLM, tiny and random, each held to Hugging Face on a real engine.

Layers are found by structure, not by name; what is tested is that the place, the residual and the phases are right in
each: pre- and post-norms, parallel attention, layers that return their sum and layers that defer it.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

HIDDEN, LAYERS = 64, 3
COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2Config", GROUPED),
    "Llama": ("LlamaConfig", GROUPED),
    "Mistral": ("MistralConfig", {**GROUPED, "head_dim": 32, "sliding_window": None}),
    "Gemma": ("GemmaConfig", {**GROUPED, "head_dim": 32, "tie_word_embeddings": True}),
    "Gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 32, "tie_word_embeddings": True, "sliding_window": 128}),
    "Phi3": ("Phi3Config", GROUPED),
    "GPTNeoX": ("GPTNeoXConfig", COMMON),
}
"""Besides Qwen3, which all other tests use."""


def write_model(kind: str, tokenizer: Path, folder: Path) -> None:
    """A random model with another's tokenizer."""
    name, fields = KINDS[kind]
    size = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    config = getattr(transformers, name)(**fields, vocab_size=size, eos_token_id=1)
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / file).exists():
            shutil.copyfile(tokenizer / file, folder / file)


def profiles() -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """One that adds at every layer, one that reads what it changes, and one under a condition."""
    generator = torch.Generator().manual_seed(5)
    tensors = {f"v{i}": torch.randn(HIDDEN, generator=generator) for i in range(LAYERS)}
    adds = [{"layer": i, "file": "v.safetensors", "tensor": f"v{i}", "strength": 1.5} for i in range(LAYERS)]
    ablates = [{"kind": "ablate", "layer": i, "file": "v.safetensors", "tensor": f"v{i}"} for i in range(LAYERS)]
    gate = {"layer": 0, "file": "v.safetensors", "tensor": "v1", "threshold": 0.0}
    made: dict[str, dict[str, Any]] = {
        "adds": {"interventions": [{**adds[0], "tokens": "prompt"}, *adds[1:]]},
        "reads": {"interventions": [*ablates, {**adds[1], "tokens": "generated"}]},
        "gated": {"interventions": adds, "gate": gate},
    }
    return made, tensors


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_is_steered_as_the_reference_is(
    kind: str, run_engine: Any, ask_for: Any, save_profiles: Any, tiny_model: Path, tmp_path: Path
) -> None:
    base = tmp_path / "model"
    write_model(kind, tiny_model, base)
    made = save_profiles(tmp_path, base, *profiles())
    with run_engine(base, tmp_path, made, [], terms=8, enforce_eager=True) as engine:
        prompts = [[40 + (7 * i + 3 * n) % 50 for i in range(n)] for n in (3, 20, 50)]
        engine.hold([ask_for(p, None, prompt, 8) for prompt in prompts for p in (None, *range(len(made)))])
        plain, *steered = (engine.logprobs(prompts[1], [50, 51, 52], p, None) for p in (None, *made))
        for name, one in zip(("adds", "reads", "gated"), steered, strict=True):
            assert one != pytest.approx(plain, abs=0.05), f"{name} changes nothing that would show"
