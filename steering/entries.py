"""The entries of `interventions` and `gate` in a profile.yaml, and what they stand for.

One entry is one kind of edit; its tensors lie in a safetensors file of the profile. `terms.py` has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ..errors import BadInput
from . import terms
from .intervention import Gate, Intervention
from .scope import MOST_PLACES, Phase, Scope, Step

Finite = Annotated[float, Field(allow_inf_nan=False)]
Layer = Annotated[int, Field(ge=0, le=10_000)]
Places = Annotated[int, Field(ge=1, le=MOST_PLACES)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Tensors = Mapping[str, torch.Tensor]


class Strict(BaseModel):
    """No unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ScopeEntry(Strict):
    """A token scope of more than a phase; see `scope.Scope`."""

    phase: Phase = "all"
    first: Places | None = None
    last: Places | None = None
    at: list[Annotated[int, Field(ge=0, lt=MOST_PLACES)]] | None = Field(None, min_length=1, max_length=MOST_PLACES)
    after: Text | None = None
    until: Text | None = None

    @model_validator(mode="after")
    def _sensible(self) -> ScopeEntry:
        if self.last is not None and self.phase == "generated":
            raise ValueError("`last` counts prompt tokens: where an answer ends is not known before")
        if all(value is None for value in (self.first, self.last, self.at, self.after, self.until)):
            raise ValueError("gives no condition: write the phase alone")
        return self


def _form(tokens: Any) -> str:
    return "phase" if isinstance(tokens, str) else "conditions"


TokensEntry = Annotated[Annotated[Phase, Tag("phase")] | Annotated[ScopeEntry, Tag("conditions")], Discriminator(_form)]
"""`tokens`: a phase's name, or conditions."""


def scope_of(entry: Phase | ScopeEntry, steps: frozenset[Step] | None) -> Scope:
    """The scope that an entry's `tokens` and the profile's `steps` make together."""
    if isinstance(entry, str):
        return Scope(entry, steps=steps)
    at = None if entry.at is None else tuple(sorted(set(entry.at)))
    return Scope(entry.phase, entry.first, entry.last, at, entry.after, entry.until, steps)


class _Entry(Strict):
    """What all kinds have.

    Attributes of the class:
        tensors: the fields that name a tensor.
    """

    site: Literal["resid_post"] = "resid_post"
    layer: Layer
    file: str
    tokens: TokensEntry = "all"
    tensors: ClassVar[tuple[str, ...]] = ("tensor",)

    def names(self) -> list[str]:
        """The tensors that are read, in the order of `tensors`."""
        return [getattr(self, one) for one in self.tensors]

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """The interventions this entry stands for.

        Args:
            found: field -> tensor, float32, for the fields in `tensors`.
            steps: the agent's steps to which the profile is held; None for all.

        Raises:
            BadInput: `where` is the field that is at fault.
        """
        raise NotImplementedError


def _shaped(found: Tensors, field: str, *dims: int) -> torch.Tensor:
    """A tensor of one of these numbers of dimensions, not empty."""
    tensor = found[field]
    if tensor.dim() not in dims or tensor.numel() == 0:
        wanted = {1: "[hidden_size]", 2: "[n, hidden_size]"}
        raise BadInput(f"has shape {list(tensor.shape)}, not {' or '.join(wanted[d] for d in dims)}", where=field)
    return tensor


class AddEntry(_Entry):
    """`h + strength * v`. With `tokens: {at: [...]}` the tensor may be [n, hidden_size], one vector for each of these
    positions: front injection (ActAdd, arXiv 2308.10248)."""

    kind: Literal["add"] = "add"
    tensor: str
    strength: Finite

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """One intervention, or one a position."""
        vector = found["tensor"]
        at = self.tokens.at if isinstance(self.tokens, ScopeEntry) else None
        if at is None or vector.dim() == 1:
            vectors = [(scope_of(self.tokens, steps), _shaped(found, "tensor", 1))]
        elif _shaped(found, "tensor", 2).shape[0] != len(at) or len(set(at)) != len(at):
            raise BadInput(
                f"has {len(vector)} rows for the positions {at}", where="tensor", fix="Give one row for each"
            )
        else:
            assert isinstance(self.tokens, ScopeEntry)
            scopes = [scope_of(self.tokens.model_copy(update={"at": [place]}), steps) for place in at]
            vectors = list(zip(scopes, vector, strict=True))
        for _, one in vectors:
            if not torch.isfinite(one * self.strength).all():
                raise BadInput("the vector overflows at this strength", where="strength", fix="Lower it")
        return [Intervention(self.layer, one * self.strength, scope) for scope, one in vectors]


