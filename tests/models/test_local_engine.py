"""The in-process engine on a random model: transformers' own `generate` and merged weights are the references."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trimtab.errors import BadInput, EngineRefused, EngineUnavailable, NotFound
from trimtab.home import file_sha256
from trimtab.models.card import ModelCard, find_model
from trimtab.models.chat import ChatRequest, Message, Sampling, ToolCall, user
from trimtab.models.engine import Engine
from trimtab.models.engines import open_engine
from trimtab.models.engines.local import LocalEngine
from trimtab.steering.document import FILE, dump_document
from trimtab.steering.profile import Document, save_profile
from trimtab.steering.store import ProfileStore
from trimtab.steering.weights import write_adapter

TOOLS = (
    {
        "type": "function",
        "function": {"name": "add_todo", "parameters": {"type": "object", "properties": {"item": {"type": "string"}}}},
    },
)
LONG = Sampling(max_tokens=24, logprobs=True)


@pytest.fixture(scope="module")
def card(tiny_model: Path) -> ModelCard:
    return find_model(tiny_model)


@pytest.fixture(scope="module")
def store(card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> ProfileStore:
    """Profiles `weights` (a random LoRA), `vectors` (an intervention, own decoding) and `foreign` (another base)."""
    root = tmp_path_factory.mktemp("profiles")
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(1)
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(card.path, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    lora.save_pretrained(folder)

    def document(name: str, **more: Any) -> Document:
        base = {"model": card.name, "sha256": more.pop("base", card.sha256)}
        return Document.model_validate({"format": 1, "name": name, "base": base, **more})

    adapter = {"path": "adapter", "sha256": file_sha256(folder / "adapter_model.safetensors")}
    save_profile(root / "weights", document("weights", adapter=adapter), adapters={"adapter": folder})
    vectors = {"v.safetensors": {"v": torch.randn(card.hidden_size)}}
    entry = {"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 2.0, "tokens": "generated"}
    decoding = {"max_tokens": 3}
    save_profile(root / "vectors", document("vectors", interventions=[entry], decoding=decoding), tensors=vectors)
    save_profile(root / "foreign", document("foreign", interventions=[entry], base="0" * 64), tensors=vectors)
    return ProfileStore(root)


@pytest.fixture(scope="module")
def engine(card: ModelCard, store: ProfileStore) -> LocalEngine:
    return LocalEngine(card, store)


def reference(card: ModelCard, request: ChatRequest, adapter: Path | None = None) -> str:
    """What transformers' own generate says, the adapter merged into the weights."""
    tokenizer = AutoTokenizer.from_pretrained(card.path)
    model = AutoModelForCausalLM.from_pretrained(card.path, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    ids = tokenizer.apply_chat_template(
        [m.to_openai() for m in request.messages],
        tools=list(request.tools) or None,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**ids, do_sample=False, max_new_tokens=24)
    text = str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return text.rstrip("\ufffd")  # half a character at the end is not text yet


@pytest.mark.parametrize("tools", [(), TOOLS])
async def test_greedy_tokens_are_those_of_transformers(engine: LocalEngine, card: ModelCard, tools: Any) -> None:
    request = ChatRequest((user("please add milk"),), tools, sampling=LONG)
    reply = await engine.chat(request)
    assert reply.message.content == reference(card, request)
    assert reply.usage.completion_tokens == len(reply.logprobs or ())
    assert all(x < 0 for x in reply.logprobs or ())


async def test_an_adapter_equals_merged_weights_and_leaves_the_base_alone(
    engine: LocalEngine, card: ModelCard, store: ProfileStore
) -> None:
    base = ChatRequest((user("please add milk"),), sampling=LONG)
    before = await engine.chat(base)
    steered = await engine.chat(ChatRequest(base.messages, profile="weights", sampling=LONG))
    adapter = store.get("weights").adapter
    assert steered.message.content == reference(card, base, adapter) != before.message.content
    assert (await engine.chat(base)).logprobs == before.logprobs
    assert steered.receipt is not None
    assert (steered.receipt.profile, steered.receipt.tokens_steered) == ("weights@1", 0)
    assert steered.receipt.adapter_sha256 is not None
    assert before.receipt is not None
    assert before.receipt.profile is None


async def test_an_adapter_that_does_not_fit_is_refused_and_touches_nobody(
    card: ModelCard, store: ProfileStore, tmp_path: Path
) -> None:
    """Keys and values of another number of heads; then a module that the model lacks, beside one that it has."""
    torch.manual_seed(2)
    for name, wrong in (("heads", "model.layers.1.self_attn.v_proj"), ("module", "model.layers.1.self_attn.q_prj")):
        parts = {"model.layers.0.self_attn.q_proj": 128, wrong: 128}
        folder = tmp_path / "adapters" / name
        modules = {module: (torch.randn(4, 64), torch.randn(out, 4)) for module, out in parts.items()}
        write_adapter(folder, modules, card.name)
        adapter = {"path": "adapter", "sha256": file_sha256(folder / "adapter_model.safetensors")}
        base = {"model": card.name, "sha256": card.sha256}
        document = Document.model_validate({"format": 1, "name": name, "base": base, "adapter": adapter})
        save_profile(tmp_path / "store" / name, document, adapters={"adapter": folder})
    engine = LocalEngine(card, ProfileStore(tmp_path / "store", store.roots[0]))

    async def said(profile: str | None) -> tuple[float, ...] | None:
        return (await engine.chat(ChatRequest((user("milk"),), profile=profile, sampling=LONG))).logprobs

    plain = await said(None)
    for others in range(2):  # alone on the plain model, then beside an adapter that is served
        for name, says in (("heads", r"v_proj is \[64, 64\].*\[128, 64\]"), ("module", r"q_prj, which the model")):
            with pytest.raises(BadInput, match=rf"(?s)profile {name}@1: adapter.*{says}"):
                await said(name)
            assert await said(None) == plain
        if not others:
            changed = await said("weights")
    assert await said("weights") == changed != plain


async def test_vectors_act_from_the_second_token_on_and_bring_their_decoding(engine: LocalEngine) -> None:
    ask = (user("please add milk"),)
    base = await engine.chat(ChatRequest(ask, sampling=LONG))
    reply = await engine.chat(ChatRequest(ask, profile="vectors", sampling=LONG))
    assert base.logprobs is not None
    assert reply.logprobs is not None
    assert reply.logprobs[0] == base.logprobs[0]  # the prompt is not steered
    assert reply.logprobs[1] != base.logprobs[1]
    assert reply.receipt is not None
    assert (reply.receipt.layers, reply.receipt.tokens_steered) == ((1,), 23)
    assert (await engine.chat(ChatRequest(ask, profile="vectors"))).usage.completion_tokens == 3


async def test_seeds_repeat_and_differ(engine: LocalEngine) -> None:
    def ask(seed: int | None) -> Any:
        return engine.chat(ChatRequest((user("hi"),), sampling=Sampling(temperature=1.5, max_tokens=16, seed=seed)))

    same = {(await ask(7)).message.content for _ in range(3)}
    assert len(same) == 1
    assert len({(await ask(s)).message.content for s in (7, 8, 9, None, None)}) == 5


async def test_a_tiny_nucleus_is_greedy(engine: LocalEngine) -> None:
    greedy = await engine.chat(ChatRequest((user("hi"),), sampling=Sampling(max_tokens=16)))
    narrow = Sampling(temperature=2.0, top_p=1e-6, max_tokens=16)
    assert (await engine.chat(ChatRequest((user("hi"),), sampling=narrow))).message == greedy.message


async def test_a_stream_says_what_a_chat_says(engine: LocalEngine) -> None:
    for tools in ((), TOOLS):
        request = ChatRequest((user("please add milk"),), tools, sampling=LONG)
        whole = await engine.chat(request)
        pieces = [piece async for piece in engine.stream(request)]
        assert pieces[-1].reply is not None
        assert pieces[-1].reply.message == whole.message
        assert "".join(p.text for p in pieces) == whole.message.content
        assert len(pieces) > 5


async def test_cancelling_frees_the_engine(engine: LocalEngine) -> None:
    endless = Sampling(temperature=1.0, max_tokens=10**6, seed=1)
    waiting = [asyncio.create_task(engine.chat(ChatRequest((user("hi"),), sampling=endless))) for _ in range(2)]
    await asyncio.sleep(0.05)
    for task in waiting:
        task.cancel()
    stream = engine.stream(ChatRequest((user("hi"),), sampling=endless))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    began = time.monotonic()
    await engine.chat(ChatRequest((user("hi"),), sampling=Sampling(max_tokens=1)))
    assert time.monotonic() - began < 5
    assert [type(r) for r in await asyncio.gather(*waiting, return_exceptions=True)] == [asyncio.CancelledError] * 2


async def test_requests_at_once_get_their_own_answers(engine: LocalEngine) -> None:
    requests = [ChatRequest((user("milk"),), profile=p, sampling=LONG) for p in (None, "weights", "vectors")] * 2
    alone = [(await engine.chat(r)).logprobs for r in requests]
    assert [r.logprobs for r in await asyncio.gather(*map(engine.chat, requests))] == alone


async def test_what_it_refuses(engine: LocalEngine) -> None:
    with pytest.raises(NotFound, match=r"(?s)nope.*vectors, weights"):
        await engine.chat(ChatRequest((user("x"),), profile="nope"))
    with pytest.raises(BadInput, match="made for base model"):
        await engine.chat(ChatRequest((user("x"),), profile="foreign"))
    with pytest.raises(EngineRefused, match="the model's context is 512"):
        await engine.chat(ChatRequest((user("x " * 600),)))
    with pytest.raises(EngineRefused, match="chat template refuses"):
        await engine.chat(ChatRequest((user("x"),), ({"type": "function"},)))
    with pytest.raises(EngineRefused, match="cannot constrain"):
        await engine.chat(ChatRequest((user("x"),), TOOLS, constrained=True))
    with pytest.raises(NotFound):
        _ = [piece async for piece in engine.stream(ChatRequest((user("x"),), profile="nope"))]


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(temperature=float("inf")), "temperature"),
        (Sampling(temperature=1.0, top_p=0.0), "top_p"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(seed=2**64), "seed"),
    ],
)
async def test_sampling_that_vllm_refuses_is_refused(engine: LocalEngine, sampling: Sampling, field: str) -> None:
    with pytest.raises(EngineRefused) as caught:
        await engine.chat(ChatRequest((user("x"),), sampling=sampling))
    assert caught.value.where == field


