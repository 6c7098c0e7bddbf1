"""Profiles: named, versioned, hashed bundles of adapter, interventions, weight deltas and decoding defaults.

A profile is a folder: `profile.yaml`, `*.safetensors` and optional PEFT folders, all below it. Its identity is the
SHA-256 of its canonical content: the fields of the YAML (defaults filled in, order irrelevant), the bytes of the
tensors they name, and the adapters' weights. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..errors import BadInput
from ..home import file_sha256, swap_folders
from .adapter import CONFIG, WEIGHTS, Adapter, adapter_sha256, read_adapter
from .document import FILE, Decoding, Document, dump_document, parse_document, read_document
from .edits import read_edits
from .files import canonical_json, existing, inside, refuse_pickles
from .intervention import Gate, Intervention

__all__ = ["Decoding", "Document", "Profile", "WeightDelta", "load_profile", "save_profile"]

_READ_WIDTH = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj"})
_WRITE_WIDTH = frozenset({"o_proj", "down_proj"})


@dataclass(frozen=True)
class WeightDelta:
    """`strength * (B+ A+ - B- A-)`, from two PEFT folders."""

    plus: Path
    minus: Path
    strength: float


@dataclass(frozen=True, eq=False)
class Profile:
    """A profile that passed every check.

    Attributes:
        directory: its folder.
        name, version, description: as in the YAML.
        base_model, base_sha256: the base model's name and the SHA-256 of its model.safetensors.
        adapter: the PEFT folder, or None.
        interventions: edits of the residual stream, already times their strengths.
        gate: the condition under which these act, or None.
        deltas: weight deltas.
        decoding: defaults for requests that leave them open.
        sha256: the profile's identity.
        document: the whole YAML, for `calibration`, `provenance` and printing.
    """

    directory: Path
    name: str
    version: str
    description: str
    base_model: str
    base_sha256: str
    adapter: Path | None
    interventions: tuple[Intervention, ...]
    gate: Gate | None
    deltas: tuple[WeightDelta, ...]
    decoding: Decoding
    sha256: str
    document: Document

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with an intervention, in order."""
        return tuple(sorted({part.layer for part in self.interventions}))


def load_profile(
    directory: Path,
    *,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    base_sha256: str | None = None,
) -> Profile:
    """Read a profile and check everything about it.

    Args:
        directory: the profile's folder.
        hidden_size, num_layers, base_sha256: the base model in use; None leaves that check out.

    Raises:
        BadInput: naming file and field, what is wrong and what to do.
    """
    directory = Path(directory)
    document = read_document(directory)
    where = str(directory / FILE)
    refuse_pickles(directory)
    if base_sha256 is not None and document.base.sha256 != base_sha256:
        raise BadInput(
            f"made for base model {document.base.model} {document.base.sha256[:12]}, in use is {base_sha256[:12]}",
            where=f"{where}: base.sha256",
            fix="Use the base model it was made for, or learn the profile again on this one",
        )
    interventions, gate, digests = read_edits(directory, document, where, hidden_size, num_layers)
    adapter, deltas, hashes = _adapters(directory, document, where, hidden_size, num_layers)
    content = {"document": document.identity(), "tensors": digests, "adapters": hashes}
    return Profile(
        directory=directory,
        name=document.name,
        version=document.version,
        description=document.description,
        base_model=document.base.model,
        base_sha256=document.base.sha256,
        adapter=adapter,
        interventions=interventions,
        gate=gate,
        deltas=deltas,
        decoding=document.decoding,
        sha256=hashlib.sha256(canonical_json(content).encode()).hexdigest(),
        document=document,
    )


def _adapters(
    directory: Path, document: Document, where: str, hidden_size: int | None, num_layers: int | None
) -> tuple[Path | None, tuple[WeightDelta, ...], list[str]]:
    """The PEFT folders, checked by themselves and against each other, and their hashes in the document's order."""
    named: list[tuple[str, str]] = []
    if document.adapter is not None:
        named.append(("adapter.path", document.adapter.path))
    for number, delta in enumerate(document.weight_deltas):
        named += [(f"weight_deltas.{number}.plus", delta.plus), (f"weight_deltas.{number}.minus", delta.minus)]
    shapes: dict[str, tuple[int, int]] = {}
    paths, hashes = [], []
    for field, relative in named:
        path = existing(directory, relative, f"{where}: {field}", folder=True)
        for name in (CONFIG, WEIGHTS):
            inside(directory, f"{relative}/{name}", f"{where}: {field}")  # a link out of the profile is refused
        _check_shapes(read_adapter(path), shapes, f"{where}: {field}", hidden_size, num_layers)
        paths.append(path)
        hashes.append(adapter_sha256(path))
    adapter = None
    if document.adapter is not None:
        adapter = paths[0]
        found = file_sha256(adapter / WEIGHTS)
        if found != document.adapter.sha256:
            raise BadInput(
                f"{WEIGHTS} has SHA-256 {found[:12]}..., not {document.adapter.sha256[:12]}...",
                where=f"{where}: adapter.sha256",
                fix="Copy the adapter again, or correct the hash if the change was meant",
            )
    rest = paths[len(paths) - 2 * len(document.weight_deltas) :]
    deltas = tuple(
        WeightDelta(plus, minus, entry.strength)
        for plus, minus, entry in zip(rest[::2], rest[1::2], document.weight_deltas, strict=True)
    )
    return adapter, deltas, hashes