class AblateEntry(_Entry):
    """Take directions out of h; `terms.ablate`."""

    kind: Literal["ablate"]
    tensor: str
    strength: Finite = 1.0

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """One intervention."""
        low_rank = terms.ablate(_shaped(found, "tensor", 1, 2)).scaled(self.strength)
        return [Intervention(self.layer, None, scope_of(self.tokens, steps), low_rank)]


class ClampEntry(_Entry):
    """Keep the projection on a direction within bounds; `terms.clamp`."""

    kind: Literal["clamp"]
    tensor: str
    low: Finite | None = None
    high: Finite | None = None

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """One intervention."""
        low_rank = terms.clamp(_shaped(found, "tensor", 1), self.low, self.high)
        return [Intervention(self.layer, None, scope_of(self.tokens, steps), low_rank)]


class ClampFeatureEntry(_Entry):
    """Set a feature of a sparse autoencoder; `terms.clamp_feature`."""

    kind: Literal["clamp_feature"]
    encoder: str
    decoder: str
    bias: Finite = 0.0
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    value: Finite
    tensors: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """One intervention."""
        encoder, decoder = (_shaped(found, field, 1) for field in self.tensors)
        vector, low_rank = terms.clamp_feature(encoder, self.bias, decoder, self.value, self.threshold)
        return [Intervention(self.layer, vector, scope_of(self.tokens, steps), low_rank)]


class LoreftEntry(_Entry):
    """LoReFT; `terms.loreft`. `bias` is of shape [r]."""

    kind: Literal["loreft"]
    rotation: str
    weight: str
    bias: str
    strength: Finite = 1.0
    tensors: ClassVar[tuple[str, ...]] = ("rotation", "weight", "bias")

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """One intervention."""
        rotation, weight = (_shaped(found, field, 2) for field in ("rotation", "weight"))
        if weight.shape != rotation.shape or found["bias"].shape != rotation.shape[:1]:
            raise BadInput(
                f"rotation {list(rotation.shape)}, weight {list(weight.shape)} and bias {list(found['bias'].shape)} "
                "do not fit each other",
                where="rotation",
                fix="Give [r, hidden_size] twice, and [r]",
            )
        low_rank = terms.loreft(rotation, weight, found["bias"]).scaled(self.strength)
        return [Intervention(self.layer, None, scope_of(self.tokens, steps), low_rank)]


class ReftR1Entry(_Entry):
    """`h + strength * ReLU(w . h) w`; `terms.reft_r1`."""

    kind: Literal["reft_r1"]
    tensor: str
    strength: Finite = 1.0

    def parts(self, found: Tensors, steps: frozenset[Step] | None) -> list[Intervention]:
        """One intervention."""
        low_rank = terms.reft_r1(_shaped(found, "tensor", 1)).scaled(self.strength)
        return [Intervention(self.layer, None, scope_of(self.tokens, steps), low_rank)]


KINDS: Final = ("add", "ablate", "clamp", "clamp_feature", "loreft", "reft_r1")


def _kind(entry: Any) -> str:
    """The kind of an entry: `add` where none is given."""
    kind = entry.get("kind", "add") if isinstance(entry, Mapping) else getattr(entry, "kind", "add")
    return kind if isinstance(kind, str) else "add"


Entry = Annotated[
    Annotated[AddEntry, Tag("add")]
    | Annotated[AblateEntry, Tag("ablate")]
    | Annotated[ClampEntry, Tag("clamp")]
    | Annotated[ClampFeatureEntry, Tag("clamp_feature")]
    | Annotated[LoreftEntry, Tag("loreft")]
    | Annotated[ReftR1Entry, Tag("reft_r1")],
    Discriminator(_kind),
]


class GateEntry(Strict):
    """The condition under which the profile's interventions act; see `intervention.Gate`.

    Attributes:
        hold: `prompt` asks the last prompt token once for the whole answer, `token` each token for itself.
    """

    layer: Layer
    file: str
    tensor: str
    threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
    passes: Literal["above", "below"] = "above"
    hold: Literal["prompt", "token"] = "token"

    def gate(self, vector: torch.Tensor) -> Gate:
        """The gate. Raises BadInput for a vector that has no direction."""
        if vector.dim() != 1 or not vector.any():
            raise BadInput("a condition is one vector that is not zero", where="tensor")
        return Gate(self.layer, vector, self.threshold, self.passes == "above", self.hold == "prompt")
