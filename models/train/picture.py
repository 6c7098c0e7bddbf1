"""Pictures of training: the curve, drawn while the run goes on, and the comparison of placements."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .loop import Point

if TYPE_CHECKING:
    from .place import Placement
    from .sizes import Run


def curve_png(curve: Sequence[Point], title: str) -> bytes:
    """Loss (nats) and learning rate over the steps, as PNG bytes.

    Args:
        curve: at least one point.
        title: what is trained.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [p.step for p in curve]
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, [p.loss for p in curve], color="C0", marker="." if len(curve) < 3 else "")
    axes.set(title=title, xlabel="step", ylabel="loss of learned tokens, nats", ylim=(0, None))
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [p.learning_rate for p in curve], color="0.6", linestyle="--")
    rates.set(ylabel="learning rate (dashed)", ylim=(0, None))
    return _png(figure)


def rates_png(found: Placement) -> bytes:
    """Held-out loss of each placement over the learning rate, and the two seeds at its best one, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .place import curves

    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    seeds = {arm.name: (arm.rate, arm.pair) for arm in found.arms}
    for number, (name, points) in enumerate(curves(found).items()):
        axes.plot([r for r, _ in points], [v for _, v in points], color=f"C{number}", marker=".", label=name)
        rate, pair = seeds[name]
        if rate is not None and pair is not None:
            axes.plot([rate, rate], pair, color=f"C{number}", linestyle="", marker="o", fillstyle="none")
    axes.set(title=f"placements, {found.steps} steps (rings: two seeds)", xlabel="learning rate", xscale="log")
    axes.set(ylabel="held-out loss, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def sizes_png(runs: Sequence[Run]) -> bytes:
    """Held-out loss of each shape over its seconds of training, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for run in runs:
        label = f"{run.shape.name}, {run.parameters / 1e6:.1f}M parameters"
        axes.plot([m.seconds for m in run.marks], [m.loss for m in run.marks], marker=".", label=label)
    axes.set(
        title="base models of several sizes", xlabel="seconds of training", ylabel="held-out loss, nats", yscale="log"
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
