"""A profile's calibration as a picture: what its strength does to held-out pairs, and how large it is at each layer."""

from __future__ import annotations

import io
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from ..errors import BadInput
from .files import first_problem
from .profile import Profile


class _Point(BaseModel):
    strength: FiniteFloat
    margin: FiniteFloat


class _Check(BaseModel):
    """What `methods.difference_of_means.check` reports, as far as it is drawn."""

    pairs: int
    points: Annotated[list[_Point], Field(min_length=1)]
    random_shift: list[FiniteFloat] | None = None


class _Layer(BaseModel):
    relative: FiniteFloat | None


class _Calibration(BaseModel):
    check: _Check | None = None
    layers: dict[str, _Layer] = {}


def calibration_png(profile: Profile) -> bytes:
    """PNG bytes: on the left the mean margin of the held-out pairs against the strength, with what random directions of
    the same length do; on the right the vector's norm over the hidden state's, layer by layer.

    Raises:
        BadInput: the profile carries no check on held-out pairs, or none that can be drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    where = f"profile {profile.id}"
    fix = "Learn it with `trimtab steer learn means` and a share of prompts above 0 held out"
    try:
        calibration = _Calibration.model_validate(profile.document.calibration or {})
    except ValidationError as error:
        what = f"its calibration cannot be drawn ({first_problem(error)})"
        raise BadInput(what, where=where, fix=fix) from None
    check = calibration.check
    if check is None:
        raise BadInput("carries no check on held-out pairs to draw", where=where, fix=fix)
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    strengths = [point.strength for point in check.points]
    left.plot(strengths, [point.margin for point in check.points], "o-", color="C0", label="learned vectors")
    plain = next((point.margin for point in check.points if point.strength == 0), None)
    for number, shift in enumerate(check.random_shift or ()):
        label = "random directions" if number == 0 else None
        if plain is not None:
            left.plot(_checked_at(check), plain + shift, "x", color="0.4", label=label)
    left.axhline(0, color="0.8", zorder=0)
    for used in sorted({part.strength for part in profile.document.interventions if part.kind == "add"}):
        left.axvline(used, color="C1", linestyle="--", zorder=0, label=f"this profile, {used:g}")
    left.set(xlabel="strength", ylabel="log p(positive) - log p(negative), nats", title=f"{check.pairs} held-out pairs")
    left.legend(frameon=False)
    known = {layer: row.relative for layer, row in calibration.layers.items() if row.relative is not None}
    right.bar(list(known), list(known.values()), color="C0")
    right.set(xlabel="layer", ylabel="||v|| / ||h||", title="at strength 1")
    figure.suptitle(profile.id)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _checked_at(check: _Check) -> float:
    """The strength at which random directions were tried: the middle of the positive ones; 0 where there are none."""
    positive = sorted(point.strength for point in check.points if point.strength > 0)
    return positive[len(positive) // 2] if positive else 0.0
