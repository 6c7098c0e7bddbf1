"""vLLM in this process, without HTTP: what benchmarks of the engine itself are made on, with the plugin or without."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import BadInput
from .launch import DTYPES


class Request(NamedTuple):
    """A prompt's tokens, the SHA-256 of a loaded profile, and the number of an adapter; None for neither."""

    prompt: Sequence[int]
    profile: str | None
    adapter: int | None


class Generated(NamedTuple):
    """Seconds from the first request to the last token, tokens generated, and tokens that the receipts say were
    steered; None where nothing was asked to be, or a receipt does not know."""

    seconds: float
    tokens: int
    steered: int | None


class Offline:
    """An engine, compiled, without prefix cache: every request is computed.

    Args:
        model: folder of the base model.
        plugin: whether steering is installed; this process must then have been started with its environment.
        adapters: PEFT folders that requests can name by number; LoRA is off without any.
        rank: their highest rank.
        in_flight: requests at once at most.
        length: longest prompt and answer together, in tokens.
        dtype: number format to compute in.
    """

    def __init__(
        self,
        model: str,
        *,
        plugin: bool,
        adapters: Sequence[str] = (),
        rank: int = 16,
        in_flight: int = 64,
        length: int = 512,
        dtype: str = DTYPES[0],
    ) -> None:
        from vllm import LLM

        options: dict[str, Any] = {}
        if plugin:
            options["worker_extension_cls"] = "trimtab.steering.vllm.worker.SteeringExtension"
        if adapters:
            options |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank}
        self._adapters = list(adapters)
        self._llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=length,
            max_num_seqs=in_flight,
            block_size=32,
            enable_prefix_caching=False,
            generation_config="vllm",
            distributed_executor_backend="uni",
            disable_log_stats=True,
            **options,
        )
        self._config = self._llm.llm_engine.vllm_config
        self.vocabulary = int(self._config.model_config.get_vocab_size())
        self._ids = itertools.count()

    @property
    def compiled(self) -> bool:
        """Whether vLLM compiled the layers."""
        return int(self._config.compilation_config.mode or 0) > 0

    def load(self, directory: str, sha256: str) -> None:
        """Make a profile live. Raises BadInput when it does not load."""
        (answer,) = self._llm.collective_rpc("trimtab_load", args=(directory, sha256))
        if "error" in answer:
            raise BadInput(answer["error"]["what"], where=directory)

    def generate(self, requests: Sequence[Request], tokens: int) -> Generated:
        """Generate so many tokens for each, greedily, whatever they are."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        receipts: list[str] = []
        params, loras = [], []
        for request in requests:
            extra = None
            if request.profile is not None:
                receipts.append(f"offline-{next(self._ids)}")
                extra = {"trimtab": request.profile, "trimtab_id": receipts[-1]}
            params.append(
                SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra)
            )
            n = request.adapter
            loras.append(None if n is None else LoRARequest(f"adapter-{n}", n + 1, self._adapters[n]))
        inputs = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        start = time.perf_counter()
        outputs = self._llm.generate(inputs, params, lora_request=loras if self._adapters else None, use_tqdm=False)
        seconds = time.perf_counter() - start
        return Generated(seconds, sum(len(o.outputs[0].token_ids) for o in outputs), self._steered(receipts))

    def _steered(self, receipts: Sequence[str]) -> int | None:
        counts: list[int | None] = []
        for receipt in receipts:
            (answer,) = self._llm.collective_rpc("trimtab_receipt", args=(receipt,))
            counts += [one["steered"] for one in answer["requests"] or [{"steered": None}]]
        return None if not counts or None in counts else sum(count for count in counts if count is not None)
