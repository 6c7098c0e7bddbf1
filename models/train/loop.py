"""The training loop: packed rows in, a trained model out; stops and goes on exactly where it was."""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ...errors import BadInput, FailedRun
from .attention import bfloat16_is_fast, faster, mask_for
from .data import IGNORE, Rows
from .health import failure
from .merged import merged
from .recipe import Recipe
from .variants import Variants


@dataclass(frozen=True)
class Point:
    """One point of the training curve. `loss` is the mean cross-entropy (nats) of learned tokens since the last
    point; `seconds` are those of the run so far, `waited` those of them in which there was no batch to learn yet."""

    step: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    waited: float = 0.0


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: warm-up, stable, linear decay."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    left = min(1.0, (recipe.steps - step) / max(1, recipe.decay))
    return recipe.lr * min(warm, left)


def usual_device() -> str:
    """`cuda` where there is a GPU that torch can use, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """What a card says of where a model was trained: the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of [N, H] final states under the output head [V, H]."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


_compiled_head_loss = torch.compile(head_loss, dynamic=True)


PAYS = {"cpu": 60, "cuda": 1500}
"""Steps from which compiling pays: it takes about as long as that many are sped up by."""


def can_compile() -> bool:
    """Whether torch.compile has the C++ compiler it needs; without one a run is slower, not different."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _moved(rows: Rows, device: torch.device) -> torch.Tensor:
    """[5, batch, length] int64 on `device`: ids, positions, clumps, branches, targets, in one transfer."""
    arrays = (rows.ids, rows.positions, rows.clumps, rows.branches, rows.targets)
    if device.type == "cpu":
        return torch.from_numpy(np.stack(arrays))
    # Pinned and narrow: the copy then waits for nothing that the GPU is still computing.
    packed = torch.from_numpy(np.stack([a.astype(np.int32) for a in arrays])).pin_memory()
    return packed.to(device, non_blocking=True).long()


def loss_of(
    model: Any, backbone: Any, rows: Rows, embedding: torch.Tensor | None = None, *, compiled: bool = False
) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens. The output head runs on those tokens only.

    Args:
        embedding: [V, H] input and output embedding in place of the model's own (`variants.Variants`).
        compiled: whether to compile the output head, as the backbone then is.
    """
    device: torch.device = model.device
    ids, positions, clumps, branches, targets = _moved(rows, device)
    source = {"input_ids": ids} if embedding is None else {"inputs_embeds": F.embedding(ids, embedding)}
    fast = device.type == "cuda" or bfloat16_is_fast()
    # Found on the CPU, where the rows came from: a GPU would have to be waited for to tell how many they are.
    keep = torch.from_numpy(np.flatnonzero(rows.targets != IGNORE)).to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        hidden = backbone(
            attention_mask=mask_for(model, rows, clumps, branches, torch.bfloat16 if fast else torch.float32),
            position_ids=positions,
            **source,
        ).last_hidden_state
        head = model.get_output_embeddings().weight if embedding is None else embedding
        learned, wanted = hidden.flatten(0, 1).index_select(0, keep), targets.flatten().index_select(0, keep)
        return (_compiled_head_loss if compiled else head_loss)(learned, head, wanted)


