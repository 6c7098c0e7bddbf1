"""A stock vLLM with the plugin, in a process of its own, for tests that choose the engine's options.

Reads one JSON line of options, answers `{"compiled": ...}`, then does batch after batch: one JSON line in, one out.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log

    def say(message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    setup = json.loads(sys.stdin.readline())
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        worker_extension_cls="trimtab.steering.vllm.worker.SteeringExtension",
        distributed_executor_backend="uni",
        generation_config="vllm",
        dtype="float32",
        disable_log_stats=False,
        **setup["options"],
    )
    for directory, sha in setup["profiles"]:
        (answer,) = llm.collective_rpc("trimtab_load", args=(directory, sha))
        assert "error" not in answer, answer
    config = llm.llm_engine.vllm_config
    say({"compiled": int(config.compilation_config.mode or 0) > 0, "lora": config.lora_config is not None})
    for line in sys.stdin:
        prompts, params, loras, receipts = [], [], [], []
        for number, asked in enumerate(json.loads(line)):
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
            del number
        outputs = llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
        found = []
        for output, receipt in zip(outputs, receipts, strict=True):
            (answer,) = llm.collective_rpc("trimtab_receipt", args=(receipt,))
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
        say({"requests": found, "preemptions": preempted})


if __name__ == "__main__":
    main()
