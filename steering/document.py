"""The schema of profile.yaml, and how a YAML text becomes one: every slip is one BadInput naming file and field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field, JsonValue, ValidationError, field_validator

from ..errors import BadInput
from ..yaml_text import load_yaml
from .entries import KINDS, Entry, Finite, GateEntry, Strict
from .files import canonical_json, read_text
from .scope import STEPS, Step

FILE: Final = "profile.yaml"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BaseEntry(Strict):
    """The base model a profile was made for; `sha256` is that of its model.safetensors."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    sha256: Sha256


class AdapterEntry(Strict):
    """A PEFT folder inside the profile; `sha256` is that of its adapter_model.safetensors."""

    path: str
    sha256: Sha256


class DeltaEntry(Strict):
    """One weight delta: `strength * (B+ A+ - B- A-)` from two PEFT folders inside the profile."""

    plus: str
    minus: str
    strength: Finite


class Decoding(Strict):
    """Decoding defaults; None leaves the choice to the request."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class Document(Strict):
    """A whole profile.yaml.

    Attributes:
        gate: the condition under which the interventions act; None for always.
        steps: what the model is about while the interventions act (`scope.step_of`). An adapter and weight deltas are
            in the weights, and act at all steps.
    """

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=50)] = "1"
    description: Annotated[str, Field(max_length=2000)] = ""
    base: BaseEntry
    adapter: AdapterEntry | None = None
    interventions: list[Entry] = Field(default_factory=list)
    gate: GateEntry | None = None
    weight_deltas: list[DeltaEntry] = Field(default_factory=list)
    decoding: Decoding = Decoding()
    steps: list[Step] = Field(default_factory=lambda: list(STEPS))
    calibration: dict[str, JsonValue] | None = None
    provenance: dict[str, JsonValue] | None = None

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: list[Step]) -> list[Step]:
        if not steps:
            raise ValueError(f"names no step: leave `steps` out, or give some of {', '.join(STEPS)}")
        return [step for step in STEPS if step in steps]

    @property
    def held_to(self) -> frozenset[Step] | None:
        """The steps at which the interventions act; None for all."""
        return None if len(self.steps) == len(STEPS) else frozenset(self.steps)

    def identity(self) -> dict[str, Any]:
        """The fields that count for the profile's identity, JSON-ready."""
        data = self.model_dump(mode="json")
        if self.gate is None:  # a field that came later: a profile without it stays what it was
            del data["gate"]
        return data


_FIXES: Final = {
    "extra_forbidden": "Remove the key, or correct its spelling",
    "missing": "Add the field",
    "string_type": "Write the value in quotes",
}


def parse_document(text: str, where: str) -> Document:
    """A profile.yaml's text as a checked document.

    Raises:
        BadInput: and only that, for any text; `where` and the field are named.
    """
    data = load_yaml(text, where)
    if not isinstance(data, dict):
        raise BadInput("not a mapping of fields", where=where, fix="Start the file with `format: 1`")
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(_path(first["loc"])) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadInput(
            first["msg"].removeprefix("Value error, ") + more,
            where=f"{where}: {field}",
            fix=_FIXES.get(first["type"], "See the profile format in the documentation"),
        ) from None
    except RecursionError:
        raise BadInput("nested too deeply", where=where, fix="Flatten the file") from None
    try:
        data = document.model_dump(mode="json")
        canonical_json(data)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadInput(f"holds a value that JSON cannot ({error})", where=where, fix="Remove the value") from None
    return document


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Where in the file a fault is, without the names that the schema gives to alternatives."""
    parts = [str(part) for part in loc]
    entry = parts[:1] == ["interventions"] and len(parts) > 2 and parts[2] in KINDS
    parts = parts[:2] + parts[3:] if entry else parts
    return parts[:3] + parts[4:] if parts[2:3] == ["tokens"] else parts


def read_document(directory: Path) -> Document:
    """The document of a profile folder. Raises BadInput."""
    path = directory / FILE
    if not path.is_file():
        raise BadInput(f"{FILE} is missing", where=str(directory), fix="Give the folder of a profile")
    return parse_document(read_text(path), str(path))


def document_of(data: Mapping[str, Any]) -> Document:
    """The document that a command's arguments make. Raises BadInput naming the field."""
    try:
        return Document.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        fix = "Small letters, digits, `.`, `_` and `-`" if field == "name" else "Correct the argument"
        raise BadInput(first["msg"], where=f"profile: {field}", fix=fix) from None


def dump_document(document: Document) -> str:
    """The YAML text of a document, fields in their order, empty ones left out."""
    data = document.model_dump(mode="json", exclude_none=True)
    data = {k: v for k, v in data.items() if v not in ([], {}) and not (k == "steps" and v == list(STEPS))}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    # PyYAML writes some line ends (such as U+0085) as they are and reads them back as spaces: escape then
    try:
        if load_yaml(text, FILE) == data:
            return text
    except BadInput:
        pass
    return yaml.safe_dump(data, sort_keys=False, width=120)
