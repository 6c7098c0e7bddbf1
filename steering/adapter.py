"""Reading LoRA adapters in PEFT's format, and refusing what could not be served as trained.

A module's update is `delta W = scale * B A` with A [r, in] and B [out, r]; `scale` is alpha / r, or alpha / sqrt(r) for
rsLoRA. Ranks are read from the tensors, so a `rank_pattern` needs no care.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ..errors import BadInput
from ..home import file_sha256
from .files import canonical_json, read_json, read_tensors

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight$")
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""String values of `init_lora_weights` that leave the base model's weights alone."""

_FORBIDDEN: Final[Mapping[str, str]] = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on the LoRA",
    "modules_to_save": "fully trained modules",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "alpha_pattern": "a different alpha per module",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "fan_in_fan_out": "transposed weights",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron layers",
}


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory.

    Attributes:
        directory: where it was read.
        modules: module path in the base model (`model.layers.0.self_attn.q_proj`) -> (A [r, in], B [out, r]), float32,
            the scale already inside B.
    """

    directory: Path
    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def adapter_sha256(directory: Path) -> str:
    """The identity of an adapter: its weights' bytes and what of its config changes the served weights."""
    config = read_json(directory / CONFIG)
    kept = {key: config.get(key) for key in ("r", "lora_alpha", "use_rslora")}
    return hashlib.sha256(f"{file_sha256(directory / WEIGHTS)} {canonical_json(kept)}".encode()).hexdigest()


def read_adapter(directory: Path) -> Adapter:
    """Read and check a PEFT folder.

    Raises:
        BadInput: a file is missing, or the adapter uses something that would not be served as it was trained.
    """
    if not (directory / WEIGHTS).is_file():
        old = directory / "adapter_model.bin"
        raise BadInput(
            f"{WEIGHTS} is missing" + (" and adapter_model.bin is a pickle file, never loaded" if old.exists() else ""),
            where=str(directory),
            fix="Save the adapter with PEFT's save_pretrained(..., safe_serialization=True)",
        )
    if not (directory / CONFIG).is_file():
        raise BadInput(f"{CONFIG} is missing", where=str(directory), fix="Copy it from the folder PEFT wrote")
    config = read_json(directory / CONFIG)
    rank, scale = _scale(config, str(directory / CONFIG))
    path = directory / WEIGHTS
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        match = _KEY.match(key)
        if match is None:
            raise BadInput(
                f"tensor {key!r} is not a LoRA A or B of a linear layer",
                where=str(path),
                fix="Train with LoRA on linear layers only",
            )
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise BadInput(f"tensor {key!r} has shape {list(tensor.shape)}, not a matrix", where=str(path))
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    if not halves:
        raise BadInput("the adapter holds no tensors", where=str(path), fix="Train or copy it again")
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, pair in sorted(halves.items()):
        if len(pair) < 2:
            raise BadInput(f"{module} has a LoRA {''.join(pair)} and no other half", where=str(path))
        a, b = pair["A"], pair["B"]
        if a.shape[0] != b.shape[1]:
            raise BadInput(
                f"{module}: A is {list(a.shape)} and B is {list(b.shape)}, their ranks differ", where=str(path)
            )
        if a.shape[0] != rank and not config.get("rank_pattern"):
            raise BadInput(f"{module} has rank {a.shape[0]} but {CONFIG} says r = {rank}", where=str(path))
        modules[module] = (a, b * scale(a.shape[0]))
        if not torch.isfinite(modules[module][1]).all():
            raise BadInput(f"{module} overflows once scaled", where=str(path), fix="Check lora_alpha")
    return Adapter(directory, modules)


class _Scale:
    """The factor PEFT puts before BA, as a function of a module's rank."""

    def __init__(self, alpha: float, rooted: bool) -> None:
        self.alpha, self.rooted = alpha, rooted

    def __call__(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.rooted else rank)


def _scale(config: Mapping[str, Any], where: str) -> tuple[int, _Scale]:
    """Check a config; its rank and scale. Raises BadInput."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"peft_type is {kind!r}, not 'LORA'", where=f"{where}: peft_type", fix="Train a LoRA adapter")
    for field, words in _FORBIDDEN.items():
        if config.get(field):
            raise BadInput(
                f"the adapter uses {words} ({field}), which is not supported",
                where=f"{where}: {field}",
                fix="Train a plain LoRA adapter",
            )
    if config.get("bias", "none") != "none":
        raise BadInput(f"bias is {config['bias']!r}, not 'none'", where=f"{where}: bias", fix="Train with bias='none'")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise BadInput(
            f"init_lora_weights {init!r} changes the base model's weights",
            where=f"{where}: init_lora_weights",
            fix="Convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 4096:
        raise BadInput(f"r is {rank!r:.40}, not a whole number from 1 to 4096", where=f"{where}: r")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not _finite(alpha):
        raise BadInput(f"lora_alpha is {alpha!r:.40}, not a number", where=f"{where}: lora_alpha")
    return rank, _Scale(float(alpha), bool(config.get("use_rslora")))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False
