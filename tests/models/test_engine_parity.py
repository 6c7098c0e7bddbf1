"""The vLLM server and the in-process engine are one engine: same prompt tokens, same greedy answers, same receipts.

Held over the base model, every profile that ships for it, and random profiles loaded while the server runs: a LoRA, a
weight delta, vectors for the prompt, for generated tokens and for all, and everything at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from trimtab.home import file_sha256
from trimtab.models.card import find_model
from trimtab.models.chat import ChatRequest, Message, Reply, Sampling, ToolCall, user
from trimtab.models.engines.hermes import OPEN, speakable
from trimtab.models.engines.local import LocalEngine
from trimtab.steering.profile import Document, save_profile
from trimtab.steering.store import ProfileStore

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]  # a hundred answers twice, on two cores

RANDOM = ("random-lora", "random-delta", "random-prompt", "random-generated", "random-all", "random-everything")


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {k: {"type": v} for k, v in properties.items()},
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


TOOLS = (
    tool("convert_units", "Convert a value between units", value="number", from_unit="string", to_unit="string"),
    tool("days_between", "Count the days between two dates", start="string", end="string"),
    tool("add_todo", "Add an item to the to-do list", item="string"),
)
CALL = ToolCall("c1", "convert_units", '{"value": 26.2, "from_unit": "miles", "to_unit": "kilometres"}')
CONVERSATIONS = (
    (user("convert 26.2 miles to kilometres"),),
    (user("How many days are there between 3 May and 19 June?"),),
    (user("add caf\u00e9 cr\u00e8me \u2615 to my list"),),
    (
        user("convert 26.2 miles to kilometres"),
        Message("assistant", None, (CALL,)),
        Message("tool", '{"value": 42.1648, "unit": "kilometres"}', tool_call_id="c1"),
    ),
    (Message("system", "Answer briefly."), user("hello"), Message("assistant", "Hi."), user("and again?")),
)


def make_lora(root: Path, card: Any, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(card.path, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(root / str(seed))
    return root / str(seed)


@pytest.fixture(scope="module")
def pair(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, LocalEngine]]:
    """Both engines, with the random profiles live on the server."""
    card, store = find_model(server.model_dir), ProfileStore(*server.roots)
    folder = tmp_path_factory.mktemp("loras")
    one, two = make_lora(folder, card, 1), make_lora(folder, card, 2)
    generator = torch.Generator().manual_seed(3)
    unit = torch.nn.functional.normalize(torch.randn(card.num_layers, card.hidden_size, generator=generator), dim=-1)
    tensors = {"vectors.safetensors": {f"layer_{layer}": unit[layer] for layer in range(card.num_layers)}}

    def vector(layer: int, tokens: str) -> dict[str, Any]:
        return {
            "layer": layer,
            "file": "vectors.safetensors",
            "tensor": f"layer_{layer}",
            "strength": 30.0,
            "tokens": tokens,
        }

    adapter = {"adapter": {"path": "one", "sha256": file_sha256(one / "adapter_model.safetensors")}}
    delta = {"weight_deltas": [{"plus": "one", "minus": "two", "strength": 2.0}]}
    parts: dict[str, dict[str, Any]] = {
        "random-lora": adapter,
        "random-delta": delta,
        "random-prompt": {"interventions": [vector(0, "prompt")]},
        "random-generated": {"interventions": [vector(1, "generated"), vector(2, "generated")]},
        "random-all": {"interventions": [vector(1, "all"), vector(card.num_layers - 1, "all")]},
        "random-everything": {**adapter, **delta, "interventions": [vector(1, "all"), vector(1, "prompt")]},
    }
    for name, fields in parts.items():
        document = Document.model_validate(
            {"format": 1, "name": name, "base": {"model": card.name, "sha256": card.sha256}, **fields}
        )
        needed = {"one": one, "two": two} if "weight_deltas" in fields else {"one": one} if "adapter" in fields else {}
        save_profile(
            server.roots[0] / f"{name}@1",
            document,
            tensors=tensors if "interventions" in fields else None,
            adapters=needed,
        )
        httpx.post(f"{server.url}/v1/trimtab/profiles/load", json={"name": name}, timeout=60).raise_for_status()
    yield server.engine, LocalEngine(card, store)
    for name in parts:
        httpx.post(f"{server.url}/v1/trimtab/profiles/unload", json={"name": name}, timeout=60).raise_for_status()
        store.remove(name)


@pytest.fixture(scope="module")
def names(pair: Any) -> list[str | None]:
    """The base model and every live profile, shipped or random."""
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(asyncio.run, pair[0].profiles()).result()
    assert set(RANDOM) <= set(live)
    return [None, *live]


def same(left: Reply, right: Reply) -> None:
    """Equal in all but the ids of calls, the time, the cache and the last digits of probabilities."""

    def told(reply: Reply) -> Any:
        calls = tuple(replace(c, id="") for c in reply.message.tool_calls)
        receipt = reply.receipt and replace(reply.receipt, engine="")
        return replace(reply.message, tool_calls=calls), reply.finish_reason, receipt

    assert told(left) == told(right)
    assert (left.usage.prompt_tokens, left.usage.completion_tokens) == (
        right.usage.prompt_tokens,
        right.usage.completion_tokens,
    )
    assert left.logprobs == pytest.approx(right.logprobs, abs=2e-3)


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["plain", "tools"])
async def test_greedy_answers_are_equal(pair: Any, names: list[str | None], tools: Any) -> None:
    vllm, local = pair
    sampling = Sampling(max_tokens=24, logprobs=True)
    requests = [ChatRequest(turns, tools, name, sampling) for name in names for turns in CONVERSATIONS]
    # All at once: the server mixes profiles in its batches.
    for request, left in zip(requests, await asyncio.gather(*map(vllm.chat, requests)), strict=True):
        same(left, await local.chat(request))


async def test_a_stream_ends_with_the_same_reply(pair: Any, names: list[str | None]) -> None:
    vllm, local = pair
    for name in names:
        request = ChatRequest(CONVERSATIONS[0], TOOLS, name, Sampling(max_tokens=24, logprobs=True))
        left = [piece async for piece in vllm.stream(request)]
        right = [piece async for piece in local.stream(request)]
        assert left[-1].reply is not None
        assert right[-1].reply is not None
        streamed, whole = left[-1].reply, right[-1].reply
        text = whole.message.content or ""
        assert "".join(p.text for p in right) == text
        # vLLM's streaming parser never gives out an end that may become `<tool_call>`, such as a last "<" ...
        said = text[: speakable(text)]
        assert "".join(p.text for p in left) == said
        expected = replace(whole, message=replace(whole.message, content=said or None))
        if OPEN in text:  # ... and of a call that never becomes whole it gives out what came
            calls = streamed.message.tool_calls
            assert not calls or not is_json(calls[-1].arguments)
            expected = replace(expected, message=streamed.message, finish_reason=streamed.finish_reason)
        same(streamed, expected)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def test_the_random_profiles_do_something(pair: Any) -> None:
    """Otherwise the parity above would prove nothing."""
    vllm, _ = pair
    sampling = Sampling(max_tokens=8, logprobs=True)
    base = await vllm.chat(ChatRequest(CONVERSATIONS[-1], profile=None, sampling=sampling))
    for name in RANDOM:
        reply = await vllm.chat(ChatRequest(CONVERSATIONS[-1], profile=name, sampling=sampling))
        assert reply.logprobs != pytest.approx(base.logprobs, abs=2e-3), name
