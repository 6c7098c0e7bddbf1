"""Training a LoRA adapter: on a family of the corpus, or on a user's own conversations; from one seed or several."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import BadInput, FailedRun
from ...home import file_sha256, write_atomic
from ..card import weights_sha256
from .churn import Calls, churn, exact_share, known, said_calls
from .data import data_hash, encode
from .held import Held, losses_on
from .loop import Point, device_name, fit
from .passes import batches_of
from .recipe import Recipe

SEEDS = 3
"""How many seeds in a row may fail before an adapter is given up."""

Documents = Callable[[int], Iterable[dict[str, Any]]]
"""The number of a chunk -> its documents, endless; `passes.Passes` where the data has an end."""
Report = Callable[[list[Point], float], None]

SAMPLE = 200
"""Documents that tell data from other data."""


@dataclass(frozen=True)
class Run:
    """An adapter from one seed.

    Attributes:
        tensors: its weights, under PEFT's names.
        data_sha256: of a sample of what it learned.
        held_loss: on held-out conversations, nats; None without any.
        held_call_loss: the same of the calls in them alone; None without any.
        calls: what it calls first in each of them (`said_calls`); None where it was not asked.
        unscored: why it could not be scored, if so; what is then not known is None.
    """

    seed: int
    curve: list[Point]
    tensors: dict[str, torch.Tensor]
    data_sha256: str
    held_loss: float | None = None
    held_call_loss: float | None = None
    calls: list[Calls | None] | None = None
    unscored: str | None = None


@dataclass(frozen=True)
class Start:
    """A trained adapter that is trained further.

    Attributes:
        folder: in PEFT's form.
        before: what its profile says of how it was made, and as `profile` and `sha256` which one it is.
    """

    folder: Path
    before: dict[str, Any]

    @property
    def rounds(self) -> int:
        """How often an adapter was trained to make this one."""
        count = 1
        known = self.before.get("before")
        while known is not None:
            count, known = count + 1, known.get("before")
        return count


def of_config(recipe: Recipe, config: Any) -> Recipe:
    """The recipe with the rank, alpha, modules and layers of PEFT's configuration."""
    layers, targets = config.layers_to_transform, config.target_modules
    return recipe.model_copy(
        update={
            "rank": config.r,
            "alpha": config.lora_alpha,
            "targets": (targets,) if isinstance(targets, str) else tuple(sorted(targets)),
            "layers_from": None if layers is None else min([layers] if isinstance(layers, int) else layers),
        }
    )


def lora_config(recipe: Recipe, layers: int) -> Any:
    """PEFT's configuration for a base of so many layers.

    Raises:
        BadInput: no layer is left to adapt.
    """
    from peft import LoraConfig

    if recipe.layers_from is not None and recipe.layers_from >= layers:
        raise BadInput(f"the base has {layers} layers, 0 to {layers - 1}", where="recipe: layers_from")
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(recipe.targets),
        layers_to_transform=None if recipe.layers_from is None else list(range(recipe.layers_from, layers)),
        task_type="CAUSAL_LM",
    )


def fresh_adapter(base: Path, recipe: Recipe, seed: int, device: str = "cpu", start: Start | None = None) -> Any:
    """The base with an adapter to train: an untrained one, whose initial weights are the seed's whatever the device, or
    the one to start from.

    Raises:
        BadInput: the base has no such modules, or no layer is left to adapt.
    """
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if start is not None:
        return PeftModel.from_pretrained(model, start.folder, is_trainable=True).to(device)
    _need_modules(model, recipe.targets)
    return get_peft_model(model, lora_config(recipe, model.config.get_text_config().num_hidden_layers)).to(device)


def _need_modules(model: Any, targets: Sequence[str]) -> None:
    """Raises BadInput for a target that names no matrix of the base: PEFT passes over it, or fails without a word of
    the recipe."""
    known = [name for name, module in model.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in known):
            some = ", ".join(sorted({name.rpartition(".")[2] for name in known if ".layers." in name}))
            raise BadInput(f"the base has no modules {target!r}", where="recipe: targets", fix=f"It has {some}")