def _check_shapes(
    adapter: Adapter, shapes: dict[str, tuple[int, int]], where: str, hidden_size: int | None, num_layers: int | None
) -> None:
    """Each module must have the same in and out width in all adapters, and fit the base model as far as it is known."""
    for module, (a, b) in adapter.modules.items():
        shape = (b.shape[0], a.shape[1])
        if shapes.setdefault(module, shape) != shape:
            raise BadInput(
                f"{module} is {list(shape)} here and {list(shapes[module])} in another adapter of the profile",
                where=where,
                fix="All adapters of a profile come from one base model",
            )
        parts = module.split(".")
        width = shape[1] if parts[-1] in _READ_WIDTH else shape[0] if parts[-1] in _WRITE_WIDTH else None
        if hidden_size is not None and width is not None and width != hidden_size:
            raise BadInput(
                f"{module} has width {width}, the base model {hidden_size}", where=where, fix="Use its own base model"
            )
        layer = next((int(n) for p, n in itertools.pairwise(parts) if p == "layers" and n.isdigit()), 0)
        if num_layers is not None and layer >= num_layers:
            raise BadInput(
                f"{module} does not exist, the base model has {num_layers} layers",
                where=where,
                fix="Use the base model it was trained on",
            )


def save_profile(
    directory: Path,
    document: Document,
    *,
    tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    adapters: Mapping[str, Path] | None = None,
    replace: bool = False,
    hidden_size: int | None = None,
    num_layers: int | None = None,
) -> Profile:
    """Write a profile and check it, whole or not at all.

    Args:
        directory: where to; its parents are made.
        document: the YAML's content.
        tensors: file name -> tensors of that safetensors file.
        adapters: folder inside the profile -> PEFT folder to copy from (its config and weights only).
        replace: whether a profile that is already there may be replaced.
        hidden_size, num_layers: the base model, as far as it is known.

    Raises:
        BadInput: the profile would not load, or `directory` is taken; nothing is changed.
        OSError: the disk is full or the folder cannot be written; nothing is changed.
    """
    with staged(directory, replace=replace) as stage:
        (stage / FILE).write_text(dump_document(document), encoding="utf-8")
        for name, group in (tensors or {}).items():
            path = inside(stage, name, f"{FILE}: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.detach().to("cpu", torch.float32).contiguous() for key, value in group.items()}, path)
        for name, source in (adapters or {}).items():
            copy_adapter(source, inside(stage, name, f"{FILE}: {name}"))
        try:
            load_profile(stage, hidden_size=hidden_size, num_layers=num_layers)
        except BadInput as error:  # name the profile's place, not the passing one
            place = None if error.where is None else error.where.replace(str(stage), str(directory))
            raise BadInput(error.what, where=place, fix=error.fix) from None
    return load_profile(directory)


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the two files of a PEFT folder that matter. Raises BadInput when it is not a usable adapter."""
    read_adapter(source)
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, target / name)


def check_free(directory: Path, *, replace: bool = False) -> bool:
    """Whether a profile is in `directory` that may be replaced; False when the place is free.

    Raises:
        BadInput: it is taken by something that may not be replaced, or is `.` or `..`.
    """
    if directory.name in ("", ".."):  # a folder is made beside it and takes its place, which needs a name
        raise BadInput("has no name of its own", where=str(directory), fix="Name the folder to make, such as ./mine")
    taken = any(directory.iterdir()) if directory.is_dir() else directory.exists()  # an empty folder is free
    if taken and not replace:
        raise BadInput(
            "already exists", where=str(directory), fix="Choose another place or version, or ask to replace it"
        )
    if taken and not (directory / FILE).is_file():
        raise BadInput(
            "is not a profile, so it is not replaced", where=str(directory), fix="Choose another place, or move it away"
        )
    return taken


@contextmanager
def staged(directory: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder that becomes `directory` when the block ends well, and vanishes when it does not.

    Raises:
        BadInput: `directory` is taken and may not be replaced.
    """
    directory = Path(directory)
    taken = check_free(directory, replace=replace)
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        stage.chmod(0o755)
        yield stage
        for folder, _, names in os.walk(stage):
            for name in names:
                _sync(Path(folder) / name)
        if taken:
            _replace(directory, stage)
        else:
            os.rename(stage, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(directory: Path, stage: Path) -> None:
    """Put `stage` in the place of `directory`, whose content goes to the stage or away."""
    try:
        swap_folders(stage, directory)
    except OSError:  # not on every disk: step aside, and come back if the second rename fails
        aside = stage.with_name(stage.name + ".old")
        os.rename(directory, aside)
        try:
            os.rename(stage, directory)
        except OSError:
            os.rename(aside, directory)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_profile_text(text: str) -> Document:
    """The document in a YAML text; for editors and tests. Raises BadInput."""
    return parse_document(text, FILE)
