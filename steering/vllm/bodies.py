"""What is done to the JSON of requests and responses; pure functions on parsed JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import BadInput, TrimtabError
from .cache_keys import SCOPED_KEY
from .served import SALT_PREFIX, LiveProfile
from .steps import PROFILE_KEY, RECEIPT_KEY

OPTION = "trimtab"
"""Field of a request body with Trimtab's own options; see `Options`."""

_SMUGGLED_IN = ("vllm_xargs", "extra_args")

DEEPEST = 200
"""Levels of lists and objects in a request; a tool's schema has some ten."""


def error_body(error: TrimtabError) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 409: "ConflictError", 429: "RateLimitError"}
    kind = kinds.get(error.status, "InternalServerError")
    text = error.what + (f". {error.fix}" if error.fix else "")
    return {"error": {"message": text, "type": kind, "param": error.where, "code": error.status}}


def refuse_smuggling(body: Any) -> None:
    """Raises BadInput when a body sets, anywhere, what only the server may set: its engine fields, or the salt of a
    profile's states in the prefix cache, which would be read or filled by a request that is not steered by it."""
    level = [body]
    for _ in range(DEEPEST):
        if not level:
            return
        for part in level:
            if isinstance(part, dict):
                _refuse_fields(part)
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    raise BadInput(f"nested deeper than {DEEPEST} levels", where="body", fix="Send less")


def _refuse_fields(part: Mapping[str, Any]) -> None:
    for key in _SMUGGLED_IN:
        inner = part.get(key)
        for name in inner if isinstance(inner, dict) else ():
            if str(name).startswith(PROFILE_KEY):
                raise BadInput(
                    f"{key}.{name} is set by the server alone",
                    where=f"{key}.{name}",
                    fix="Name the profile as `model` instead",
                )
    salt = part.get("cache_salt")
    if isinstance(salt, str) and salt.startswith(SALT_PREFIX):
        raise BadInput(f"salts that begin with {SALT_PREFIX} belong to profiles", where="cache_salt", fix="Change it")


@dataclass(frozen=True)
class Options:
    """What a request asks of Trimtab: `{"profile": "calc", "strength": 0.7, "receipt": true}`, each as it likes.

    Attributes:
        profile: a profile to use instead of naming it as `model`, or None.
        strength: what its steering is multiplied by, or None for the profile's own.
        receipt: whether the answer carries the receipt.
    """

    profile: str | None = None
    strength: float | None = None
    receipt: bool = False


def options(body: dict[str, Any]) -> Options:
    """Take Trimtab's options out of a body. Raises BadInput when they are malformed."""
    found = body.pop(OPTION, None)
    if found is None:
        return Options()
    fix = 'Give some of {"profile": "a name", "strength": 0.7, "receipt": true}'
    if not isinstance(found, dict) or set(found) - {"profile", "strength", "receipt"}:
        raise BadInput("not an object with the known options", where=OPTION, fix=fix)
    kinds: dict[str, tuple[type, ...]] = {"profile": (str,), "strength": (int, float), "receipt": (bool,)}
    for name, value in found.items():
        wrong = isinstance(value, bool) and name != "receipt"
        if wrong or not isinstance(value, kinds[name]):
            raise BadInput(f"{value!r} is no {name}", where=f"{OPTION}.{name}", fix=fix)
    strength = found.get("strength")
    if strength is not None:
        try:
            strength = float(strength)
        except OverflowError:  # a whole number of hundreds of digits
            strength = math.inf
    return Options(found.get("profile"), strength, found.get("receipt", False))


def model_of(body: Mapping[str, Any], wanted: Options, base: Collection[str]) -> Any:
    """What a request's `model` stands for: the profile that its options name, if they do.

    Raises:
        BadInput: `model` names one profile and the options another.
    """
    model = body.get("model")
    if wanted.profile is None:
        return model
    if isinstance(model, str) and model not in base and model != wanted.profile:
        raise BadInput(
            f"`model` says {model!r}, the options say {wanted.profile!r}",
            where=f"{OPTION}.profile",
            fix="Name the profile once",
        )
    return wanted.profile


def rewrite(body: Mapping[str, Any], entry: LiveProfile | None, base: str, receipt: str | None) -> dict[str, Any]:
    """The body vLLM gets for a request to a profile, or to the base model.

    Args:
        body: the client's, without Trimtab's options.
        entry: the profile, or None for the base model.
        base: the base model's id.
        receipt: the id to keep a receipt under, or None.

    Raises:
        BadInput: a field is of the wrong kind.
    """
    out = dict(body)
    xargs, salt = body.get("vllm_xargs"), body.get("cache_salt")
    if xargs is not None and not isinstance(xargs, dict):
        raise BadInput("vllm_xargs is not an object", where="vllm_xargs", fix="Correct or remove it")
    added: dict[str, Any] = {} if receipt is None else {RECEIPT_KEY: receipt}
    if entry is not None:
        out["model"] = entry.adapter.name if entry.adapter else base
        added[PROFILE_KEY] = entry.profile.sha256
        if entry.scoped:
            added[SCOPED_KEY] = entry.scoped
        if salt is None or (isinstance(salt, str) and salt):  # anything else is left for vLLM to refuse
            out["cache_salt"] = entry.cache_salt(salt)
        for key, value in entry.profile.decoding.model_dump(exclude_none=True).items():
            names = (key, "max_completion_tokens") if key == "max_tokens" else (key,)
            if all(body.get(name) is None for name in names):
                out[key] = value
    if added:
        out["vllm_xargs"] = {**(xargs or {}), **added}
    return out


def events(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Split a server-sent stream into whole events, separators included, and the rest."""
    parts = buffer.split(b"\n\n")
    return [part + b"\n\n" for part in parts[:-1]], parts[-1]


@dataclass(frozen=True)
class Relabel:
    """Puts the profile's id where vLLM wrote the model it ran. `model` None leaves that as it is."""

    model: str | None

    def body(self, data: dict[str, Any], receipt: dict[str, Any] | None) -> dict[str, Any]:
        """A whole response."""
        if self.model is not None and "model" in data:
            data["model"] = self.model
        if receipt is not None:
            data["trimtab"] = {"receipt": receipt}
        return data

    def event(self, event: bytes) -> tuple[bytes, dict[str, Any] | None]:
        """An event of a stream, and its JSON where it has some."""
        if not event.startswith(b"data: ") or event.startswith(b"data: [DONE]"):
            return event, None
        try:
            data = json.loads(event[len(b"data: ") :])
        except ValueError:
            return event, None
        if not isinstance(data, dict) or "error" in data:
            return event, None
        return self.frame(self.body(data, None)), data

    @staticmethod
    def frame(data: dict[str, Any]) -> bytes:
        """JSON as one event."""
        return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def receipt_chunk(last: Mapping[str, Any], receipt: dict[str, Any]) -> dict[str, Any]:
    """The last chunk of a stream whose client asked for the receipt: no choices, like OpenAI's usage chunk."""
    kept = {key: last[key] for key in ("id", "object", "created", "model") if key in last}
    return {**kept, "choices": [], "trimtab": {"receipt": receipt}}


def model_cards(named: Mapping[str, LiveProfile], base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The profiles as OpenAI model objects, one for each name; `base` is the base model's."""
    for name, entry in named.items():
        yield {
            **base,
            "id": name,
            "created": int(entry.loaded),
            "owned_by": "trimtab",
            "parent": base.get("id"),
            "permission": [],
            "trimtab": entry.describe(),
        }
