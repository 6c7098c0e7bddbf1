"""The training loop: packed rows in, a trained model out; stops and goes on exactly where it was."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...errors import BadInput, FailedRun
from ...home import write_atomic
from .data import IGNORE, Rows
from .health import failure
from .recipe import Recipe


@dataclass(frozen=True)
class Point:
    """One point of the training curve. `loss` is the mean cross-entropy (nats) of learned tokens since the last
    point."""

    step: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: warm-up, stable, linear decay; and once more from `second` on, if there is one."""
    first = recipe.second is None or step < recipe.second
    begin = 0 if first else (recipe.second or 0)
    end = recipe.second if first and recipe.second is not None else recipe.steps
    warm = min(1.0, (step - begin + 1) / max(1, recipe.warmup))
    left = min(1.0, (end - step) / max(1, recipe.decay))
    return (recipe.lr if first else recipe.second_lr) * min(warm, left)


def _mask(rows: Rows) -> torch.Tensor:
    """[batch, 1, length, length] bool: a token sees itself and what came before it in its own document."""
    documents = torch.from_numpy(rows.documents)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    length = documents.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool).tril()


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere it is some forty times slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def loss_of(model: Any, backbone: Any, rows: Rows) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens. The output head runs on those tokens only."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast()):
        hidden = backbone(
            input_ids=torch.from_numpy(rows.ids),
            attention_mask=_mask(rows),
            position_ids=torch.from_numpy(rows.positions),
        ).last_hidden_state
        targets = torch.from_numpy(rows.targets).flatten()
        keep = targets != IGNORE
        logits = model.get_output_embeddings()(hidden.flatten(0, 1)[keep])
    return torch.nn.functional.cross_entropy(logits.float(), targets[keep])


def _ahead(batches: Iterator[Rows], depth: int = 3) -> Iterator[Rows]:
    """The same batches, made by a thread while the model computes."""
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
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def _identity(recipe: Recipe) -> str:
    """What must be the same for a checkpoint to be gone on from: the recipe, but for how long it trains."""
    return recipe.model_dump_json(exclude={"steps", "decay"})


def save_checkpoint(directory: Path, model: Any, optimizer: Any, recipe: Recipe, step: int, curve: list[Point]) -> None:
    """Write all that is needed to go on: trainable weights, optimizer state, recipe, step, curve. Whole or not at
    all."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"w.{name}"] = parameter.detach().clone()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"o.{key}.{name}"] = torch.as_tensor(value).detach().clone()
    fresh = directory / "state.new"
    save_file(tensors, fresh, {"step": str(step), "recipe": _identity(recipe)})
    fresh.replace(directory / "state.safetensors")
    write_atomic(directory / "curve.json", json.dumps([asdict(p) for p in curve]))


def load_checkpoint(directory: Path, model: Any, optimizer: Any, recipe: Recipe) -> tuple[int, list[Point]]:
    """Put a checkpoint back into model and optimizer; returns the step to go on with and the curve so far.

    Raises:
        BadInput: the checkpoint was made with another recipe.
    """
    from safetensors import safe_open

    file = directory / "state.safetensors"
    if not file.exists():
        return 0, []
    with safe_open(file, "pt") as opened:
        about = opened.metadata() or {}
    if about.get("recipe") != _identity(recipe):
        raise BadInput(
            "is a checkpoint of another recipe", where=str(file), fix="Give another --work folder, or delete this one"
        )
    step = int(about["step"])
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"w.{name}"])
                state = {
                    k.split(".", 2)[1]: v
                    for k, v in tensors.items()
                    if k.startswith("o.") and k.split(".", 2)[2] == name
                }
                if state:
                    optimizer.state[parameter] = state
    curve = [Point(**p) for p in json.loads((directory / "curve.json").read_text())]
    return step, [p for p in curve if p.step <= step]


def fit(
    model: Any,
    recipe: Recipe,
    batches: Callable[[int], Iterator[Rows]],
    *,
    checkpoint: Path | None = None,
    every: int = 100,
    report: Callable[[list[Point], float], None] | None = None,
) -> list[Point]:
    """Train `model` in place.

    Args:
        batches: given the step to start at, the stream of batches from there.
        checkpoint: folder to resume from and save to, every `every` steps.
        report: called at each point with the curve so far and the seconds that are left at this speed.

    Returns:
        The training curve.

    Raises:
        FailedRun: the run comes to nothing (`health.failure`); no checkpoint is written of what failed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True)
    start, curve = load_checkpoint(checkpoint, model, optimizer, recipe) if checkpoint else (0, [])
    backbone = getattr(model, "base_model", model)
    backbone = backbone.model.model if hasattr(backbone, "peft_config") else model.model
    if recipe.compile:
        backbone = torch.compile(backbone, dynamic=False)
    model.train()
    tokens = curve[-1].tokens if curve else 0
    spent = curve[-1].seconds if curve else 0.0
    began, recent = time.monotonic(), []
    losses, norms, steep = [p.loss for p in curve], [], []
    for step, rows in zip(range(start, recipe.steps), _ahead(batches(start)), strict=False):
        rate = learning_rate(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, backbone, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        steep.append(float(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)))
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        tokens += int((rows.documents > 0).sum())
        last = step + 1 == recipe.steps
        if (step + 1) % 20 == 0 or last:
            seconds = spent + time.monotonic() - began
            curve.append(Point(step + 1, sum(recent) / len(recent), rate, tokens, seconds))
            losses.append(curve[-1].loss)
            norms.append(sum(steep) / len(steep))
            recent, steep = [], []
            if report is not None:
                report(curve, (time.monotonic() - began) / (step + 1 - start) * (recipe.steps - step - 1))
            wrong = failure(losses, norms, (step + 1) / recipe.steps)
            if wrong is not None:
                raise FailedRun(wrong, where=f"step {step + 1}", fix="Try another --seed or a lower learning rate")
        if checkpoint and ((step + 1) % every == 0 or last):
            save_checkpoint(checkpoint, model, optimizer, recipe, step + 1, curve)
    model.eval()
    return curve
