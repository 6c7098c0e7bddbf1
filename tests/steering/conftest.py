"""Tiny random models and adapters, made in-process: nothing is downloaded and nothing is faked."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HIDDEN, LAYERS, VOCAB = 32, 3, 259
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.items() | list }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

MakeAdapter = Callable[..., Path]


def make_model(kind: str = "qwen3", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = (
        Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))
        if kind == "qwen3"
        else LlamaForCausalLM(LlamaConfig(**SIZES))
    )
    for parameter in model.parameters():  # the stock initial weights are so small that nothing would show
        parameter.data.mul_(4.0)
    return model.eval()


@pytest.fixture(params=["qwen3", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's folder: weights, a byte tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_adapter() -> MakeAdapter:
    """Writes a random adapter with PEFT itself; returns its folder."""

    def make(folder: Path, seed: int, *, size: float = 0.3, **config: object) -> Path:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        settings.update(config)
        wrapped = get_peft_model(make_model(), LoraConfig(**settings))
        torch.manual_seed(seed)
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=size)
        wrapped.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path: Path, write_adapter: MakeAdapter) -> MakeAdapter:
    """The same, by name below the test's folder."""
    return lambda name, seed, **config: write_adapter(tmp_path / name, seed, **config)


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, torch.Tensor]], None]], None]:
    return edit_tensors


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 256, (1, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def new_model() -> Callable[..., PreTrainedModel]:
    return make_model
