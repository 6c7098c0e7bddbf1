"""A verification as a picture: how far each profile moves the model, and how far the server is from the reference."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..steering.proof import Report

FLOOR = 1e-7
"""Nats: where the axis begins; what is smaller, zero too, is drawn there."""


def verify_png(report: Report) -> bytes:
    """One line a profile on a logarithmic axis, as PNG bytes: a dot for its largest difference from the reference, a
    square for its largest change against the unsteered model, and the tolerance between them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    checks = report.checks
    figure = Figure(figsize=(9, 1.4 + 0.32 * len(checks)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, check in enumerate(checks):
        colour = "C3" if check.problems else "C2"
        far = max(check.difference, FLOOR)
        if check.moved is not None:
            moved = max(check.moved, FLOOR)
            axes.plot([far, moved], [row, row], color="0.85", zorder=1)
            axes.plot(moved, row, "s", color="C0", label="moved against the unsteered model" if row == 1 else None)
        axes.plot(far, row, "o", color=colour, label="difference from the reference" if row == 0 else None)
    axes.axvline(report.tolerance, color="0.3", linestyle="--", label=f"tolerance, {report.tolerance:g}")
    axes.set_xscale("log")
    axes.set_yticks(range(len(checks)), [check.name for check in checks])
    axes.invert_yaxis()
    axes.set(title=f"verified on {report.model}", xlabel="largest difference of a token's log probability, nats")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
