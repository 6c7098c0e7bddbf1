"""How large a base should be: the same corpus and the same minutes for several shapes, and what each has learned.

A larger model learns more from a token and sees fewer of them in a minute, so the better size depends on the time there
is (the trade-off of arXiv 2203.15556, in seconds instead of FLOPs). What is compared is the held-out loss over time at
an undiminished learning rate; the last decay of a real run lowers every curve.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .base import corpus_batches, make_tokenizer, new_model
from .data import Rows
from .held import held_loss, of_base, packed
from .loop import Point, fit
from .recipe import Recipe
from .variants import Variants

HEAD = 64
"""Width of an attention head."""
MARKS = 6
"""How often a run is scored."""


@dataclass(frozen=True)
class Shape:
    """Layers and width of a base model; heads are 64 wide, and the feed-forward part 2.75 times as wide as the rest."""

    layers: int
    hidden: int

    @property
    def name(self) -> str:
        """`6x256`."""
        return f"{self.layers}x{self.hidden}"

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with this shape, and no end of its own."""
        heads = self.hidden // HEAD
        shape = {"layers": self.layers, "hidden": self.hidden, "intermediate": self.hidden * 11 // 4, "heads": heads}
        groups = 2 if heads % 2 == 0 else heads
        return recipe.model_copy(update={**shape, "kv_heads": groups, "steps": 10**6, "decay": 0, "made_up": 0})


SHAPES = (Shape(4, 256), Shape(6, 256), Shape(10, 256), Shape(8, 320))


@dataclass(frozen=True)
class Mark:
    """A score on the way: seconds of training (compilation and scoring left out), tokens, held-out loss in nats."""

    seconds: float
    tokens: int
    loss: float


@dataclass(frozen=True)
class Run:
    """One shape's run."""

    shape: Shape
    parameters: int
    marks: tuple[Mark, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "shape": self.shape.name}


class _Over(Exception):
    """The time is up."""


def compare(
    recipe: Recipe,
    shapes: Sequence[Shape],
    minutes: float,
    work: Path,
    *,
    device: str = "cpu",
    processes: int = 0,
    told: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> list[Run]:
    """Train each shape for so many minutes, one after the other, and score it `MARKS` times.

    Args:
        recipe: of the base; its shape and schedule are set here.
        work: folder for the tokenizer.
        device: `cpu`, `cuda` or `cuda:0`.
        processes: how many make the data; 0: this one does, beside the training.
    """
    from transformers import AutoTokenizer

    from ..embedded.corpus import open_world

    if not (work / "tokenizer.json").exists():
        make_tokenizer(work)
    tokenizer = AutoTokenizer.from_pretrained(work)
    with open_world() as world:
        rows = packed(tokenizer, of_base(world), recipe.length)
        found = []
        for shape in shapes:
            own = shape.of(recipe)
            batches = corpus_batches(own, work, world, fresh=True, processes=processes)
            found.append(_run(shape, own, tokenizer, batches, rows, minutes * 60, device, told))
    return found


def _run(
    shape: Shape,
    recipe: Recipe,
    tokenizer: Any,
    batches: Callable[[int], Iterator[Rows]],
    rows: Sequence[Rows],
    seconds: float,
    device: str,
    told: Callable[[str], None],
) -> Run:
    variants = Variants(tokenizer, recipe.hidden)
    model = new_model(recipe, len(tokenizer), variants).to(device)
    variants.to(device)
    marks: list[Mark] = []
    away = 0.0  # seconds that are not the training's: the first points, with the compilation in them, and the scoring

    def report(curve: list[Point], left: float) -> None:
        nonlocal away
        if len(curve) == 1:
            away = curve[0].seconds
        spent = curve[-1].seconds - away
        if spent < seconds * (len(marks) + 1) / MARKS:
            return
        began = time.monotonic()
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(variants())
        loss = held_loss(model, rows)
        assert loss is not None  # the conversations all have something to learn
        marks.append(Mark(spent, curve[-1].tokens, loss))
        told(f"{shape.name:<8} {spent:6.0f} s  {curve[-1].tokens:>10,} tokens  held-out loss {loss:.4f}")
        if len(marks) == MARKS:
            raise _Over
        away += time.monotonic() - began

    with suppress(_Over):
        fit(model, recipe, batches, variants=variants, report=report)
    return Run(shape, sum(p.numel() for p in model.parameters()), tuple(marks))


def table(runs: Sequence[Run]) -> str:
    """The comparison in words: every shape at the end of its time."""
    lines = [f"{'shape':<8} {'parameters':>11} {'seconds':>8} {'tokens':>11} {'held-out loss':>14}"]
    for run in runs:
        last = run.marks[-1]
        lines.append(
            f"{run.shape.name:<8} {run.parameters:>11,} {last.seconds:>8.0f} {last.tokens:>11,} {last.loss:>14.4f}"
        )
    best = min(runs, key=lambda run: run.marks[-1].loss)
    lines.append(f"lowest after this time: {best.shape.name}")
    return "\n".join(lines)