async def test_half_a_surrogate_pair_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(EngineRefused, match="half a surrogate pair") as caught:
        await engine.chat(ChatRequest((user("a \udc80 b"),)))
    assert caught.value.where == "messages"


async def test_a_temperature_next_to_nothing_draws(engine: LocalEngine) -> None:
    answers = []
    for temperature in (0.0, 1e-40, 1e-3):
        sampling = Sampling(temperature=temperature, max_tokens=8, seed=1)
        answers.append((await engine.chat(ChatRequest((user("hi"),), sampling=sampling))).message)
    assert answers[0] == answers[1] == answers[2]  # greedy choices of this model are clear ones


async def test_who_waits_while_the_engine_closes_is_told(card: ModelCard, store: ProfileStore) -> None:
    engine = LocalEngine(card, store)
    asked = ChatRequest((user("hi"),), sampling=Sampling(temperature=1.0, max_tokens=300, seed=1))
    stream = engine.stream(asked)
    await anext(stream)
    waiting = [asyncio.create_task(engine.chat(asked)) for _ in range(2)]
    await asyncio.sleep(0)
    await engine.aclose()
    assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [EngineUnavailable] * 2
    assert [piece async for piece in stream][-1].reply is not None  # who was being answered is
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.chat(asked)


async def test_answers_end_at_the_context(engine: LocalEngine) -> None:
    request = ChatRequest((user("milk " * 200),), sampling=Sampling(max_tokens=10**6, temperature=1.0, seed=0))
    usage = (await engine.chat(request)).usage
    assert (usage.prompt_tokens or 0) + (usage.completion_tokens or 0) <= 512


