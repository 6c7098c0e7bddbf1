"""Bars that measured numbers are held to, and those that stand on what ships: sizes and the adapters' cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...yaml_text import load_yaml

ADAPTER_MINUTES = 10.0
"""Longest training of a shipped adapter."""
NANO_MB = 25.0
"""The small model on disk, weights and tokenizer, in 10^6 bytes."""
ALL_MB = 150.0
"""All weights in the repository, in 10^6 bytes."""
CHURN = 0.05
"""Held-out calls that another seed makes differently."""


@dataclass(frozen=True)
class Bar:
    """A number that has to be at least, or at most, `bar`. An unknown one is never met."""

    name: str
    value: float | None
    bar: float
    at: Literal["least", "most"]

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bar if self.at == "least" else self.value <= self.bar

    def to_json(self) -> dict[str, Any]:
        """A row of a document's `bars`."""
        return {"name": self.name, "value": self.value, "bar": self.bar, "at": self.at, "met": self.met}


def provenances(profiles: Path) -> dict[str, Mapping[str, Any]]:
    """What the profiles in a folder say of how they were made, by name; those that say nothing are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for file in sorted(profiles.glob("*/profile.yaml")):
        document = load_yaml(file.read_text(), str(file))
        if isinstance(document.get("provenance"), dict):
            found[str(document["name"])] = document["provenance"]
    return found


def card_bars(
    made: Mapping[str, Mapping[str, Any]], families: Mapping[str, Any], usual: Mapping[str, Any]
) -> list[Bar]:
    """`train.adapter_minutes`, the slowest adapter's of those that the default recipe made on a CPU, and `churn.FAMILY`
    for each family's profile.

    Args:
        usual: the default recipe's fields that say how much is learned.
    """
    trained = [
        p
        for p in made.values()
        if p.get("method") == "lora"
        and p.get("device", "cpu") == "cpu"
        and usual.items() <= (p.get("recipe") or {}).items()
    ]
    seconds = [p["seconds"] for p in trained if p.get("seconds") is not None]
    rows = [Bar("train.adapter_minutes", max(seconds) / 60 if seconds else None, ADAPTER_MINUTES, "most")]
    for family in families:
        scores = made.get(family, {}).get("scores") or {}
        rows.append(Bar(f"churn.{family}", scores.get("churn"), CHURN, "most"))
    return rows


def size_bars(model: Path, everything: Path) -> list[Bar]:
    """`size.nano_mb` of a model's folder and `size.all_mb` of all weights below a folder; None where there are none."""
    nano = [p for p in model.glob("*") if p.suffix == ".safetensors" or p.name.startswith("tokenizer")]
    weights = list(everything.rglob("*.safetensors"))
    return [
        Bar("size.nano_mb", _megabytes(nano), NANO_MB, "most"),
        Bar("size.all_mb", _megabytes(weights), ALL_MB, "most"),
    ]


def _megabytes(files: list[Path]) -> float | None:
    return sum(p.stat().st_size for p in files) / 1e6 if files else None
