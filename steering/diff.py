"""What differs between two profiles: fields of their YAML, and the tensors that these name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch

from .adapter import Adapter, read_adapter
from .intervention import Edit, LowRank, fold
from .profile import Profile, WeightDelta

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
class TermsChange:
    """What rank-1 terms do at a layer to the tokens of a scope.

    Attributes:
        rank_before, rank_after: how many terms; None where a side has none.
        relative: of what the terms make of h, bounds and biases left aside: Frobenius norm of the difference over that
            of the first. None where a side has no terms, or the first does nothing, or their widths differ.
    """

    layer: int
    tokens: str
    rank_before: int | None
    rank_after: int | None
    relative: float | None


@dataclass(frozen=True)
class GateChange:
    """The vectors of two conditions, by their cosine; None for those of different width."""

    cosine: float | None


@dataclass(frozen=True)
class DeltaChange:
    """The weight delta with this number, its strength left aside; `relative` as for adapters."""

    number: int
    relative: float | None


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
    """Everything that differs; `same` is equality of the profiles' identities. What only one side has shows in the
    fields, too: `gate` and `deltas` are of what both have."""

    same: bool
    fields: tuple[FieldChange, ...]
    vectors: tuple[VectorChange, ...]
    adapter: AdapterChange | None
    terms: tuple[TermsChange, ...]
    gate: GateChange | None
    deltas: tuple[DeltaChange, ...]

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
        tuple(_terms(first, second)),
        _gate(first, second),
        tuple(_deltas(first, second)),
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


def _edits(profile: Profile) -> dict[tuple[int, str], Edit]:
    """What is done at each layer to the tokens of each scope."""
    scopes = dict.fromkeys(part.scope for part in profile.interventions)
    return {
        (layer, str(scope)): edit
        for scope in scopes
        for layer, edit in fold(part for part in profile.interventions if part.scope == scope).items()
    }


def _vectors(first: Profile, second: Profile) -> Iterator[VectorChange]:
    before, after = ({k: e.vector for k, e in _edits(p).items() if e.vector is not None} for p in (first, second))
    for layer, tokens in sorted({*before, *after}):
        a, b = before.get((layer, tokens)), after.get((layer, tokens))
        if a is not None and b is not None and torch.equal(a, b):
            continue
        norms = [None if v is None else float(v.norm()) for v in (a, b)]
        cosine = None if a is None or b is None else _cosine(a, b)
        yield VectorChange(layer, tokens, norms[0], norms[1], cosine)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float | None:
    known = a.shape == b.shape and bool(a.any()) and bool(b.any())
    return float(torch.cosine_similarity(a, b, dim=0)) if known else None


def _terms(first: Profile, second: Profile) -> Iterator[TermsChange]:
    before, after = ({k: e.low_rank for k, e in _edits(p).items() if e.low_rank is not None} for p in (first, second))
    for layer, tokens in sorted({*before, *after}):
        a, b = before.get((layer, tokens)), after.get((layer, tokens))
        if a is None or b is None:
            ranks = [None if side is None else side.rank for side in (a, b)]
            yield TermsChange(layer, tokens, ranks[0], ranks[1], None)
        elif not all(torch.equal(getattr(a, one.name), getattr(b, one.name)) for one in dataclass_fields(LowRank)):
            maps = [Adapter(Path(), {"": (side.read, side.write.T)}) for side in (a, b)]
            yield TermsChange(layer, tokens, a.rank, b.rank, _relative(*maps))


def _gate(first: Profile, second: Profile) -> GateChange | None:
    a, b = first.gate, second.gate
    if a is None or b is None or torch.equal(a.vector, b.vector):
        return None
    return GateChange(_cosine(a.vector, b.vector))


def _deltas(first: Profile, second: Profile) -> Iterator[DeltaChange]:
    for number, (a, b) in enumerate(zip(first.deltas, second.deltas, strict=False)):
        relative = _relative(_direction(a), _direction(b))
        if relative != 0:
            yield DeltaChange(number, relative)


def _direction(delta: WeightDelta) -> Adapter:
    """B+ A+ - B- A- as one adapter."""
    plus, minus = read_adapter(delta.plus), read_adapter(delta.minus)
    modules = dict(plus.modules)
    for module, (a, b) in minus.modules.items():
        other = modules.get(module)
        modules[module] = (a, -b) if other is None else (torch.cat([other[0], a]), torch.cat([other[1], -b], 1))
    return Adapter(delta.plus, modules)


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
        cosine = "" if None in (v.norm_before, v.norm_after) else f", cosine {_known(v.cosine)}"
        lines.append(f"layer {v.layer}, {v.tokens}: norm {_norms(v.norm_before, v.norm_after)}{cosine}")
    for t in found.terms:
        far = "" if None in (t.rank_before, t.rank_after) else f", {_far(t.relative)}"
        lines.append(f"layer {t.layer}, {t.tokens}: terms {_said(t.rank_before)} -> {_said(t.rank_after)}{far}")
    if found.gate is not None:
        lines.append(f"gate: another vector, cosine {_known(found.gate.cosine)}")
    lines += [f"weight_deltas.{d.number}: the direction {_far(d.relative)}" for d in found.deltas]
    if found.adapter is not None:
        had, has = ("an adapter" if side else "none" for side in (found.adapter.before, found.adapter.after))
        lines.append(
            f"adapter: {had} -> {has}" if had != has else f"adapter: the update {_far(found.adapter.relative)}"
        )
    return "\n".join(lines or ["the content differs, and does the same"])


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _known(cosine: float | None) -> str:
    return "unknown" if cosine is None else f"{cosine:.3f}"


def _norms(before: float | None, after: float | None) -> str:
    """Both numbers, with as many digits as tell them apart."""
    for digits in (4, 8, 17):
        said = ["nothing" if norm is None else f"{norm:.{digits}g}" for norm in (before, after)]
        if said[0] != said[1] or before == after:
            break
    return " -> ".join(said)


def _far(relative: float | None) -> str:
    """How far two updates are apart, in words."""
    if relative is None:
        return "differs, by how much of its norm is unknown"
    if relative == 0:
        return "differs in biases or bounds alone"
    return f"differs by {relative:.1%} of its norm" if relative >= 0.0005 else f"differs by {relative:.1g} of its norm"
