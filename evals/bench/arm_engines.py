"""The engines of the serving benchmark, inside their processes."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch

from .arm import Block, Setup, Work

RESERVED = 16
"""The first tokens of a vocabulary are special ones: prompts leave them out."""


def prompts(work: Work, vocabulary: int) -> list[list[int]]:
    """Random prompts of the same length, all different."""
    rng = random.Random(work.seed)
    return [[rng.randrange(RESERVED, vocabulary) for _ in range(work.prompt)] for _ in work.profiles]


class VllmEngine:
    """Stock vLLM in this process, compiled, with or without the plugin."""

    def __init__(self, setup: Setup) -> None:
        from ...steering.vllm.offline import Offline

        self._profiles = [sha256 for _, sha256 in setup.profiles]
        self._adapters = bool(setup.adapters)
        self._engine = Offline(
            setup.model,
            plugin=setup.plugin,
            adapters=setup.adapters,
            rank=setup.rank,
            in_flight=setup.in_flight,
            length=setup.length,
            dtype=setup.dtype,
        )
        for directory, sha256 in setup.profiles:
            self._engine.load(directory, sha256)

    def facts(self) -> dict[str, Any]:
        """How it runs."""
        return {"compiled": self._engine.compiled, "lora": self._adapters}

    def run(self, work: Work) -> Block:
        """All requests at once."""
        from ...steering.vllm.offline import Request

        asked = [
            Request(prompt, None if profile is None else self._profiles[profile], adapter)
            for prompt, profile, adapter in zip(
                prompts(work, self._engine.vocabulary), work.profiles, work.adapters, strict=True
            )
        ]
        return Block(*self._engine.generate(asked, work.tokens))


class HooksEngine:
    """Hugging Face's `generate` with a static cache and Trimtab's hooks; one profile for the whole batch, as hooks
    know no other way. LoRA is not used."""

    def __init__(self, setup: Setup) -> None:
        from transformers import AutoModelForCausalLM

        from ...steering.profile import load_profile

        torch.set_num_threads(setup.threads)
        self._model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=getattr(torch, setup.dtype)).eval()
        self._profiles = [load_profile(Path(directory)) for directory, _ in setup.profiles]

    def facts(self) -> dict[str, Any]:
        """How it runs."""
        return {"compiled": False, "lora": False}

    @torch.inference_mode()
    def run(self, work: Work) -> Block:
        """The whole batch at once."""
        from ...steering.hooks import steered

        ids = torch.tensor(prompts(work, self._model.config.vocab_size))
        options = {
            "attention_mask": torch.ones_like(ids),
            "do_sample": False,
            "max_new_tokens": work.tokens,
            "min_new_tokens": work.tokens,
            "cache_implementation": "static",
            "disable_compile": True,
        }
        start = time.perf_counter()
        number = work.profiles[0]
        if number is None:
            out = self._model.generate(ids, **options)
        else:
            with steered(self._model, self._profiles[number], work.prompt):
                out = self._model.generate(ids, **options)
        seconds = time.perf_counter() - start
        return Block(seconds, int(out[:, work.prompt :].numel()))
