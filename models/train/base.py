"""Training the embedded base models from scratch, and growing the large stand-in out of the small one."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...errors import BadInput
from ...home import file_sha256, write_atomic
from ..card import weights_sha256
from ..embedded import random_tools, words
from ..embedded.template import SPECIAL, train_tokenizer
from .again import in_order
from .ahead import made_by_processes
from .data import Encoder, Rows, data_hash, pack, to_rows
from .held import losses_on, of_base
from .initial import copying_heads
from .loop import Point, device_name, fit, of_steps
from .recipe import Recipe
from .variants import Variants

if TYPE_CHECKING:
    from ..embedded.corpus import World

CHUNK = 25
"""Steps whose documents share one seed; resuming regenerates at most one chunk."""
LARGE_BATCH, LARGE_CHUNK = 32, 8
"""Rows a step from which a chunk is this many steps: it is made whole before any of it is learned."""
SAMPLE = 200
"""Documents of a part of the corpus that tell it from another."""
COPY_FIRST = 4
"""Chunks at the start with much pure copying, which sharpens the heads that copy."""


def make_tokenizer(directory: Path, documents: int = 4000, seed: int = 7) -> None:
    """Train the tokenizer on documents of the corpus and on everyday words, and write it into `directory`."""
    from ..embedded.corpus import base_documents, open_world

    rng = random.Random(seed)
    texts = [" ".join(words.everyday(rng) for _ in range(60)) for _ in range(1000)]
    with open_world() as world:
        for document in itertools.islice(base_documents(seed, world), documents):
            texts += [str(m["content"]) for m in document["messages"] if m["content"]]
            for tool in document["tools"]:
                function = tool["function"]
                texts += [function["name"], function["description"], " ".join(function["parameters"]["properties"])]
    train_tokenizer(texts, directory)


def chunk_steps(recipe: Recipe) -> int:
    """Steps a chunk."""
    return CHUNK if recipe.batch < LARGE_BATCH else LARGE_CHUNK


def chunk_of(
    recipe: Recipe, tokenizer: Any, documents: Callable[[int], Iterable[dict[str, Any]]]
) -> Callable[[int], Iterator[Rows]]:
    """The number of a chunk -> its batches, one a step."""
    encoder = Encoder(tokenizer)

    def made(chunk: int) -> Iterator[Rows]:
        rows = pack((encoder(document) for document in documents(chunk)), recipe.length)
        for _ in range(chunk_steps(recipe)):
            yield to_rows(list(itertools.islice(rows, recipe.batch)), recipe.length)

    return made


def chunked(
    recipe: Recipe, tokenizer: Any, documents: Callable[[int], Iterable[dict[str, Any]]]
) -> Callable[[int], Iterator[Rows]]:
    """Batches from an endless corpus.

    Args:
        documents: the number of a chunk -> its documents, endless and always the same for the same number.
    """
    made = chunk_of(recipe, tokenizer, documents)

    def batches(start: int) -> Iterator[Rows]:
        return in_order(
            lambda first: (made(chunk) for chunk in itertools.count(first)),
            chunk_steps(recipe),
            start,
            repeat=recipe.repeat,
            seed=recipe.seed,
        )

    return batches


def corpus(recipe: Recipe, world: World, *, fresh: bool = True) -> Callable[[int], Iterator[dict[str, Any]]]:
    """The base's corpus by the number of a chunk: made-up tools first, then all families beside them.

    Args:
        fresh: whether the model starts from scratch, and needs much pure copying at first.
    """
    from ..embedded.corpus import base_documents

    def documents(chunk: int) -> Iterator[dict[str, Any]]:
        seed = recipe.seed * 1_000_003 + chunk
        if chunk * chunk_steps(recipe) * recipe.repeat < recipe.made_up:
            return random_tools.documents(seed, copy_share=0.4 if fresh and chunk < COPY_FIRST else 0.04)
        return base_documents(seed, world, made_up=recipe.made_up_share)

    return documents


def corpus_batches(
    recipe: Recipe, tokenizer_home: Path, world: World, *, fresh: bool, processes: int
) -> Callable[[int], Iterator[Rows]]:
    """The base's corpus as batches, made by so many processes, or with 0 by this one beside the training."""
    from transformers import AutoTokenizer

    if processes:
        return made_by_processes(recipe, tokenizer_home, fresh=fresh, processes=processes)
    return chunked(recipe, AutoTokenizer.from_pretrained(tokenizer_home), corpus(recipe, world, fresh=fresh))


