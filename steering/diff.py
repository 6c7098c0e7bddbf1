"""What differs between two profiles: fields of their YAML, added vectors, adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .adapter import Adapter, read_adapter
from .intervention import fold
from .profile import Profile

UNCOUNTED = ("calibration", "provenance")
"""Fields of which only the fact that they differ is told."""


@dataclass(frozen=True)
class FieldChange:
    """A field of the YAML; None where a side lacks it."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class VectorChange:
    """What is added at a layer to the tokens of a scope.

    Attributes:
        norm_before, norm_after: of the added vector; None where a side adds none.
        cosine: between the two; None where a side adds none or a zero vector, or one of another width.
    """

    layer: int
    tokens: str
    norm_before: float | None
    norm_after: float | None
    cosine: float | None


@dataclass(frozen=True)
class AdapterChange:
    """The adapters' updates `B A`, all modules together.

    Attributes:
        relative: Frobenius norm of the difference over that of the first; None where a side has no adapter, and where
            it is unknown: the first is zero, or their shapes differ.
    """

    before: bool
    after: bool
    relative: float | None


@dataclass(frozen=True)
class Difference:
    """Everything that differs; `same` is equality of the profiles' identities."""

    same: bool
    fields: tuple[FieldChange, ...]
    vectors: tuple[VectorChange, ...]
    adapter: AdapterChange | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def diff(first: Profile, second: Profile) -> Difference:
    """What differs from the first profile to the second."""
    return Difference(
        first.sha256 == second.sha256,
        tuple(_fields(first, second)),
        tuple(_vectors(first, second)),
        _adapters(first, second),
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}.{i}")
    else:
        yield prefix, value


def _fields(first: Profile, second: Profile) -> Iterator[FieldChange]:
    documents = [p.document.model_dump(mode="json") for p in (first, second)]
    before, after = (dict(_flat({k: v for k, v in d.items() if k not in UNCOUNTED})) for d in documents)
    for field in dict.fromkeys((*before, *after)):
        if before.get(field) != after.get(field):
            yield FieldChange(field, before.get(field), after.get(field))
    for field in UNCOUNTED:
        if documents[0][field] != documents[1][field]:
            yield FieldChange(field, *("..." if d[field] is not None else None for d in documents))


def _vectors(first: Profile, second: Profile) -> Iterator[VectorChange]:
    sides = []
    for profile in (first, second):
        scopes = dict.fromkeys(part.scope for part in profile.interventions)
        sides.append(
            {
                (layer, str(scope)): edit.vector
                for scope in scopes
                for layer, edit in fold(part for part in profile.interventions if part.scope == scope).items()
                if edit.vector is not None
            }
        )
    before, after = sides
    for layer, tokens in sorted({*before, *after}):
        a, b = before.get((layer, tokens)), after.get((layer, tokens))
        if a is not None and b is not None and torch.equal(a, b):
            continue
        norms = [None if v is None else float(v.norm()) for v in (a, b)]
        cosine = None
        if a is not None and b is not None and all(norms) and a.shape == b.shape:
            cosine = float(torch.cosine_similarity(a, b, dim=0))
        yield VectorChange(layer, tokens, norms[0], norms[1], cosine)


def _adapters(first: Profile, second: Profile) -> AdapterChange | None:
    before, after = (None if p.adapter is None else read_adapter(p.adapter) for p in (first, second))
    if before is None or after is None:
        return None if before is after else AdapterChange(before is not None, after is not None, None)
    relative = _relative(before, after)
    return None if relative == 0 else AdapterChange(True, True, relative)


def _relative(before: Adapter, after: Adapter) -> float | None:
    """Frobenius norm of the difference of all updates over that of the first, 0 where there is none; None where it is
    unknown: the first is zero, or the shapes differ."""
    changed = whole = 0.0
    for module in {*before.modules, *after.modules}:
        updates = [
            m[1] @ m[0] if m is not None else None for m in (before.modules.get(module), after.modules.get(module))
        ]
        a, b = updates
        if a is not None and b is not None and a.shape != b.shape:
            return None  # of different base models
        zero = torch.zeros(())
        changed += float(((b if b is not None else zero) - (a if a is not None else zero)).square().sum())
        whole += 0.0 if a is None else float(a.square().sum())
    return 0.0 if not changed else (changed / whole) ** 0.5 if whole else None


def table(found: Difference) -> str:
    """The difference in words."""
    if found.same and not found.fields:
        return "the same"
    lines = [] if not found.same else ["the same content; told apart by what does not count for it:"]
    lines += [f"{c.field}: {_said(c.before)} -> {_said(c.after)}" for c in found.fields]
    for v in found.vectors:
        cosine = "unknown" if v.cosine is None else f"{v.cosine:.3f}"
        cosine = "" if None in (v.norm_before, v.norm_after) else f", cosine {cosine}"
        lines.append(f"layer {v.layer}, {v.tokens}: norm {_said(v.norm_before)} -> {_said(v.norm_after)}{cosine}")
    if found.adapter is not None:
        had, has = ("an adapter" if side else "none" for side in (found.adapter.before, found.adapter.after))
        if had != has:
            lines.append(f"adapter: {had} -> {has}")
        elif found.adapter.relative is None:
            lines.append("adapter: the update differs, by how much of its norm is unknown")
        else:
            lines.append(f"adapter: the update differs by {found.adapter.relative:.1%} of its norm")
    return "\n".join(lines)


def _said(value: Any) -> str:
    return "nothing" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
