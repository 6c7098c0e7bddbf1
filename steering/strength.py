"""A profile at another strength than it was calibrated at."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import torch

from ..errors import BadInput
from .intervention import Intervention
from .profile import Profile

MOST = 100.0
"""Largest strength, of either sign."""


def at_strength(profile: Profile, strength: float) -> Profile:
    """The profile with its steering times `strength`: added vectors, what rank-1 terms add, and weight deltas.

    Its adapter, condition and decoding stay as they are.

    Returns:
        The profile itself at strength 1; else one whose identity is made of the profile's and the strength.

    Raises:
        BadInput: the strength is no number that can be used, or the profile has nothing but an adapter.
    """
    if not math.isfinite(strength) or abs(strength) > MOST:
        raise BadInput(
            f"{strength!r} is no strength", where="strength", fix=f"Give a number between -{MOST:g} and {MOST:g}"
        )
    if not profile.interventions and not profile.deltas:
        raise BadInput(
            "the profile has an adapter alone, which has no strength",
            where=f"profile {profile.id}",
            fix="Leave the strength out, or name a profile with vectors or weight deltas",
        )
    if strength == 1.0:
        return profile
    identity = hashlib.sha256(f"{profile.sha256} at strength {float(strength)!r}".encode()).hexdigest()
    return replace(
        profile,
        interventions=tuple(_scaled(part, strength) for part in profile.interventions),
        deltas=tuple(replace(delta, strength=delta.strength * strength) for delta in profile.deltas),
        sha256=identity,
    )


def _scaled(part: Intervention, strength: float) -> Intervention:
    vector = None if part.vector is None else part.vector * strength
    if vector is not None and not torch.isfinite(vector).all():
        raise BadInput("a vector overflows at this strength", where="strength", fix="Lower it")
    low_rank = None if part.low_rank is None else part.low_rank.scaled(strength)
    return replace(part, vector=vector, low_rank=low_rank)
