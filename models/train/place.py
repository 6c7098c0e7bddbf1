"""Where an adapter is best put: the same training on different modules, each at its own best learning rate.

Placements compared at one learning rate say which rate was chosen, not which placement is better (the fewer modules,
the larger the best rate), so every arm gets a grid. The best rate of an arm is run from a second seed: the spread of
these pairs is the noise that a difference has to exceed.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ...errors import BadInput, FailedRun
from .adapter import fresh_adapter
from .churn import exact_share, said_calls
from .data import Rows
from .held import Held, held_loss, packed
from .loop import fit, of_steps
from .passes import batches_of
from .recipe import Recipe

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NOISE = 2.0
"""Differences below so many standard errors are not told from chance."""


@dataclass(frozen=True)
class Arm:
    """A placement, trained.

    Attributes:
        losses: held-out loss (nats) by learning rate, from the recipe's seed; None where the run failed.
        rate: the best learning rate, None where all failed.
        at_edge: whether it is the smallest or the largest that was tried, so a still better one may lie outside.
        pair: held-out loss of two seeds at the best rate.
        first_calls: share of held-out first answers whose calls are exactly right, mean of the two seeds.
        parameters: trainable ones.
        seconds: of training, one run at the best rate.
    """

    name: str
    targets: tuple[str, ...]
    layers_from: int | None
    losses: Mapping[float, float | None]
    rate: float | None
    at_edge: bool
    pair: tuple[float, float] | None
    first_calls: float | None
    parameters: int
    seconds: float | None

    @property
    def loss(self) -> float | None:
        """Held-out loss at the best rate, mean of the two seeds."""
        return None if self.pair is None else statistics.fmean(self.pair)


@dataclass(frozen=True)
class Placement:
    """All arms.

    Attributes:
        best: the arm with the lowest loss.
        noise: standard error of an arm's loss, from the pairs of all arms together.
        alike: arms whose loss is within `NOISE` standard errors of a difference from the best's, the best included.
        smallest: of these, the one with the fewest parameters.
    """

    arms: tuple[Arm, ...]
    data: Mapping[str, Any]
    steps: int
    best: str | None
    noise: float | None
    alike: tuple[str, ...]
    smallest: str | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"arms": [{**asdict(arm), "loss": arm.loss} for arm in self.arms]}


def placements(layers: int) -> dict[str, dict[str, Any]]:
    """The arms, as fields of a recipe, for a base of so many layers. `top` is the upper half of them."""
    return {
        "qv": {"targets": ("q_proj", "v_proj"), "layers_from": None},
        "attention": {"targets": ATTENTION, "layers_from": None},
        "mlp": {"targets": MLP, "layers_from": None},
        "all": {"targets": ATTENTION + MLP, "layers_from": None},
        "top": {"targets": ATTENTION + MLP, "layers_from": layers // 2},
    }


def judged(arms: Sequence[Arm], data: Mapping[str, Any], steps: int) -> Placement:
    """Which arm is best, and which cannot be told from it."""
    known = [(arm, arm.pair) for arm in arms if arm.pair is not None]
    if not known:
        return Placement(tuple(arms), data, steps, None, None, (), None)
    # The variance of a seed from pairs is (a - b)^2 / 2; that of a mean of two seeds half of it.
    noise = (statistics.fmean((a - b) ** 2 / 2 for _, (a, b) in known) / 2) ** 0.5
    means = {arm.name: statistics.fmean(pair) for arm, pair in known}
    best = min(means, key=means.__getitem__)
    alike = [arm for arm, _ in known if means[arm.name] - means[best] <= NOISE * 2**0.5 * noise]
    smallest = min(alike, key=lambda arm: arm.parameters).name
    return Placement(tuple(arms), data, steps, best, noise, tuple(arm.name for arm in alike), smallest)


def place(
    base: Path,
    documents: Callable[[int], Iterable[dict[str, Any]]],
    source: Mapping[str, Any],
    held: Held,
    recipe: Recipe,
    steps: int,
    rates: Sequence[float],
    *,
    device: str = "cpu",
    processes: int = 1,
    told: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Placement:
    """Train every placement at every rate on the same batches, and the best rate of each once more from another seed.

    Args:
        documents: the number of a chunk -> its documents, endless; `Passes` where the data has an end.
        recipe: of the whole training; its targets, layers, learning rate and compilation are set here.
        steps: of one run; warm-up and decay keep their share.
        rates: at least 4 learning rates.
        device: `cpu`, `cuda` or `cuda:0`.
        processes: arms that are trained at the same time, each in a process of its own.

    Raises:
        BadInput: fewer than 4 rates, one that is none, or nothing is held out.
    """
    from transformers import AutoConfig, AutoTokenizer

    if bad := [rate for rate in rates if not 0 < rate < math.inf]:
        raise BadInput(f"{bad[0]} is not a learning rate", where="--rates", fix="Give numbers above 0")
    rates = sorted(set(rates))
    if len(rates) < 4:
        raise BadInput("at least 4 different learning rates are needed", where="--rates")
    if not held.documents:
        raise BadInput("nothing is held out to compare on", where="--data", fix="Give at least two conversations")
    # Runs are short: compiling each arm would take longer than it saves.
    recipe = shortened(recipe, steps).model_copy(update={"compile": False})
    layers = AutoConfig.from_pretrained(base).get_text_config().num_hidden_layers
    batches = list(islice(batches_of(recipe, AutoTokenizer.from_pretrained(base), documents)(0), steps))
    work = [
        (name, base, recipe.model_copy(update=fields), batches, held, rates, device)
        for name, fields in placements(layers).items()
    ]
    arms = []
    for arm in _in_processes(work, processes) if processes > 1 else map(_arm, *zip(*work, strict=True)):
        arms.append(arm)
        told(_line(arm))
    return judged(arms, source, steps)


def _in_processes(work: Sequence[tuple[Any, ...]], processes: int) -> Iterator[Arm]:
    threads = max(1, torch.get_num_threads() // processes)
    # Started anew, not forked: this process has threads, and perhaps a GPU.
    with ProcessPoolExecutor(processes, get_context("spawn"), _beside_others, (threads,)) as pool:
        for future in [pool.submit(_arm, *one) for one in work]:
            yield future.result()


def _beside_others(threads: int) -> None:
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(threads)
    disable_progress_bar()


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with fewer (or more) steps, and the same schedule in proportion."""
    return of_steps(recipe, steps).model_copy(update={"warmup": round(recipe.warmup * steps / recipe.steps)})


