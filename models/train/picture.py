"""The training curve as a picture, drawn while the run goes on."""

from __future__ import annotations

import io
from collections.abc import Sequence

from .loop import Point


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
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
