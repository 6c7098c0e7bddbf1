"""The schema of profile.yaml, and how a YAML text becomes one: every slip is one BadInput naming file and field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from ..errors import BadInput
from .files import canonical_json, read_text

FILE: Final = "profile.yaml"
STEPS: Final = ("decide", "arguments", "answer")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BaseEntry(_Strict):
    """The base model a profile was made for; `sha256` is that of its model.safetensors."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    sha256: Sha256


class AdapterEntry(_Strict):
    """A PEFT folder inside the profile; `sha256` is that of its adapter_model.safetensors."""

    path: str
    sha256: Sha256


class InterventionEntry(_Strict):
    """One vector: a tensor of shape [hidden_size], added `strength` times."""

    site: Literal["resid_post"] = "resid_post"
    layer: Annotated[int, Field(ge=0, le=10_000)]
    kind: Literal["add"] = "add"
    file: str
    tensor: str
    strength: Finite
    tokens: Literal["all", "prompt", "generated"] = "all"


class DeltaEntry(_Strict):
    """One weight delta: `strength * (B+ A+ - B- A-)` from two PEFT folders inside the profile."""

    plus: str
    minus: str
    strength: Finite


class Decoding(_Strict):
    """Decoding defaults; None leaves the choice to the request."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class Document(_Strict):
    """A whole profile.yaml."""

    format: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=50)] = "1"
    description: Annotated[str, Field(max_length=2000)] = ""
    base: BaseEntry
    adapter: AdapterEntry | None = None
    interventions: list[InterventionEntry] = []
    weight_deltas: list[DeltaEntry] = []
    decoding: Decoding = Decoding()
    steps: list[str] = list(STEPS)
    calibration: dict[str, JsonValue] | None = None
    provenance: dict[str, JsonValue] | None = None

    @field_validator("steps")
    @classmethod
    def _all_steps(cls, steps: list[str]) -> list[str]:
        if sorted(steps) != sorted(STEPS):
            raise ValueError(f"steering only some steps is not supported yet: leave `steps` out, or give all: {STEPS}")
        return list(STEPS)


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (a few lines of them can stand for gigabytes) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


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
    try:
        data = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = where if mark is None else f"{where}: line {mark.line + 1}"
        raise BadInput(f"not valid YAML ({error.problem})", where=line, fix="Correct the file") from None
    except Exception as error:  # YAML constructors raise almost anything on odd scalars, e.g. IndexError on !!int ""
        problem = re.sub(r"\s+", " ", str(error))[:200]
        raise BadInput(
            f"not valid YAML ({type(error).__name__}: {problem})", where=where, fix="Correct the file"
        ) from None
    if not isinstance(data, dict):
        raise BadInput("not a mapping of fields", where=where, fix="Start the file with `format: 1`")
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
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


def read_document(directory: Path) -> Document:
    """The document of a profile folder. Raises BadInput."""
    path = directory / FILE
    if not path.is_file():
        raise BadInput(f"{FILE} is missing", where=str(directory), fix="Give the folder of a profile")
    return parse_document(read_text(path), str(path))


def dump_document(document: Document) -> str:
    """The YAML text of a document, fields in their order, empty ones left out."""
    data = document.model_dump(mode="json", exclude_none=True)
    data = {k: v for k, v in data.items() if v not in ([], {}) and not (k == "steps" and v == list(STEPS))}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    # PyYAML writes some line ends (such as U+0085) as they are and reads them back as spaces: escape then
    return text if yaml.safe_load(text) == data else yaml.safe_dump(data, sort_keys=False, width=120)
