"""The training benchmark as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bars import Bar

if TYPE_CHECKING:
    from .train import Measured


def train_png(found: Measured, bars: Sequence[Bar]) -> bytes:
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
    names = [f"{b.name}  {'unknown' if b.value is None else f'{b.value:.3g}'} / {b.bar:g}" for b in bars]
    shares = [0.0 if b.value is None else b.value / b.bar for b in bars]
    held.barh(names, shares, color=["C2" if b.met else "C3" for b in bars])
    held.axvline(1.0, color="0.3", linestyle="--")
    held.invert_yaxis()
    held.set(title="share of the bar (green: met)", xlim=(0, max(1.2, *shares)))
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
