"""Profiles to measure with: random directions on every layer, so small that they bend answers and break nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from ...models.card import ModelCard
from ...steering.document import BaseEntry, Document
from ...steering.entries import AblateEntry, AddEntry, GateEntry
from ...steering.profile import Profile, save_profile
from ...steering.scope import Phase

STRENGTH = 0.5
"""Length of an added vector."""


def vectors(card: ModelCard, count: int, root: Path) -> tuple[tuple[str, str], ...]:
    """Write `count` different profiles that add a vector at every layer; returns (folder, SHA-256) of each."""
    layers, width = card.num_layers, card.hidden_size
    generator = torch.Generator().manual_seed(0)
    out = []
    for number in range(count):
        directions = torch.randn(layers, width, generator=generator)
        profile = everywhere(card, root, f"vector-{number}", directions, STRENGTH)
        out.append((str(profile.directory), profile.sha256))
    return tuple(out)


def everywhere(
    card: ModelCard, root: Path, name: str, directions: torch.Tensor, strength: float, tokens: Phase = "all"
) -> Profile:
    """Write a profile that adds one of the directions, [layers, width], at each layer, at this length."""
    tensors = {f"v{layer}": one / one.norm() for layer, one in enumerate(directions)}
    entries = [
        AddEntry(layer=layer, file="v.safetensors", tensor=f"v{layer}", strength=strength, tokens=tokens)
        for layer in range(len(directions))
    ]
    document = Document(format=1, name=name, base=_base(card), interventions=list(entries))
    return save_profile(root / f"{name}@1", document, tensors={"v.safetensors": tensors})


def conditional(card: ModelCard, count: int, rank: int, root: Path) -> tuple[tuple[str, str], ...]:
    """As `vectors`, for profiles that take `rank` directions out at every layer where a condition holds, which each
    token is asked at the first layer."""
    layers, width = card.num_layers, card.hidden_size
    generator = torch.Generator().manual_seed(1)
    out = []
    for number in range(count):
        tensors = {f"d{layer}": torch.randn(rank, width, generator=generator) for layer in range(layers)}
        tensors["condition"] = torch.randn(width, generator=generator)
        entries = [
            AblateEntry(kind="ablate", layer=layer, file="d.safetensors", tensor=f"d{layer}", strength=0.5)
            for layer in range(layers)
        ]
        gate = GateEntry(layer=0, file="d.safetensors", tensor="condition", threshold=0.0)
        document = Document(
            format=1, name=f"conditional-{number}", base=_base(card), interventions=list(entries), gate=gate
        )
        profile = save_profile(root / f"conditional-{number}@1", document, tensors={"d.safetensors": tensors})
        out.append((str(profile.directory), profile.sha256))
    return tuple(out)


def _base(card: ModelCard) -> BaseEntry:
    return BaseEntry(model=card.name, sha256=card.sha256)