async def test_a_conversation_with_calls_is_rendered_as_vllm_does(engine: LocalEngine) -> None:
    call = ToolCall("1", "add_todo", '{"item": "caf\u00e9"}')
    messages = (user("a"), Message("assistant", None, (call,)), Message("tool", '{"added": 1}', tool_call_id="1"))
    text = engine._tokenizer.decode(engine.prompt_ids(ChatRequest(messages, TOOLS)))
    assert '<tool_call>\n{"name": "add_todo", "arguments": {"item": "caf\u00e9"}}\n</tool_call>' in text
    broken = Message("assistant", None, (ToolCall("1", "add_todo", '{"item": '),))
    text = engine._tokenizer.decode(engine.prompt_ids(ChatRequest((user("a"), broken), TOOLS)))
    assert '{"name": "add_todo", "arguments": {}}' in text


async def test_open_engine_in_this_process(tiny_model: Path, store: ProfileStore) -> None:
    told: list[str] = []
    async with open_engine("transformers", model=str(tiny_model), store=store, progress=told.append) as opened:
        assert isinstance(opened, Engine)
        assert (opened.name, opened.model) == ("transformers", "tiny")
        assert await opened.profiles() == ["vectors", "weights"]  # not those of another model
        await opened.chat(ChatRequest((user("x"),), sampling=Sampling(max_tokens=1)))
    assert told
    with pytest.raises(EngineUnavailable, match="closed"):
        await opened.chat(ChatRequest((user("x"),)))


def test_a_model_that_does_not_load(tiny_model: Path, store: ProfileStore, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match="does not load"):
        LocalEngine(find_model(copy), store)
    shutil.copy(tiny_model / "model.safetensors", copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="no chat template"):
        LocalEngine(find_model(copy), store)


def test_the_store_is_what_it_says(store: ProfileStore) -> None:
    assert json.dumps(store.get("vectors").decoding.model_dump(exclude_none=True)) == '{"max_tokens": 3}'
    assert (store.get("weights").directory / FILE).read_text() == dump_document(store.get("weights").document)
