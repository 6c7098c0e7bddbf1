"""The engines of the serving benchmark, inside their processes."""

from __future__ import annotations

import itertools
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
        from vllm import LLM

        options: dict[str, Any] = {}
        if setup.plugin:
            options["worker_extension_cls"] = "trimtab.steering.vllm.worker.SteeringExtension"
        if setup.adapters:
            options |= {"enable_lora": True, "max_loras": len(setup.adapters), "max_lora_rank": setup.rank}
        self._setup = setup
        self._llm = LLM(
            model=setup.model,
            dtype="float32",
            max_model_len=512,
            max_num_seqs=setup.in_flight,
            block_size=32,
            enable_prefix_caching=False,
            generation_config="vllm",
            distributed_executor_backend="uni",
            disable_log_stats=True,
            **options,
        )
        for directory, sha256 in setup.profiles:
            (answer,) = self._llm.collective_rpc("trimtab_load", args=(directory, sha256))
            if "error" in answer:
                raise SystemExit(f"a profile did not load: {answer['error']}")
        self._ids = itertools.count()

    def facts(self) -> dict[str, Any]:
        """How it runs."""
        config = self._llm.llm_engine.vllm_config
        return {
            "compiled": int(config.compilation_config.mode or 0) > 0,
            "model": type(self._llm).__name__,
            "lora": config.lora_config is not None,
        }

    def run(self, work: Work) -> Block:
        """All requests at once."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        vocabulary = self._llm.llm_engine.vllm_config.model_config.get_vocab_size()
        receipts: list[str] = []
        params, loras = [], []
        for profile, adapter in zip(work.profiles, work.adapters, strict=True):
            extra = None
            if profile is not None:
                receipts.append(f"bench-{next(self._ids)}")
                extra = {"trimtab": self._setup.profiles[profile][1], "trimtab_id": receipts[-1]}
            params.append(
                SamplingParams(
                    temperature=0, max_tokens=work.tokens, ignore_eos=True, detokenize=False, extra_args=extra
                )
            )
            path = None if adapter is None else self._setup.adapters[adapter]
            loras.append(None if path is None else LoRARequest(f"adapter-{adapter}", (adapter or 0) + 1, path))
        inputs = [{"prompt_token_ids": ids} for ids in prompts(work, vocabulary)]
        start = time.perf_counter()
        outputs = self._llm.generate(
            inputs, params, lora_request=loras if self._setup.adapters else None, use_tqdm=False
        )
        seconds = time.perf_counter() - start
        return Block(seconds, sum(len(o.outputs[0].token_ids) for o in outputs), self._steered(receipts))

    def _steered(self, receipts: list[str]) -> int | None:
        if not receipts:
            return None
        total = 0
        for receipt in receipts:
            (answer,) = self._llm.collective_rpc("trimtab_receipt", args=(receipt,))
            counted = [one["steered"] for one in answer["requests"] or [{"steered": None}]]
            if any(count is None for count in counted):
                return None
            total += sum(counted)
        return total


class HooksEngine:
    """Hugging Face's `generate` with a static cache and Trimtab's hooks; one profile for the whole batch, as hooks
    know no other way. LoRA is not used."""

    def __init__(self, setup: Setup) -> None:
        from transformers import AutoModelForCausalLM

        from ...steering.profile import load_profile

        torch.set_num_threads(setup.threads)
        self._model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32).eval()
        self._profiles = [load_profile(Path(directory)) for directory, _ in setup.profiles]

    def facts(self) -> dict[str, Any]:
        """How it runs."""
        return {"compiled": False, "model": type(self._model).__name__, "lora": False}

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