def new_model(recipe: Recipe, vocabulary: int, variants: Variants | None = None) -> Any:
    """A Qwen3 model with random weights from the recipe's seed, and heads that copy from the start.

    Args:
        variants: the embedding's parameters, set along with it.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config)
    copying_heads(model, recipe.seed, variants)
    return model


def shape_of(config: Any) -> dict[str, int]:
    """The fields of a recipe that say how large a model is, of a trained one."""
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
    }


def grown_model(small: Path, recipe: Recipe) -> Any:
    """A deeper model that starts out computing exactly what `small` computes.

    Block expansion (LLaMA Pro, arXiv 2401.02415, section 3): new blocks are copies of their neighbours whose two output
    projections are zero, so each adds nothing until it is trained.
    """
    from transformers import AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    depth = source.config.num_hidden_layers
    shape = {**shape_of(source.config), "layers": recipe.layers}
    grown = new_model(recipe.model_copy(update=shape), source.config.vocab_size)
    state = {k: v for k, v in source.state_dict().items() if ".layers." not in k}
    taken: set[int] = set()
    for layer in range(recipe.layers):
        origin = layer * depth // recipe.layers
        for name, tensor in source.model.layers[origin].state_dict().items():
            fresh = origin in taken and name.endswith(("o_proj.weight", "down_proj.weight"))
            state[f"model.layers.{layer}.{name}"] = torch.zeros_like(tensor) if fresh else tensor.clone()
        taken.add(origin)
    grown.load_state_dict(state)
    return grown


def train_base(
    name: str,
    recipe: Recipe,
    directory: Path,
    work: Path,
    *,
    grow_from: Path | None = None,
    go_on_from: Path | None = None,
    tokenizer_from: Path | None = None,
    minutes: float | None = None,
    device: str = "cpu",
    processes: int = 0,
    report: Callable[[list[Point], float], None] | None = None,
) -> dict[str, Any]:
    """Train a base model and write it, with tokenizer and card, into `directory`.

    Args:
        work: folder for checkpoints; an interrupted run goes on from there.
        grow_from: a smaller model to start from by block expansion; its tokenizer is kept.
        go_on_from: a trained embedded model whose training goes on for one more cycle; its tokenizer is kept, and
            its card becomes `before` in the new one.
        tokenizer_from: folder of a model whose tokenizer is taken; by default one is trained.
        minutes: how long to train, in place of the recipe's number of steps (`loop.fit`).
        device: `cpu`, `cuda` or `cuda:0`.
        processes: how many make the data; 0: this one does, beside the training.

    Returns:
        The model's card.

    Raises:
        BadInput: `go_on_from` has no card, so the new card could not say where the model comes from; or the checkpoint
            in `work` is of another start, another tokenizer or other data.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..embedded.corpus import open_world

    tokenizer_home = grow_from or go_on_from or tokenizer_from or work / "tokenizer"
    if not (tokenizer_home / "tokenizer.json").exists():
        make_tokenizer(tokenizer_home)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_home)
    before = None if go_on_from is None else _card_of(go_on_from)
    variants = None
    if grow_from is not None:
        model = grown_model(grow_from, recipe)
    elif go_on_from is not None:
        model = AutoModelForCausalLM.from_pretrained(go_on_from, dtype=torch.float32)
        variants = Variants(tokenizer, model.config.hidden_size)
        variants.read(model.get_input_embeddings().weight)
    else:
        variants = Variants(tokenizer, recipe.hidden)
        model = new_model(recipe, len(tokenizer), variants)
    recipe = recipe.model_copy(update=shape_of(model.config))
    model.to(device)
    if variants is not None:
        variants.to(device)
    fresh = go_on_from is None and grow_from is None
    start = grow_from or go_on_from
    start_sha256 = None if start is None else weights_sha256(start)
    tokenizer_sha256 = file_sha256(tokenizer_home / "tokenizer.json")
    with open_world() as world:
        documents = corpus(recipe, world, fresh=fresh)
        curve = fit(
            model,
            recipe,
            corpus_batches(recipe, tokenizer_home, world, fresh=fresh, processes=processes),
            minutes=minutes,
            variants=variants,
            checkpoint=work / "checkpoint",
            of=f"start {start_sha256}, tokenizer {tokenizer_sha256}, data {_corpus_sha256(recipe, documents)}",
            report=report,
        )
        recipe = of_steps(recipe, curve[-1].step)
        sample = list(itertools.islice(documents(recipe.steps // (chunk_steps(recipe) * recipe.repeat)), 500))
        held = of_base(world)
    losses = dict(zip(("held_loss", "held_call_loss"), losses_on(tokenizer, held, recipe.length)(model), strict=True))
    model.to("cpu")
    write_model(model, tokenizer_home, directory)
    card = {
        "name": name,
        "kind": "base" if grow_from is None else f"base, grown from {grow_from.name} by block expansion",
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": file_sha256(directory / "model.safetensors"),
        "recipe": recipe.model_dump(mode="json"),
        "tokenizer_sha256": file_sha256(directory / "tokenizer.json"),
        "data": {"generator": "trimtab.models.embedded.corpus.base_documents", "sample_sha256": data_hash(sample)},
        "tokens": curve[-1].tokens,
        "device": device_name(device),
        "seconds": round(curve[-1].seconds),
        "waited": round(curve[-1].waited),
        "final_loss": round(sum(p.loss for p in curve[-5:]) / len(curve[-5:]), 4),
        "scores": {
            "held_out": held.source,
            **{name: None if loss is None else round(loss, 5) for name, loss in losses.items()},
        },
    }
    if before is not None:
        card["before"] = before
    write_atomic(directory / "card.json", json.dumps(card, indent=2) + "\n")
    return card


def _corpus_sha256(recipe: Recipe, documents: Callable[[int], Iterable[dict[str, Any]]]) -> str:
    """What tells the corpus from another: documents of its two parts, and all phrasings, most of which these lack."""
    from ..embedded.families import phrasings

    families = recipe.made_up // (chunk_steps(recipe) * recipe.repeat) + 1
    samples = (itertools.islice(documents(chunk), SAMPLE) for chunk in (0, families))
    return data_hash(itertools.chain(*samples, [phrasings("train")]))


def _card_of(directory: Path) -> dict[str, Any]:
    """The card beside a trained model."""
    try:
        card: dict[str, Any] = json.loads((directory / "card.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(
            f"cannot be read: {error}",
            where=str(directory / "card.json"),
            fix="Go on from a model that Trimtab trained",
        ) from error
    return card


def write_model(model: Any, tokenizer_home: Path, directory: Path) -> None:
    """Write weights (bfloat16: exact in float32, half the size) and tokenizer as transformers and vLLM load them."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    fresh = directory / "model.safetensors.new"
    save_file(tensors, fresh, {"format": "pt"})
    fresh.replace(directory / "model.safetensors")
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "use_cache": True, "dtype": "bfloat16"}
    config["_name_or_path"] = ""  # where it was trained from is a path of that machine
    write_atomic(directory / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {
        "eos_token_id": model.config.eos_token_id,
        "pad_token_id": model.config.pad_token_id,
        "do_sample": False,
    }
    write_atomic(directory / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if tokenizer_home != directory:
            shutil.copyfile(tokenizer_home / file, directory / file)