@dataclass(frozen=True)
class _Run:
    loss: float
    seconds: float
    parameters: int
    model: Any


def _arm(
    name: str,
    base: Path,
    recipe: Recipe,
    batches: Sequence[Rows],
    held: Held,
    rates: Sequence[float],
    device: str,
) -> Arm:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = packed(tokenizer, held, recipe.length)

    def run(rate: float, seed: int) -> _Run | None:
        model = fresh_adapter(base, recipe, seed, device)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        try:
            curve = fit(model, recipe.model_copy(update={"lr": rate}), lambda start: iter(batches[start:]))
        except FailedRun:
            return None
        loss = held_loss(model, rows)
        return None if loss is None else _Run(loss, curve[-1].seconds, count, model)

    def share(found: _Run) -> float | None:
        return exact_share(said_calls(found.model, tokenizer, held.documents), held.documents)

    losses: dict[float, float | None] = {}
    best: tuple[float, _Run] | None = None
    for rate in rates:
        found = run(rate, recipe.seed)
        losses[rate] = None if found is None else found.loss
        if found is not None and (best is None or found.loss < best[1].loss):
            best = (rate, found)
    arm = Arm(name, recipe.targets, recipe.layers_from, losses, None, False, None, None, 0, None)
    second = None if best is None else run(best[0], recipe.seed + 1)
    if best is None or second is None:
        return arm
    rate, first = best
    shares = [s for s in (share(first), share(second)) if s is not None]
    return replace(
        arm,
        rate=rate,
        at_edge=rate in (rates[0], rates[-1]),
        pair=(first.loss, second.loss),
        first_calls=statistics.fmean(shares) if shares else None,
        parameters=first.parameters,
        seconds=first.seconds,
    )


def _line(arm: Arm) -> str:
    if arm.pair is None or arm.loss is None:
        return f"{arm.name:<10} failed at every learning rate, or from the second seed"
    calls = "      -" if arm.first_calls is None else f"{arm.first_calls:7.1%}"
    edge = " (edge of the grid)" if arm.at_edge else ""
    return (
        f"{arm.name:<10} {arm.loss:8.4f} {abs(arm.pair[0] - arm.pair[1]):8.4f} {calls} {arm.parameters:>11,} "
        f"{arm.seconds:8.1f}  {arm.rate:g}{edge}"
    )


def table(found: Placement) -> str:
    """The comparison in words, with what can be said of the best arm and what cannot."""
    lines = [f"{'placement':<10} {'loss':>8} {'spread':>8} {'calls':>7} {'parameters':>11} {'seconds':>8}  rate"]
    lines += [_line(arm) for arm in found.arms]
    if found.best is None:
        return "\n".join([*lines, "every arm failed: try lower --rates"])
    others = [name for name in found.alike if name != found.best]
    if others:
        lines.append(
            f"lowest loss: {found.best}; the difference from {', '.join(others)} is inside the noise "
            f"(standard error {found.noise:.4f}). Of these {found.smallest} has the fewest parameters."
        )
    else:
        lines.append(f"best: {found.best}, by more than the noise (standard error {found.noise:.4f})")
    edges = [arm.name for arm in found.arms if arm.at_edge]
    if edges:
        lines.append(f"at the edge of the grid, so perhaps better outside it: {', '.join(edges)}; widen --rates")
    return "\n".join(lines)


def curves(found: Placement) -> dict[str, list[tuple[float, float]]]:
    """(learning rate, held-out loss) of each arm, failed runs left out."""
    return {arm.name: [(r, v) for r, v in arm.losses.items() if v is not None] for arm in found.arms}
