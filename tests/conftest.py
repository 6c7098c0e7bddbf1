"""What all tests share: a folder of their own for everything Trimtab writes, and one real vLLM server."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def trimtab_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`TRIMTAB_HOME` for this session, so that no test sees or touches the user's own."""
    folder = tmp_path_factory.mktemp("home")
    before = {name: os.environ.get(name) for name in ("TRIMTAB_HOME", "TRIMTAB_API_KEY", "OPENAI_API_KEY")}
    os.environ["TRIMTAB_HOME"] = str(folder)
    for name in ("TRIMTAB_API_KEY", "OPENAI_API_KEY"):
        os.environ.pop(name, None)
    yield folder
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@dataclass(frozen=True)
class SharedServer:
    """The session's server. `engine` is the engine that started it; other engines may connect to `url`.

    Attributes:
        url: such as http://127.0.0.1:41234, without `/v1`.
        model: the base model's id.
        model_dir: the folder it was loaded from.
        roots: the profile store's folders, the writable one first.
        engine: a `trimtab.models.engines.vllm.VllmEngine`; good in any event loop.
    """

    url: str
    model: str
    model_dir: Path
    roots: tuple[Path, ...]
    engine: Any


@pytest.fixture(scope="session")
def server(trimtab_home: Path, request: pytest.FixtureRequest) -> Iterator[SharedServer]:
    """ONE vLLM server on the embedded small model with the shipped profiles; `trimtab run` in a test finds it too.

    Do not stop it, and unload only what the test loaded itself.
    """
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: pip install trimtab[cpu]")
    from trimtab.models.card import embedded_models, find_model
    from trimtab.models.embedded import SMALL, default_store
    from trimtab.models.engines.vllm import VllmEngine

    # A checkout in which the small model is just being trained anew still has all its tests, on a random model.
    here = SMALL in embedded_models()
    card, store = find_model(SMALL if here else request.getfixturevalue("tiny_model")), default_store()
    engine = VllmEngine(card, store, share=True, reuse=False, progress=lambda text: print(f"server: {text}"))
    # Work in a thread: a fixture may be asked for while the test's own event loop is already set up.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, engine.open()).result()
        yield SharedServer(engine.url, card.name, card.path, tuple(store.roots), engine)
        pool.submit(asyncio.run, engine.aclose()).result()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Qwen3, 3 layers of width 64, with the embedded models' chat template and tokenizer."""
    import torch
    from tokenizers import Tokenizer
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trimtab.models.embedded.template import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    train_tokenizer(["The quick brown fox asks for 12.5 miles in kilometres, please; add milk to my list."] * 4, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        initializer_range=0.2,  # wide enough that greedy choices are clear ones
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    return folder
