"""Trimtab's own routes: the profiles of a running server, listed, uploaded, loaded and unloaded over HTTP.

    GET    /v1/trimtab/profiles                     the live profiles, and why others are not
    GET    /v1/trimtab/profiles/{profile}           one of them, with its whole profile.yaml as JSON
    PUT    /v1/trimtab/profiles/{name}@{version}    {"files": {"profile.yaml": base64, "v.safetensors": base64, ...}}:
                                                    save it in the server's store, and make it live
    DELETE /v1/trimtab/profiles/{profile}           unload it; it stays in the store
    POST   /v1/trimtab/profiles/load, .../unload    {"name": ...}: a profile of the store

With `TRIMTAB_ADMIN_KEY` in the server's environment, whatever changes something needs that key in the header
`x-trimtab-admin-key`. Tensors over the wire are taken with that key alone: a server without one takes none.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ...errors import BadInput, Forbidden, NotFound
from ..document import FILE
from ..files import inside
from .live import LiveProfiles

ADMIN_VARIABLE = "TRIMTAB_ADMIN_KEY"
ADMIN_HEADER = "x-trimtab-admin-key"
MOST_BYTES = 256 << 20
"""Size of an uploaded profile, all files together."""
UPLOADED = re.compile(r"profile\.yaml|[\w./+-]+\.safetensors|[\w./+-]+/adapter_config\.json")
"""Files that an upload may hold."""

Read = Callable[[], Awaitable[bytes]]


async def own_route(
    live: LiveProfiles, method: str, what: str, headers: Mapping[str, str], read: Read
) -> dict[str, Any]:
    """Answer one request.

    Args:
        what: the path below `/v1/trimtab/`, as it was sent.
        headers: by lower-case name.
        read: reads the body.

    Raises:
        TrimtabError: it is refused.
    """
    if (method, what) == ("GET", "profiles"):
        return {
            "model": live.base_names[0],
            "profiles": [entry.describe() for entry in live.profiles()],
            "refused": live.refused,
            "worker": await live.ask_worker(),
        }
    if method == "POST" and what in ("profiles/load", "profiles/unload"):
        require_admin(headers)
        body = _object(await read())
        name = body.get("name")
        if not isinstance(name, str) or set(body) - {"name"}:
            raise BadInput('the body is not {"name": "a profile"}', where="body", fix="Correct it")
        entry = await (live.load(name) if what.endswith("/load") else live.unload(name))
        return {"live": what.endswith("/load"), "profile": entry.describe()}
    if what.startswith("profiles/") and method in ("GET", "PUT", "DELETE"):
        spec = unquote(what.removeprefix("profiles/"))
        if method == "GET":
            return _shown(live, spec)
        require_admin(headers, tensors=method == "PUT")
        if method == "DELETE":
            return {"live": False, "profile": (await live.unload(spec)).describe()}
        return {"live": True, "profile": await _put(live, spec, _object(await read()))}
    raise NotFound(f"there is no {method} /v1/trimtab/{what}", where="path", fix="See GET /v1/trimtab/profiles")


def require_admin(headers: Mapping[str, str], *, tensors: bool = False) -> None:
    """Raises Forbidden for a request that may not change the profiles, or with `tensors` not send any."""
    key = os.environ.get(ADMIN_VARIABLE)
    if not key:
        if tensors:
            raise Forbidden(
                "this server takes no tensors over HTTP",
                where=ADMIN_HEADER,
                fix=f"Start it with {ADMIN_VARIABLE} set to a secret, and send that in this header",
            )
        return
    if not hmac.compare_digest(headers.get(ADMIN_HEADER, "").encode(), key.encode()):
        raise Forbidden(
            "profiles are changed with the admin key alone", where=ADMIN_HEADER, fix="Send the key in this header"
        )


def _shown(live: LiveProfiles, spec: str) -> dict[str, Any]:
    entry = live.resolve(spec)
    if entry is None:
        raise BadInput("this is the base model", where=spec, fix="Name a profile")
    return {"profile": entry.describe(), "document": entry.profile.document.model_dump(mode="json")}


async def _put(live: LiveProfiles, spec: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Save an uploaded profile and make it live; the files are checked before anything is kept."""
    files = decoded(body)
    with tempfile.TemporaryDirectory(prefix="trimtab-upload-") as scratch:
        folder = Path(scratch) / "profile"
        for name, content in files.items():
            path = inside(folder, name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return (await live.put(folder, spec)).describe()


def decoded(body: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of an upload. Raises BadInput for a body that is not one, or holds what no profile holds."""
    files = body.get("files")
    if not isinstance(files, dict) or set(body) - {"files"} or FILE not in files:
        raise BadInput(f'the body is not {{"files": {{"{FILE}": base64, ...}}}}', where="body", fix="Correct it")
    out: dict[str, bytes] = {}
    for name, text in files.items():
        if not UPLOADED.fullmatch(name):
            raise BadInput(
                f"{name[:80]!r} is no file of a profile", where="files", fix="Send YAML, safetensors and adapter_config"
            )
        try:
            out[name] = base64.b64decode(text, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise BadInput(f"not base64 ({error})", where=f"files.{name}") from None
    if sum(map(len, out.values())) > MOST_BYTES:
        raise BadInput(
            f"the files are larger than {MOST_BYTES >> 20} MB", where="files", fix="Copy the profile instead"
        )
    return out


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadInput("the body is not a JSON object", where="body", fix='Send {"name": "a profile"}')
    return body
