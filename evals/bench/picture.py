"""The benchmarks as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bars import Bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from . import steering, train, turns


def train_png(found: train.Measured, bars: Sequence[Bar]) -> bytes:
    """Both sides' speed by round, and every bar as a share of what it is held to, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .train import conversation_rate

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    speed, held = figure.subplots(1, 2)
    rounds = range(1, len(found.ours) + 1)
    for name, blocks in (("Trimtab", found.ours), (f"TRL, {found.setting.name}", found.theirs)):
        speed.plot(rounds, [conversation_rate(b) for b in blocks], marker="o", label=name)
    speed.set(title=f"adapter training, {found.model}", xlabel="round", ylim=(0, None), xticks=list(rounds))
    speed.set(ylabel="conversations' tokens per second")
    speed.grid(alpha=0.3)
    speed.legend()
    _shares(held, bars)
    return _png(figure)


def steering_png(found: steering.Measured, bars: Sequence[Bar]) -> bytes:
    """Every side's tokens per second, all rounds, and every bar as a share of what it is held to, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    speed, held = figure.subplots(1, 2)
    sides = found.blocks()
    for row, blocks in enumerate(sides.values()):
        speed.plot([b.rate for b in blocks], [row] * len(blocks), "o", alpha=0.7)
    speed.set(
        title=f"{found.model}, {found.dtype}, {found.in_flight} in flight",
        xlabel="generated tokens per second",
        xlim=(0, None),
    )
    speed.set_yticks(range(len(sides)), list(sides))
    speed.invert_yaxis()
    speed.grid(alpha=0.3)
    _shares(held, bars)
    return _png(figure)


def turns_png(found: turns.Turns) -> bytes:
    """By turn: prompt tokens that were computed, and seconds over the base model's, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    computed, seconds = figure.subplots(1, 2)
    names = {"base": "unsteered", "all": "steered on all tokens", "generated": "steered on generated tokens"}
    count = len(found.sides["base"][0])
    numbers = range(1, count + 1)
    prompts = [turn.prompt for turn in found.sides["base"][0]]
    computed.plot(numbers, prompts, color="0.6", linestyle=":", label="the whole prompt")
    for side in found.sides:
        values = [float("nan") if value is None else value for value in found.computed(side)]
        computed.plot(numbers, values, marker="o", label=names[side])
        if side != "base":
            seconds.plot(numbers, found.seconds(side), marker="o", color=f"C{list(found.sides).index(side)}")
    computed.set(title="prompt tokens computed", xlabel="turn", ylim=(0, None), xticks=list(numbers))
    computed.legend()
    seconds.set(title="time of a turn, over unsteered", xlabel="turn", ylim=(0, None), xticks=list(numbers))
    for axes in (computed, seconds):
        axes.grid(alpha=0.3)
    return _png(figure)


def _shares(held: Axes, bars: Sequence[Bar]) -> None:
    names = [f"{b.name}  {'unknown' if b.value is None else f'{b.value:.3g}'} / {b.bar:g}" for b in bars]
    shares = [_share(b) for b in bars]
    held.barh(names, shares, color=["C2" if b.met else "C3" for b in bars])
    held.axvline(1.0, color="0.3", linestyle="--")
    held.invert_yaxis()
    held.set(title="share of the bar (green: met)", xlim=(0, max(1.2, *shares)))


def _share(bar: Bar) -> float:
    """Of its bar; what has to be 0 and is counts as whole, what is not as twice too much."""
    if bar.value is None:
        return 0.0
    if bar.bar == 0:
        return 2.0 if bar.value else 1.0
    return bar.value / bar.bar


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
