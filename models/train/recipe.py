"""A training recipe: everything a run depends on besides the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import BadInput
from ...steering.files import read_text
from ...yaml_text import load_yaml


class Recipe(BaseModel):
    """How to train. Lengths are tokens, times are optimizer steps.

    The learning rate warms up over `warmup` steps, stays at `lr`, and falls to zero linearly over the last `decay`
    steps (warm-up, stable, decay). AdamW is bias-corrected (arXiv 2006.04884: without it fine-tuning fails at random);
    `muon` trains the matrices inside the blocks with Muon at a step matched to AdamW's (arXiv 2502.16982, section 2.2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(gt=0)
    batch: int = Field(16, gt=0, description="rows per step")
    length: int = Field(384, gt=0, description="tokens per row")
    lr: float = Field(gt=0)
    warmup: int = Field(50, ge=0)
    decay: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    beta2: float = Field(0.98, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)
    seed: int = Field(0, ge=0, lt=2**63)
    compile: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    repeat: int = Field(1, gt=0, description="how often a batch is learned, in other orders; 1: each once")
    value_ratio: float = Field(1.0, gt=0, description="learning rate of value projections over that of the others")
    made_up: int = Field(0, ge=0, description="base models: steps at the start with made-up tools only")
    made_up_share: float = Field(0.9, ge=0, le=1, description="base models: share of groups with made-up tools later")
    layers: int = Field(6, gt=0)
    hidden: int = Field(256, gt=0)
    intermediate: int = Field(704, gt=0)
    heads: int = Field(4, gt=0)
    kv_heads: int = Field(2, gt=0)
    rank: int = Field(8, gt=0)
    alpha: int = Field(16, gt=0)
    layers_from: int | None = Field(None, ge=0, description="adapters: the lowest layer adapted; all by default")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="adapters: names of the base's modules",
    )


def load_recipe(path: Path, **changes: Any) -> Recipe:
    """Read a recipe from YAML; `changes` that are not None win over the file.

    Raises:
        BadInput: the file is not there, is not YAML, or a field is unknown or out of range.
    """
    if not path.exists():
        raise BadInput("there is no such recipe", where=str(path))
    data = load_yaml(read_text(path), str(path))
    if not isinstance(data, dict):
        raise BadInput("a recipe is a mapping of fields to values", where=str(path))
    try:
        return Recipe.model_validate({**data, **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(first["msg"], where=f"{path}: {'.'.join(map(str, first['loc']))}") from error
