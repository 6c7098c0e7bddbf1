"""Reading the files of a profile: paths that stay inside, tensors without pickle, errors that name file and field."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ..errors import BadInput, NotFound
from ..home import file_sha256, indexed_shards, listed_sha256

MAX_TEXT = 1 << 20
"""Largest YAML or JSON file read, in bytes."""

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
"""File endings that may hold pickled code."""


def inside(directory: Path, relative: str, where: str) -> Path:
    """The file or folder `relative` names below `directory`, links followed.

    Raises:
        BadInput: it is absolute, climbs out, leads out through a link, or cannot be a path at all.
    """
    fix = "Name a file below the profile's folder, such as vectors.safetensors"
    parts = relative.split("/")
    if not relative or "\0" in relative or "\\" in relative or relative.startswith(("/", "~")) or ".." in parts:
        raise BadInput(f"path {relative!r} points outside the profile", where=where, fix=fix)
    try:
        root, path = directory.resolve(), (directory / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"path {relative!r} cannot be followed ({error})", where=where, fix=fix) from None
    if not path.is_relative_to(root) or path == root:
        raise BadInput(f"path {relative!r} points outside the profile", where=where, fix=fix)
    return path


def existing(directory: Path, relative: str, where: str, *, folder: bool = False) -> Path:
    """As `inside`, and the file (or folder) is there. Raises BadInput."""
    path = inside(directory, relative, where)
    try:
        found = path.is_dir() if folder else path.is_file()
    except OSError as error:
        raise BadInput(f"path {relative[:80]!r} cannot be read ({error.strerror})", where=where) from None
    if not found:
        raise BadInput(
            f"{'folder' if folder else 'file'} {relative} is missing",
            where=where,
            fix="Copy it in, or correct the path",
        )
    return path


def refuse_pickles(directory: Path) -> None:
    """Raises BadInput when a folder holds files that may run code when opened; nothing here ever opens one."""
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            if Path(name).suffix.lower() in PICKLES:
                raise BadInput(
                    f"{name} may hold pickled code and is never loaded",
                    where=str(Path(folder) / name),
                    fix="Convert it to .safetensors and delete it",
                )


def read_text(path: Path) -> str:
    """A small UTF-8 text file. Raises BadInput when it is too large, not text, or not readable."""
    try:
        size = path.stat().st_size
        if size > MAX_TEXT:
            raise BadInput(f"{size} bytes are too many (at most {MAX_TEXT})", where=str(path))
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BadInput."""
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON ({error})", where=str(path), fix="Write the file anew") from None
    if not isinstance(data, dict):
        raise BadInput("not a JSON object", where=str(path), fix="Write the file anew")
    return data


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, as float32 on the CPU.

    Args:
        path: the file.
        names: which tensors, or None for all.

    Raises:
        BadInput: the file is not safetensors; a tensor is missing, not of a floating type, or holds NaN or infinity.
    """
    if path.suffix != ".safetensors":
        raise BadInput(
            f"{path.name} is not a .safetensors file, and nothing else is loaded",
            where=str(path),
            fix="Convert it to .safetensors: pickled files may run code when opened",
        )
    out: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            known = sorted(file.keys())
            for name in known if names is None else names:
                if name not in known:
                    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
                    raise BadInput(
                        f"tensor {name!r} is missing", where=str(path), fix=f"The file holds: {shown or 'nothing'}"
                    )
                out[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"not a readable safetensors file ({error})", where=str(path), fix="Write or copy the file anew"
        ) from None
    for name, tensor in out.items():
        if not tensor.is_floating_point():
            raise BadInput(f"tensor {name!r} is {tensor.dtype}, not a floating type", where=str(path))
        out[name] = tensor = tensor.to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise BadInput(f"tensor {name!r} holds NaN or infinity", where=str(path), fix="Learn or export it again")
    return out


def tensor_sha256(tensor: torch.Tensor) -> str:
    """The SHA-256 of a tensor's shape and float32 bytes (little endian), in hex."""
    array = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(str(list(array.shape)).encode() + b"\n" + array.tobytes()).hexdigest()


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic finds wrong, with its field."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"]


def canonical_json(data: object) -> str:
    """JSON with sorted keys and no spaces. Raises ValueError on NaN and infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def model_sha256(directory: Path) -> str:
    """The identity of a base model: the SHA-256 of its model.safetensors, or of the list of its shards' hashes. The
    shards are those that the index names; without one, all that lie there.

    Raises:
        NotFound: there are no safetensors weights in the folder.
        BadInput: the index is broken, or a shard that it names is missing.
    """
    single = directory / "model.safetensors"
    if single.is_file():
        return file_sha256(single)
    index = directory / "model.safetensors.index.json"
    shards = _indexed(index) if index.is_file() else sorted(directory.glob("model-*.safetensors"))
    if not shards:
        raise NotFound(
            "no model.safetensors", where=str(directory), fix="Give the folder of a Hugging Face model in safetensors"
        )
    return listed_sha256(shards, file_sha256)


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names, which may be longer than other JSON here. Raises BadInput."""
    try:
        return indexed_shards(index, json.loads(index.read_bytes())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput("not an index of shards", where=str(index), fix="Download the model again") from None
