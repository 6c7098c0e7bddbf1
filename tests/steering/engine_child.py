"""A stock vLLM with the plugin, in a process of its own, for tests that choose the engine's options.

Reads one JSON line of options, answers `{"compiled": ...}`, then does batch after batch: one JSON line in, one out. A
batch may come with profiles to load at the workers' doors while it runs.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any


def interpret_kernels() -> None:
    """Let vLLM's V2 model runner run here: its Triton kernels are interpreted, by Triton's own interpreter. On the CPU
    vLLM wants a Triton that has a CPU backend, so one is named; nothing is compiled for it."""
    os.environ["TRITON_INTERPRET"] = "1"
    backends = importlib.import_module("triton.backends").backends
    backends["cpu"] = SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True))
    # torch.compile wants to know which Triton made its kernels; for the CPU it writes C++ and none is made.
    vars(importlib.import_module("torch.utils._triton"))["triton_hash_with_backend"] = lambda: "interpreted"


def schedule_ahead() -> None:
    """Let vLLM schedule a step before it knows what the last one generated, as it does on a GPU: its CPU platform turns
    that off when it has seen the options, because there nothing is gained by it."""
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        stock(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def same(answers: list[Any]) -> Any:
    """The answer of all ranks."""
    assert all(answer == answers[0] for answer in answers), answers
    return answers[0]


def load_beside(llm: Any, doors: list[str], profiles: list[list[str]], done: list[float]) -> None:
    """Load profiles in every rank as soon as requests run, and note when each had answered."""
    from trimtab.steering.vllm.door import knock

    while profiles and not llm.llm_engine.has_unfinished_requests():
        time.sleep(0.001)
    for directory, sha in profiles:
        for door in doors:
            answer = asyncio.run(knock(door, directory, sha, 1.0))
            assert answer == {}, answer
            done.append(time.monotonic())


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log

    def say(message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    setup = json.loads(sys.stdin.readline())
    if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":
        interpret_kernels()
        schedule_ahead()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        worker_extension_cls="trimtab.steering.vllm.worker.SteeringExtension",
        generation_config="vllm",
        dtype="float32",
        disable_log_stats=False,
        **setup["options"],
    )
    for directory, sha in setup["profiles"]:
        answer = same(llm.collective_rpc("trimtab_load", args=(directory, sha)))
        assert "error" not in answer, answer
    doors = [answer["address"] for answer in llm.collective_rpc("trimtab_door")]
    config = llm.llm_engine.vllm_config
    say(
        {
            "compiled": int(config.compilation_config.mode or 0) > 0,
            "lora": config.lora_config is not None,
            "v2": config.use_v2_model_runner,
            "ahead": config.scheduler_config.async_scheduling,
            "ranks": len(llm.collective_rpc("trimtab_describe")),
        }
    )
    for line in sys.stdin:
        message = json.loads(line)
        prompts, params, loras, receipts = [], [], [], []
        for asked in message["requests"]:
            receipts.append(asked["receipt"])
            extra = {"trimtab_id": asked["receipt"]}
            prompt: dict[str, Any] = {"prompt_token_ids": asked["prompt"]}
            if asked["profile"]:
                extra |= {"trimtab": asked["profile"], "trimtab_scoped": asked["scoped"]}
                prompt["cache_salt"] = f"{asked['profile']} {asked['adapter']}"
            prompts.append(prompt)
            params.append(
                SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, logprobs=0, extra_args=extra)
            )
            adapter = asked["adapter"]
            loras.append(None if adapter is None else LoRARequest(f"a{adapter[0]}", adapter[0] + 1, adapter[1]))
        loaded: list[float] = []
        loader = threading.Thread(target=load_beside, args=(llm, doors, message["load"], loaded))
        loader.start()
        outputs = llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
        ended = time.monotonic()
        loader.join()
        found = []
        for output, receipt in zip(outputs, receipts, strict=True):
            answer = same(llm.collective_rpc("trimtab_receipt", args=(receipt,)))
            one = output.outputs[0]
            found.append(
                {
                    "ids": list(one.token_ids),
                    "logprobs": [step[i].logprob for step, i in zip(one.logprobs, one.token_ids, strict=True)],
                    "cached": output.num_cached_tokens or 0,
                    "applied": answer["requests"],
                }
            )
        preempted = sum(int(m.value) for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
        say({"requests": found, "preemptions": preempted, "beside": sum(moment < ended for moment in loaded)})


if __name__ == "__main__":
    main()
