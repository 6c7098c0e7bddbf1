"""Tiny random models and adapters, made in-process: nothing is downloaded and nothing is faked."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trimtab.steering.document import Document
from trimtab.steering.files import model_sha256
from trimtab.steering.hooks import adapted, steered
from trimtab.steering.profile import Profile, save_profile
from trimtab.steering.scope import prompt_end_reach
from trimtab.steering.vllm.launch import server_environment

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
SaveProfiles = Callable[[Path, Path, dict[str, dict[str, Any]], dict[str, torch.Tensor]], list[Profile]]


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
    """Writes a random adapter with PEFT itself, of the tests' own model or of one in a folder; returns its folder."""

    def make(folder: Path, seed: int, *, size: float = 0.3, base: Path | None = None, **config: object) -> Path:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        settings.update(config)
        model = make_model() if base is None else AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = get_peft_model(model, LoraConfig(**settings))
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


class Request(NamedTuple):
    """What is asked of an engine: numbers of a profile and an adapter, a prompt, and how many tokens."""

    profile: int | None
    adapter: int | None
    prompt: list[int]
    tokens: int


@dataclass
class Engine:
    """A running child, and what its answers are held to."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    profiles: list[Profile]
    adapters: list[Path]
    hf: Any
    tokenizer: Any
    asked: int = 0
    preemptions: int = 0
    cached: int = 0

    def ask(self, requests: list[dict[str, Any]], load: list[Profile]) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        profiles = [(str(profile.directory), profile.sha256) for profile in load]
        self.process.stdin.write(json.dumps({"requests": requests, "load": profiles}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.preemptions = answer["preemptions"]
        assert answer["beside"] == len(load) * self.facts["ranks"], "a load waited for the requests"
        self.profiles += load
        return list(answer["requests"])

    @torch.no_grad()
    def logprobs(self, prompt: list[int], ids: list[int], profile: Profile | None, adapter: Path | None) -> list[float]:
        """What the reference says of an answer, token by token: natural logs of probabilities."""
        with ExitStack() as stack:
            model = stack.enter_context(adapted(self.hf, adapter))
            if profile is not None:
                stack.enter_context(steered(model, profile, len(prompt), tokenizer=self.tokenizer))
            logits = model(torch.tensor([prompt + ids])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return [float(row[i]) for row, i in zip(rows, ids, strict=True)]

    def hold(self, batch: list[Request], load: Sequence[Profile] = ()) -> list[dict[str, Any]]:
        """Ask for a batch at once, and hold every answer to the reference.

        Args:
            load: profiles to load while the batch runs, for later ones.

        Returns:
            What the receipts say was applied, for each.
        """
        asked, receipts = [], []
        for request in batch:
            profile = None if request.profile is None else self.profiles[request.profile]
            adapter = None if request.adapter is None else self.adapters[request.adapter]
            self.asked += 1
            reach = 0
            if profile is not None:
                held = profile.gate is not None and profile.gate.hold
                reach = prompt_end_reach((part.scope for part in profile.interventions), held=held)
            asked.append(
                {
                    "receipt": f"r{self.asked}",
                    "prompt": request.prompt,
                    "tokens": request.tokens,
                    "profile": None if profile is None else profile.sha256,
                    "scoped": reach,
                    "adapter": None if adapter is None else [request.adapter, str(adapter)],
                }
            )
        for request, sent, answer in zip(batch, asked, self.ask(asked, list(load)), strict=True):
            profile = None if request.profile is None else self.profiles[request.profile]
            adapter = None if request.adapter is None else self.adapters[request.adapter]
            assert len(answer["ids"]) == request.tokens
            wanted = self.logprobs(request.prompt, answer["ids"], profile, adapter)
            assert answer["logprobs"] == pytest.approx(wanted, abs=2e-3), sent
            (applied,) = answer["applied"]
            assert applied["profile"] == sent["profile"]
            assert applied["adapter"] == (None if adapter is None else f"a{request.adapter}")
            assert applied["seen"] == len(request.prompt) + request.tokens - 1
            receipts.append(applied)
            self.cached += answer["cached"]
        return receipts


@contextmanager
def running_engine(
    base: Path,
    folder: Path,
    profiles: list[Profile],
    adapters: list[Path],
    *,
    terms: int = 0,
    gates: bool = False,
    v2: bool = False,
    **options: Any,
) -> Iterator[Engine]:
    """A vLLM of one's own choice, with these profiles live. Its log is `engine.log` in the folder.

    Args:
        v2: whether with vLLM's V2 model runner, its GPU kernels interpreted and its steps scheduled ahead.
    """
    environment = {
        **os.environ,
        **server_environment([], [], terms, gates=gates),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        **({"VLLM_USE_V2_MODEL_RUNNER": "1"} if v2 else {}),
    }
    common = {"model": str(base), "max_model_len": 256, "block_size": 32, "max_num_seqs": 8}
    common["distributed_executor_backend"] = "mp" if options.get("tensor_parallel_size", 1) > 1 else "uni"
    with (folder / "engine.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engine_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            live = [(str(profile.directory), profile.sha256) for profile in profiles]
            process.stdin.write(json.dumps({"options": {**common, **options}, "profiles": live}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, (folder / "engine.log").read_text()[-3000:]
            hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
            yield Engine(process, json.loads(line), list(profiles), adapters, hf, AutoTokenizer.from_pretrained(base))
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def save_profiles() -> SaveProfiles:
    """Saves profiles of a base, each of the fields that its name has, all with the tensors of one `v.safetensors`."""

    def save(
        folder: Path, base: Path, made: dict[str, dict[str, Any]], tensors: dict[str, torch.Tensor]
    ) -> list[Profile]:
        common: dict[str, Any] = {"format": 1, "base": {"model": "tiny", "sha256": model_sha256(base)}}
        return [
            save_profile(
                folder / f"{name}@1",
                Document.model_validate({"name": name, **common, **fields}),
                tensors={"v.safetensors": tensors},
            )
            for name, fields in made.items()
        ]

    return save


@pytest.fixture(scope="session")
def run_engine() -> Callable[..., AbstractContextManager[Engine]]:
    """Runs `running_engine`."""
    return running_engine


@pytest.fixture(scope="session")
def ask_for() -> type[Request]:
    """Makes a request."""
    return Request


FillStore = Callable[[Path, Path, Iterable[tuple[str, str]]], None]


@pytest.fixture(scope="session")
def fill_store() -> FillStore:
    """Makes many profiles of one, fast: the same tensors under other names and versions."""

    def fill(root: Path, source: Path, ids: Iterable[tuple[str, str]]) -> None:
        text = (source / "profile.yaml").read_text()
        for name, version in ids:
            folder = root / f"{name}@{version}"
            folder.mkdir(parents=True)
            named = re.sub(r"(?m)^name: .*$", f"name: {name}", text)
            (folder / "profile.yaml").write_text(re.sub(r"(?m)^version: .*$", f"version: '{version}'", named))
            (folder / "v.safetensors").hardlink_to(source / "v.safetensors")

    return fill


_opened: list[str] | None = None
_hooked: list[bool] = []


def _note_open(event: str, details: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(details[0], (str, os.PathLike)):
        _opened.append(str(details[0]))


@pytest.fixture
def opened_below() -> Iterator[Callable[[Path], list[str]]]:
    """What Python opened below a folder since the last call: the names of the folders right below it, sorted."""
    global _opened
    if not _hooked:  # such a hook cannot be taken off again
        sys.addaudithook(_note_open)
        _hooked.append(True)
    _opened = []

    def below(root: Path) -> list[str]:
        assert _opened is not None
        paths = [Path(path) for path in _opened]
        _opened.clear()
        return sorted({path.relative_to(root).parts[0] for path in paths if path.is_relative_to(root)})

    yield below
    _opened = None
