"""Trimtab's own routes: the profiles of a running server, listed, uploaded, loaded and unloaded over HTTP.

    GET    /v1/trimtab/profiles                     the live profiles, and why others are not
    GET    /v1/trimtab/profiles/{profile}           one of them, with its whole profile.yaml as JSON
    PUT    /v1/trimtab/profiles/{name}@{version}    {"files": {"profile.yaml": base64, "v.safetensors": base64, ...}}:
                                                    save it in the server's store, and make it live
    DELETE /v1/trimtab/profiles/{profile}           unload it; it stays in the store
    POST   /v1/trimtab/profiles/load, .../unload    {"name": ...}: a profile of the store
    POST   /v1/trimtab/profiles/{profile}/verify    prove it (`proving.py`): 200 and the report when it holds, 409 and
                                                    the report when it does not; 409, too, while another proof runs

With `TRIMTAB_ADMIN_KEY` in the server's environment, whatever changes something needs that key in the header
`x-trimtab-admin-key`. Tensors over the wire are taken, and proofs given, with that key alone: a server without one does
neither.
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
from ..admin import ADMIN_HEADER, ADMIN_VARIABLE
from ..document import FILE
from ..files import inside
from ..proof import Report
from .live import LiveProfiles
from .proving import proof_reply
from .served import LiveProfile

MOST_BYTES = 256 << 20
"""Size of an uploaded profile, all files together."""
UPLOADED = re.compile(r"profile\.yaml|[\w./+-]+\.safetensors|[\w./+-]+/adapter_config\.json")
"""Files that an upload may hold."""

Read = Callable[[], Awaitable[bytes]]
Prove = Callable[[LiveProfile], Awaitable[Report]]
Reply = tuple[int, dict[str, Any]]


async def own_route(
    live: LiveProfiles, method: str, what: str, headers: Mapping[str, str], read: Read, prove: Prove
) -> Reply:
    """Answer one request: status and body.

    Args:
        what: the path below `/v1/trimtab/`, as it was sent.
        headers: by lower-case name.
        read: reads the body.
        prove: proves a live profile.

    Raises:
        TrimtabError: it is refused.
    """
    if method == "POST" and what.startswith("profiles/") and what.endswith("/verify"):
        require_admin(headers, always="proves no profile over HTTP")
        if await read():
            raise BadInput("a body is not read", where="body", fix="Leave it out")
        spec = unquote(what.removeprefix("profiles/").removesuffix("/verify"))
        return proof_reply(await prove(_entry(live, spec)))
    return 200, await _answer(live, method, what, headers, read)


async def _answer(live: LiveProfiles, method: str, what: str, headers: Mapping[str, str], read: Read) -> dict[str, Any]:
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
        require_admin(headers, always="takes no tensors over HTTP" if method == "PUT" else None)
        if method == "DELETE":
            return {"live": False, "profile": (await live.unload(spec)).describe()}
        return {"live": True, "profile": await _put(live, spec, _object(await read()))}
    raise NotFound(f"there is no {method} /v1/trimtab/{what}", where="path", fix="See GET /v1/trimtab/profiles")


def require_admin(headers: Mapping[str, str], *, always: str | None = None) -> None:
    """Raises Forbidden for a request without the server's admin key.

    Args:
        always: what a server that has no such key does not do at all; None for what is then open to everyone.
    """
    key = os.environ.get(ADMIN_VARIABLE)
    if not key:
        if always is not None:
            raise Forbidden(
                f"this server {always}",
                where=ADMIN_HEADER,
                fix=f"Start it with {ADMIN_VARIABLE} set to a secret, and send that in this header",
            )
        return
    if not hmac.compare_digest(headers.get(ADMIN_HEADER, "").encode(), key.encode()):
        raise Forbidden(
            "profiles are changed and verified with the admin key alone",
            where=ADMIN_HEADER,
            fix="Send the key in this header",
        )


def _entry(live: LiveProfiles, spec: str) -> LiveProfile:
    entry = live.resolve(spec)
    if entry is None:
        raise BadInput("this is the base model", where=spec, fix="Name a profile")
    return entry


def _shown(live: LiveProfiles, spec: str) -> dict[str, Any]:
    entry = _entry(live, spec)
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
