"""Telling early that a training run has failed, so that it can be stopped and started from another seed.

Runs that fail differ from the others early on: their gradients vanish while the loss stands still (arXiv 2006.04884,
section 4.2). A loss that grows far beyond its start, or is no longer a number, will not come back either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GROWN = 3.0
"""A loss this many times the first one has diverged; a warm restart on a trained model stays well below."""
STILL = 0.98
"""A loss above this share of the first one has not moved."""
VANISHED = 1e-3
"""Gradients below this share of the early ones have vanished."""
JUDGED_AT = 0.2
"""Share of a run after which a loss that stands still is held against it."""
EARLY = 3
"""Points of the curve whose gradients count as early."""


def failure(losses: Sequence[float], norms: Sequence[float], done: float) -> str | None:
    """Why a run has failed, or None while it has not.

    Args:
        losses: the training curve so far, nats; one number a point.
        norms: mean gradient norm before clipping of the same points.
        done: share of the run's steps that are done, 0 to 1.
    """
    if not losses:
        return None
    first, last = losses[0], losses[-1]
    if not math.isfinite(last):
        return "the loss is no longer a number"
    if last > GROWN * first:
        return f"the loss grew from {first:.3g} to {last:.3g}"
    if done >= JUDGED_AT and len(norms) > EARLY:
        early = max(norms[:EARLY])
        if last >= STILL * first and norms[-1] < VANISHED * early:
            return f"the loss stands still at {last:.3g} and the gradients vanished ({early:.2g} to {norms[-1]:.2g})"
    return None