def _ahead(batches: Iterator[Rows], depth: int = 3) -> Iterator[tuple[Rows, float]]:
    """The same batches, made by a thread while the model computes, and the seconds for which each was waited for."""
    made: queue.Queue[Rows | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for rows in batches:
                while not stop.is_set():
                    try:
                        made.put(rows, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
            made.put(None)
        except BaseException as error:
            made.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            asked = time.monotonic()
            item = made.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item, time.monotonic() - asked
    finally:
        stop.set()


def backbone_of(model: Any) -> Any:
    """The part of a causal language model below its output head, also where PEFT is wrapped around it."""
    inner = getattr(model, "base_model", model)
    return inner.model.model if hasattr(inner, "peft_config") else model.model


def _identity(recipe: Recipe) -> str:
    """What must be the same for a checkpoint to be gone on from: the recipe, but for how long it trains."""
    return recipe.model_dump_json(exclude={"steps", "decay"}, exclude_none=True)


def optimizers(named: Mapping[str, torch.nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Bias-corrected AdamW, and with `optimizer: muon` torch's Muon for the matrices inside the blocks.

    Every group has a `share` of the learning rate: `value_ratio` for value projections (arXiv 2410.02247, section 4:
    the value side wants a larger one), else 1.
    """
    groups: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in named.items():
        matrix = parameter.ndim > 1
        inside = recipe.optimizer == "muon" and parameter.ndim == 2 and ".layers." in name
        groups.setdefault((inside, matrix, "v_proj" in name), []).append(parameter)
    adam, muon = (
        [
            {
                "params": members,
                "weight_decay": recipe.weight_decay if matrix else 0.0,
                "share": recipe.value_ratio if value else 1.0,
            }
            for (inside, matrix, value), members in groups.items()
            if inside == wanted
        ]
        for wanted in (False, True)
    )
    found: list[torch.optim.Optimizer] = []
    if adam:
        found.append(torch.optim.AdamW(adam, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True))
    if muon:
        found.append(torch.optim.Muon(muon, lr=recipe.lr, adjust_lr_fn="match_rms_adamw"))
    return found


def save_checkpoint(
    directory: Path,
    named: Mapping[str, torch.nn.Parameter],
    steppers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    step: int,
    curve: list[Point],
    of: str = "",
    *,
    planned: bool = False,
) -> None:
    """Write all that is needed to go on: trainable weights, optimizer state, recipe, what it is of, step, curve. Whole
    or not at all.

    Args:
        planned: whether the steps and decay are a plan of the run's own (`_in_time`), which is then kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in named.items():
        tensors[f"w.{name}"] = parameter.detach().clone()
        for stepper in steppers:
            for key, value in stepper.state.get(parameter, {}).items():
                tensors[f"o.{key}.{name}"] = torch.as_tensor(value).detach().clone()
    fresh = directory / "state.new"
    points = json.dumps([asdict(p) for p in curve])
    about = {"step": str(step), "recipe": _identity(recipe), "of": of, "curve": points}
    if planned:
        about["plan"] = json.dumps({"steps": recipe.steps, "decay": recipe.decay})
    save_file(tensors, fresh, about)
    fresh.replace(directory / "state.safetensors")


def load_checkpoint(
    directory: Path,
    named: Mapping[str, torch.nn.Parameter],
    steppers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    of: str = "",
) -> tuple[int, list[Point], dict[str, int]]:
    """Put a checkpoint back into model and optimizers; returns the step to go on with, the curve so far, and the steps
    and decay that the run had planned for itself; empty where it had not.

    Raises:
        BadInput: the checkpoint was made with another recipe, or is of something else.
    """
    from safetensors import safe_open

    file = directory / "state.safetensors"
    if not file.exists():
        return 0, [], {}
    with safe_open(file, "pt") as opened:
        about = opened.metadata() or {}
    wrong = {
        "recipe": about.get("recipe") != _identity(recipe),
        "start (base, adapter or tokenizer), or of other data": about.get("of", "") != of,
    }
    if other := next((what for what, differs in wrong.items() if differs), None):
        raise BadInput(
            f"is a checkpoint of another {other}", where=str(file), fix="Give another --work folder, or delete this one"
        )
    tensors = load_file(file)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("o."):
            _, entry, name = key.split(".", 2)
            states.setdefault(name, {})[entry] = tensor
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[f"w.{name}"])
            for stepper in steppers:
                if name in states and any(parameter is p for g in stepper.param_groups for p in g["params"]):
                    stepper.state[parameter] = {k: v.to(parameter.device) for k, v in states[name].items()}
    plan: dict[str, int] = json.loads(about.get("plan", "{}"))
    return int(about["step"]), [Point(**p) for p in json.loads(about["curve"])], plan


def _mean(values: Sequence[torch.Tensor]) -> float:
    """The mean of scalars, in double precision."""
    return float(torch.stack(list(values)).double().mean())


def of_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with another number of steps; its decay keeps its share of them."""
    return recipe.model_copy(update={"steps": steps, "decay": round(recipe.decay * steps / recipe.steps)})


PLANNED = 100
"""Steps after which a run with a time limit chooses anew how many there will be."""


def _in_time(given: Recipe, recipe: Recipe, curve: Sequence[Point], start: int, limit: float) -> Recipe:
    """The recipe with as many steps as fit into `limit` seconds at the speed of late; the same once its rate falls.

    Args:
        given: what the share of the decay is taken from.
        recipe: as it was planned last.
        start: the step that this process began with. What came right after it was compiling, which tells no speed.
    """
    step = curve[-1].step
    before = [p for p in curve if p.step == step - PLANNED > start]
    if step % PLANNED or not before or step > recipe.steps - recipe.decay:
        return recipe
    each = (curve[-1].seconds - before[0].seconds) / PLANNED
    planned = of_steps(given, step + max(1, int((limit - curve[-1].seconds) / each)))
    if planned.steps - planned.decay >= step:
        return planned
    # A rate that should have begun to fall begins to fall now: no step that is done is another in the new plan.
    return of_steps(given, math.ceil(step / (1 - given.decay / given.steps)) + 1)


def fit(
    model: Any,
    recipe: Recipe,
    batches: Callable[[int], Iterator[Rows]],
    *,
    minutes: float | None = None,
    variants: Variants | None = None,
    checkpoint: Path | None = None,
    every: int | None = None,
    of: str = "",
    report: Callable[[list[Point], float], None] | None = None,
) -> list[Point]:
    """Train `model` in place, on the device it is on.

    Args:
        batches: given the step to start at, the stream of batches from there.
        minutes: how long the run may take, preparations included, in place of the recipe's number of steps; its decay
            keeps its share, and a run that goes on keeps to what it had planned. The curve's last point tells the
            number of steps, with which the same run can be had again.
        variants: the embedding as a function of fewer parameters; these are trained instead, and written into the
            model in the end.
        checkpoint: folder to resume from and save to, every `every` steps; 100 by default, on a GPU 1000.
        of: what besides the recipe a checkpoint must be of to be resumed from: base, data.
        report: called at each point with the curve so far and the seconds that are left at this speed.

    Returns:
        The training curve.

    Raises:
        FailedRun: the run comes to nothing (`health.failure`); no checkpoint is written of what failed.
    """
    if variants is not None:
        model.get_input_embeddings().weight.requires_grad_(False)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if variants is not None:
        named |= {f"variants.{n}": p for n, p in variants.named_parameters()}
    steppers, given = optimizers(named, recipe), recipe
    every = every or (100 if model.device.type == "cpu" else 1000)
    start, curve, plan = load_checkpoint(checkpoint, named, steppers, recipe, of) if checkpoint else (0, [], {})
    if minutes is not None:
        recipe = recipe.model_copy(update=plan)
    backbone = backbone_of(model)
    compiled = recipe.compile and recipe.steps - start >= PAYS[model.device.type] and can_compile()
    if compiled:
        backbone = torch.compile(backbone, dynamic=False)
    with faster(model), merged(model):
        model.train()
        tokens = curve[-1].tokens if curve else 0
        spent = curve[-1].seconds if curve else 0.0
        waited = curve[-1].waited if curve else 0.0
        began = time.monotonic()
        recent: list[torch.Tensor] = []
        steep: list[torch.Tensor] = []
        losses, norms = [p.loss for p in curve], []
        for step, (rows, wait) in enumerate(_ahead(batches(start)) if start < recipe.steps else (), start):
            waited += wait
            rate = learning_rate(recipe, step)
            for stepper in steppers:
                for group in stepper.param_groups:
                    group["lr"] = rate * group["share"]
            loss = loss_of(model, backbone, rows, variants() if variants is not None else None, compiled=compiled)
            loss.backward()  # type: ignore[no-untyped-call]
            steep.append(torch.nn.utils.clip_grad_norm_(named.values(), recipe.clip))
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            recent.append(loss.detach())
            tokens += int((rows.clumps > 0).sum())
            last = step + 1 == recipe.steps
            if (step + 1) % 20 == 0 or last:
                # Read at points only: each reading waits for the device.
                mean = _mean(recent)
                seconds = spent + time.monotonic() - began
                curve.append(Point(step + 1, mean, rate, tokens, seconds, waited))
                losses.append(mean)
                norms.append(_mean(steep))
                recent, steep = [], []
                if minutes is not None and not last:
                    recipe = _in_time(given, recipe, curve, start, minutes * 60)
                if report is not None:
                    report(curve, (time.monotonic() - began) / (step + 1 - start) * (recipe.steps - step - 1))
                wrong = failure(losses, norms, (step + 1) / recipe.steps)
                if wrong is not None:
                    raise FailedRun(wrong, where=f"step {step + 1}", fix="Try another --seed or a lower learning rate")
            if checkpoint and ((step + 1) % every == 0 or last):
                timed = minutes is not None
                save_checkpoint(checkpoint, named, steppers, recipe, step + 1, curve, of, planned=timed)
            if last:
                break
    if variants is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(variants())
    model.eval()
    return curve