def runs(
    base: Path,
    base_sha256: str,
    tokenizer: Any,
    recipe: Recipe,
    documents: Callable[[int], Documents],
    held: Held,
    count: int,
    *,
    whole_sha256: str | None = None,
    start: Start | None = None,
    device: str = "cpu",
    work: Path | None = None,
    report: Report | None = None,
) -> tuple[list[Run], list[dict[str, Any]]]:
    """Adapters from `count` seeds that did not fail, from the recipe's upwards, and the seeds that failed, with the
    reason. Each is what its seed alone would give.

    Args:
        documents: a seed -> what to train on.
        whole_sha256: of all of it, where it has an end.

    Raises:
        FailedRun: the run failed from `SEEDS` seeds in a row.
    """
    losses = losses_on(tokenizer, held, recipe.length)
    good: list[Run] = []
    failed: list[dict[str, Any]] = []
    in_a_row = 0
    for seed in itertools.count(recipe.seed):
        if len(good) == count:
            break
        tuned = fresh_adapter(base, recipe, seed, device, start)
        place = None if work is None else work / f"seed-{seed}"
        mine, given = recipe.model_copy(update={"seed": seed}), documents(seed)
        data_sha256 = data_hash(itertools.islice(given(0), SAMPLE))
        of = f"base {base_sha256}, data {data_sha256}, start {start and start.before['sha256']}"
        if whole_sha256 is not None:
            of += f", all data {whole_sha256}"
        try:
            curve = fit(tuned, mine, batches_of(mine, tokenizer, given), checkpoint=place, of=of, report=report)
        except FailedRun as error:
            failed.append({"seed": seed, "why": str(error)})
            in_a_row += 1
            if in_a_row == SEEDS:
                raise FailedRun(
                    f"failed from {SEEDS} seeds: {failed[-1]['why']}",
                    fix="Lower the learning rate in the recipe, or warm up longer",
                ) from error
            print(f"{error}: starting again from seed {seed + 1}", file=sys.stderr, flush=True)
            continue
        in_a_row = 0
        tensors = {
            name.replace(".default.weight", ".weight"): parameter.detach().cpu().contiguous()
            for name, parameter in tuned.named_parameters()
            if parameter.requires_grad
        }
        ask = partial(said_calls, tuned, tokenizer, held.documents) if count > 1 else None
        good.append(_scored(Run(seed, curve, tensors, data_sha256), partial(losses, tuned), ask))
    return good, failed


def _scored(
    run: Run, losses: Callable[[], tuple[float | None, float | None]], ask: Callable[[], list[Calls | None]] | None
) -> Run:
    """The run with its scores, or with the reason why some are missing: what is trained is not lost to a score."""
    try:
        loss, call_loss = losses()
        run = replace(run, held_loss=loss, held_call_loss=call_loss)
        return run if ask is None else replace(run, calls=ask())
    except Exception as error:  # a template or a full GPU may raise whatever it likes
        why = f"{type(error).__name__}: {error}"
        print(f"seed {run.seed} is trained, but could not be scored: {why}", file=sys.stderr, flush=True)
        return replace(run, unscored=why)


def final_loss(curve: list[Point]) -> float:
    """The mean loss of the last points of a training curve, nats."""
    return round(sum(p.loss for p in curve[-3:]) / len(curve[-3:]), 4)


