"""The edits of a profile: its entries and their tensors, read and checked together."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import BadInput
from .document import Document
from .entries import Entry, GateEntry
from .files import existing, read_tensors, tensor_sha256
from .intervention import Gate, Intervention
from .scope import Scope, check_scopes, idle


def read_edits(
    directory: Path, document: Document, where: str, hidden_size: int | None, num_layers: int | None
) -> tuple[tuple[Intervention, ...], Gate | None, list[str]]:
    """What a profile's entries stand for, and the digests of their tensors in the document's order.

    Args:
        where: the profile.yaml, for errors.
        hidden_size, num_layers: the base model's, as far as they are known.

    Raises:
        BadInput: naming file and field.
    """
    parts: list[Intervention] = []
    digests: list[str] = []
    scopes: list[list[Scope]] = []
    width = hidden_size
    for number, entry in enumerate(document.interventions):
        field = f"{where}: interventions.{number}"
        _check_layer(entry.layer, num_layers, f"{field}.layer")
        found = dict(zip(entry.tensors, _tensors(directory, entry.file, entry.names(), field), strict=True))
        digests += [tensor_sha256(tensor) for tensor in found.values()]
        try:
            own = entry.parts(found, document.held_to)
        except BadInput as error:
            raise _placed(error, entry, field, width) from None
        for part in own:
            width = _check_width(part, width, entry, field)
        parts += own
        scopes.append([part.scope for part in own])
    check_scopes([part.scope for part in parts], f"{where}: interventions")
    _check_acting(scopes, where)
    if document.gate is None:
        return tuple(parts), None, digests
    gate, digest = _gate(directory, document.gate, where, width, num_layers, parts)
    return tuple(parts), gate, [*digests, digest]


def _check_acting(scopes: list[list[Scope]], where: str) -> None:
    """Raises BadInput for an entry, of which these are the scopes, that can never act."""
    never = idle(scope for own in scopes for scope in own)
    for number, own in enumerate(scopes):
        if never.issuperset(own):
            raise BadInput(
                f"no token can ever be in the scope `{own[0]}`",
                where=f"{where}: interventions.{number}.tokens",
                fix="Its conditions, with those of `steps`, exclude each other: take one out",
            )


def _gate(
    directory: Path, entry: GateEntry, where: str, width: int | None, num_layers: int | None, parts: list[Intervention]
) -> tuple[Gate, str]:
    field = f"{where}: gate"
    _check_layer(entry.layer, num_layers, f"{field}.layer")
    (vector,) = _tensors(directory, entry.file, [entry.tensor], field)
    try:
        gate = entry.gate(vector)
    except BadInput as error:
        raise BadInput(
            f"tensor {entry.tensor!r}: {error.what}", where=f"{field}.{error.where}", fix=error.fix
        ) from None
    if width is not None and vector.numel() != width:
        raise BadInput(
            f"tensor {entry.tensor!r} has shape {list(vector.shape)}, not [{width}]",
            where=f"{field}.tensor",
            fix="A condition has the width of the model's residual stream",
        )
    early = [part.layer for part in parts if part.layer < entry.layer]
    if early or not parts:
        raise BadInput(
            f"an intervention acts at layer {min(early)}, before the condition is read" if early else "nothing to gate",
            where=f"{field}.layer",
            fix="Read the condition at the first layer that acts, or before it",
        )
    return gate, tensor_sha256(vector)


def _tensors(directory: Path, file: str, names: list[str], field: str) -> list[torch.Tensor]:
    path = existing(directory, file, f"{field}.file")
    try:
        found = read_tensors(path, names)
    except BadInput as error:
        raise BadInput(error.what, where=f"{field} ({file})", fix=error.fix) from None
    return [found[name] for name in names]


def _check_layer(layer: int, num_layers: int | None, where: str) -> None:
    if num_layers is not None and layer >= num_layers:
        raise BadInput(
            f"layer {layer} does not exist, the model has layers 0 to {num_layers - 1}",
            where=where,
            fix="Use the base model it was made for",
        )


def _placed(error: BadInput, entry: Entry, field: str, width: int | None) -> BadInput:
    """The error of an entry, with its place in the file and the tensor's name."""
    name = getattr(entry, error.where or "", None) if error.where in entry.tensors else None
    what = error.what if name is None else f"tensor {name!r} {error.what}"
    if width is not None:
        what = what.replace("hidden_size", str(width))
    return BadInput(what, where=f"{field}.{error.where}", fix=error.fix or "See the profile format")


def _check_width(part: Intervention, width: int | None, entry: Entry, field: str) -> int:
    """The width of the residual stream, which every tensor must have."""
    tensors = [part.vector] if part.vector is not None else []
    tensors += [part.low_rank.read, part.low_rank.write] if part.low_rank is not None else []
    for tensor in tensors:
        found = int(tensor.shape[-1])
        if width is not None and found != width:
            raise BadInput(
                f"tensor {entry.names()[0]!r} has shape {list(tensor.shape)}, not [{width}]",
                where=f"{field}.{entry.tensors[0]}",
                fix="Every vector has the width of the model's residual stream",
            )
        width = found
    assert width is not None
    return width
