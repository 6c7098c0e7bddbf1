"""Weight deltas: a profile's adapter and contrastive weight vectors as one plain LoRA.

Contrastive weight arithmetic (arXiv 2511.05408): from two fine-tunes of one base, `w = theta+ - theta-`; a profile adds
`k w`. For LoRA that is `k (B+ A+ - B- A-)`, exactly rank <= r+ + r-, and a sum of LoRAs is their concatenation:
`[B1 B2] [A1; A2] = B1 A1 + B2 A2`. Averaging A and B separately would not be.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from ..errors import BadInput
from ..home import file_sha256
from .adapter import CONFIG, WEIGHTS, Adapter, adapter_sha256, read_adapter
from .files import canonical_json
from .profile import Profile

RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks a server can be set to; a merged adapter is padded with zeros to the next one."""

_LAYOUT: Final = 1
"""Part of the cache key: raise it when the merged files change for the same content."""


def legal_rank(rank: int) -> int:
    """The smallest servable rank that holds `rank`. Raises BadInput when there is none."""
    for legal in RANKS:
        if rank <= legal:
            return legal
    raise BadInput(
        f"the merged adapter has rank {rank}, a server takes at most {RANKS[-1]}",
        where="adapter",
        fix="Use adapters of smaller rank, or fewer weight deltas",
    )


def concatenate(parts: Sequence[tuple[Adapter, float]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The sum of scaled adapters, module by module.

    Args:
        parts: adapters with the factor each counts for; a factor of 0 adds nothing.

    Returns:
        module -> (A [rank, in], B [out, rank]) with one rank for all modules, padded with zeros, float32.

    Raises:
        BadInput: two adapters disagree on a module's width, one overflows, or the rank is too large.
    """
    blocks: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for adapter, factor in parts:
        for module, (a, b) in adapter.modules.items():
            mine = blocks.setdefault(module, [])
            if mine and (mine[0][0].shape[1], mine[0][1].shape[0]) != (a.shape[1], b.shape[0]):
                raise BadInput(
                    f"{module} has another width than in the other adapters",
                    where=str(adapter.directory),
                    fix="Combine adapters of one base model only",
                )
            if factor != 0.0:
                scaled = b * factor
                if not torch.isfinite(scaled).all():
                    raise BadInput(f"{module} overflows at this strength", where="strength", fix="Lower it")
                mine.append((a, scaled))
            elif not mine:
                mine.append((torch.zeros(0, a.shape[1]), torch.zeros(b.shape[0], 0)))
    rank = legal_rank(max((sum(a.shape[0] for a, _ in mine) for mine in blocks.values()), default=1))
    out: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, mine in sorted(blocks.items()):
        a, b = torch.cat([a for a, _ in mine]), torch.cat([b for _, b in mine], dim=1)
        missing = rank - a.shape[0]
        out[module] = (
            torch.nn.functional.pad(a, (0, 0, 0, missing)).contiguous(),
            torch.nn.functional.pad(b, (0, missing)).contiguous(),
        )
    return out


def merged_adapter(profile: Profile, cache: Path) -> tuple[Path, str] | None:
    """The one plain LoRA that serves a profile's adapter and weight deltas, in PEFT's format.

    Its alpha equals its rank (the scale is inside B), tensors are float32, every module has the same rank. Profiles
    with the same weights share one folder, whatever their vectors.

    Args:
        profile: a loaded profile.
        cache: the folder for merged adapters, by content; safe to share between processes and to delete.

    Returns:
        The PEFT folder and the SHA-256 of its weights, or None when the profile has neither adapter nor deltas.

    Raises:
        BadInput: the adapters do not fit together.
        OSError: the cache cannot be written.
    """
    if profile.adapter is None and not profile.deltas:
        return None
    wanted: list[tuple[Path, float]] = [] if profile.adapter is None else [(profile.adapter, 1.0)]
    for delta in profile.deltas:
        wanted += [(delta.plus, delta.strength), (delta.minus, -delta.strength)]
    recipe = [[adapter_sha256(path), factor] for path, factor in wanted]
    content = canonical_json([_LAYOUT, profile.base_model, recipe])
    folder = cache / hashlib.sha256(content.encode()).hexdigest()[:32]
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        modules = concatenate([(read_adapter(path), factor) for path, factor in wanted])
        write_adapter(folder, modules, profile.base_model)
    return folder, file_sha256(folder / WEIGHTS)


def served_name(profile: Profile, sha256: str) -> str:
    """The name a merged adapter is served under: it carries the content's hash, so no cache can mix up two contents."""
    return f"{profile.name}@{sha256[:12]}"


def write_adapter(folder: Path, modules: dict[str, tuple[torch.Tensor, torch.Tensor]], base_model: str) -> None:
    """Write modules as a PEFT folder, by one rename; when another process was first, its folder stays."""
    rank = next(iter(modules.values()))[0].shape[0]
    config = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(modules),  # whole paths: layers without the module's LoRA stay without it
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {}
    for module, (a, b) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        stage.chmod(0o755)
        save_file(tensors, stage / WEIGHTS, metadata={"format": "pt"})
        (stage / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        try:
            os.rename(stage, folder)
        except OSError:
            if not (folder / WEIGHTS).is_file():  # a broken leftover: replace it
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