def scores(trained: list[Run], held: Held) -> dict[str, Any]:
    """What the card says of held-out conversations: the first seed's scores, all seeds' losses, churn, in how many
    first answers all seeds' calls are known, and which seeds could not be scored."""
    losses = [run.held_loss for run in trained if run.held_loss is not None]
    said = [run.calls for run in trained if run.calls is not None]
    return {
        "held_out": held.source,
        "held_loss": _rounded(trained[0].held_loss),
        "held_call_loss": _rounded(trained[0].held_call_loss),
        "first_calls": _rounded(exact_share(trained[0].calls, held.documents) if trained[0].calls else None),
        "seeds": [
            {
                "seed": run.seed,
                "held_loss": _rounded(run.held_loss),
                "held_call_loss": _rounded(run.held_call_loss),
                "final_loss": final_loss(run.curve),
            }
            for run in trained
        ],
        "held_loss_mean": _rounded(statistics.fmean(losses) if losses else None),
        "held_loss_sd": _rounded(statistics.stdev(losses) if len(losses) > 1 else None),
        "churn": _rounded(churn(said)),
        "first_answers_known": len(known(said)) if said else None,
        "unscored": [{"seed": run.seed, "why": run.unscored} for run in trained if run.unscored is not None],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def train_adapter(
    base: Path,
    base_name: str,
    documents: Callable[[int], Documents],
    source: dict[str, Any],
    recipe: Recipe,
    directory: Path,
    *,
    held: Held | None = None,
    seeds: int = 1,
    start: Start | None = None,
    device: str = "cpu",
    work: Path | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train a LoRA adapter on `documents` and write it in PEFT's form, with a card, into `directory`.

    With several seeds the first one's adapter is written, the very one that a single seed would give: nothing is chosen
    by its score, so the scores stay those of conversations that had no say, and the others tell how far to trust them.

    Args:
        base: folder of the base model.
        documents: a seed -> what to train on.
        source: what the data is, for the card. Its `sha256`, where it has one, is that of all of the data: a checkpoint
            of other data is then refused however little differs.
        held: conversations to score on; none by default.
        seeds: how many, from the recipe's upwards. Initial weights and data, or its order, are the seed's, so that each
            adapter is what its seed alone would give: with `work` they can be trained side by side, and then together.
        start: an adapter to train further; rank, alpha, modules and layers are its own, whatever the recipe says, and
            what is known of it becomes `before` in the card.
        device: `cpu`, `cuda` or `cuda:0`.
        work: folder for checkpoints; an interrupted run goes on from there.

    Returns:
        The adapter's card.

    Raises:
        BadInput: the base is not a model, or its chat template cannot be trained on.
        FailedRun: the run failed from `SEEDS` seeds in a row.
    """
    from peft import PeftConfig
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoTokenizer

    held = held or Held(())
    tokenizer = AutoTokenizer.from_pretrained(base)
    if start is None:
        config = lora_config(recipe, AutoConfig.from_pretrained(base).get_text_config().num_hidden_layers)
    else:
        # As it is, with what a recipe does not know, such as another scaling.
        config = PeftConfig.from_pretrained(str(start.folder))
        recipe = of_config(recipe, config)
    for document in itertools.islice(documents(recipe.seed)(0), 3):
        encode(tokenizer, document)  # a template that cannot be trained on is told before the training starts
    base_sha256 = weights_sha256(base)
    trained, failed = runs(
        base,
        base_sha256,
        tokenizer,
        recipe,
        documents,
        held,
        seeds,
        whole_sha256=source.get("sha256"),
        start=start,
        device=device,
        work=work,
        report=report,
    )
    kept = trained[0]
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / "adapter_model.safetensors.new"
    save_file(kept.tensors, fresh, {"format": "pt"})
    fresh.replace(directory / "adapter_model.safetensors")
    settings = config.to_dict()
    if not isinstance(config.target_modules, str):
        settings["target_modules"] = sorted(config.target_modules)
    settings |= {"base_model_name_or_path": base_name, "inference_mode": True}
    write_atomic(directory / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n")
    card = {
        "base": base_name,
        "base_sha256": base_sha256,
        "sha256": file_sha256(directory / "adapter_model.safetensors"),
        "parameters": sum(t.numel() for t in kept.tensors.values()),
        "recipe": recipe.model_dump(mode="json"),
        "kept_seed": kept.seed,
        "failed": failed,
        "data": {**source, "sample_sha256": kept.data_sha256},
        "tokens": kept.curve[-1].tokens,
        "device": device_name(device),
        "seconds": round(kept.curve[-1].seconds),
        "first_loss": round(kept.curve[0].loss, 4),
        "final_loss": final_loss(kept.curve),
        "scores": scores(trained, held),
    }
    if start is not None:
        card["before"] = start.before
    write_atomic(directory / "card.json", json.dumps(card, indent=2) + "\n")
    return card
