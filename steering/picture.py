"""A profile's calibration as a picture: what its strength does to held-out pairs, and how large it is at each layer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ..errors import BadInput
from .profile import Profile


def calibration_png(profile: Profile) -> bytes:
    """PNG bytes: on the left the mean margin of the held-out pairs against the strength, with what random directions of
    the same length do; on the right the vector's norm over the hidden state's, layer by layer.

    Raises:
        BadInput: the profile carries no check on held-out pairs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    calibration: Mapping[str, Any] = profile.document.calibration or {}
    check = calibration.get("check")
    if not check:
        raise BadInput(
            "carries no check on held-out pairs to draw",
            where=f"profile {profile.id}",
            fix="`trimtab steer learn means` makes profiles that do",
        )
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    strengths = [point["strength"] for point in check["points"]]
    left.plot(strengths, [point["margin"] for point in check["points"]], "o-", color="C0", label="learned vectors")
    plain = next(point["margin"] for point in check["points"] if point["strength"] == 0)
    size = _checked_at(check)
    for number, shift in enumerate(check["random_shift"] or ()):
        label = "random directions" if number == 0 else None
        left.plot(size, plain + shift, "x", color="0.4", label=label)
    left.axhline(0, color="0.8", zorder=0)
    for used in sorted({part.strength for part in profile.document.interventions if part.kind == "add"}):
        left.axvline(used, color="C1", linestyle="--", zorder=0, label=f"this profile, {used:g}")
    left.set(
        xlabel="strength", ylabel="log p(positive) - log p(negative), nats", title=f"{check['pairs']} held-out pairs"
    )
    left.legend(frameon=False)
    layers = calibration.get("layers") or {}
    right.bar(list(layers), [row["relative"] or 0 for row in layers.values()], color="C0")
    right.set(xlabel="layer", ylabel="||v|| / ||h||", title="at strength 1")
    figure.suptitle(profile.id)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _checked_at(check: Mapping[str, Any]) -> float:
    """The strength at which random directions were tried: the middle of the positive ones."""
    positive = sorted(point["strength"] for point in check["points"] if point["strength"] > 0)
    return float(positive[len(positive) // 2])
