"""A server that proves one of its own live profiles: it asks itself, and a child process reads the answers.

The questions go through the whole application, middleware and authentication included, just as a client's do; only the
socket is left out, so it does not matter where the server listens. The reference model is loaded when a proof is asked
for, into a child that ends with it.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from ...errors import BadInput, Conflict, LimitExceeded
from ..profile import Profile, load_profile
from ..proof import Report, prove
from .bodies import error_body
from .live import LiveProfiles
from .served import LiveProfile

SECONDS_VARIABLE = "TRIMTAB_VERIFY_SECONDS"
"""How long a proof may take, the loading of the reference included."""

DEFAULT_SECONDS = 300.0


class Prover:
    """Proves profiles, one at a time: each proof takes the memory of a whole model in float32."""

    def __init__(self) -> None:
        self._proving: str | None = None

    async def prove(self, live: LiveProfiles, entry: LiveProfile, app: Any, origin: str, key: str | None) -> Report:
        """Prove that a live profile fires on the tokens it claims, as the reference says, and touches nothing else.

        Args:
            app: the server's ASGI application.
            origin: scheme, host and port under which the server was asked, for the report.
            key: the `Authorization` of who asked.

        Raises:
            Conflict: another proof is under way, or the profile's files are not what went live.
            LimitExceeded: it took too long.
            EngineError: the server or the reference did not answer.
        """
        if self._proving is not None:
            raise Conflict(
                f"{self._proving} is being verified",
                where=f"profile {entry.profile.id}",
                fix="Try again when it is done",
            )
        self._proving = entry.profile.id
        seconds = _seconds()
        try:
            async with asyncio.timeout(seconds):
                return await _proven(live, entry, app, origin, key)
        except TimeoutError:
            raise LimitExceeded(
                f"not proven within {seconds:g} s",
                where=f"profile {entry.profile.id}",
                fix=f"Start the server with a larger {SECONDS_VARIABLE}, or use `trimtab verify` on another machine",
            ) from None
        finally:
            self._proving = None


async def _proven(live: LiveProfiles, entry: LiveProfile, app: Any, origin: str, key: str | None) -> Report:
    import httpx

    from ..asking import Asker
    from ..reference_child import ChildReference

    content = await asyncio.to_thread(_content, entry)
    reference = ChildReference(live.model_folder())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {} if key is None else {"authorization": key}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            asker = Asker(http, origin, live.base_names[0])
            return await prove(asker, reference, {entry.profile.id: content}, seed=time.time_ns() % 2**40)
    finally:
        reference.kill()  # at once: a thread that waits for its answer ends with it
        await asyncio.to_thread(reference.close)


def _content(entry: LiveProfile) -> Profile:
    """What the profile is by its files. Raises Conflict when they are not what went live: nothing can be compared."""
    try:
        profile = load_profile(entry.profile.directory)
    except BadInput as error:
        raise Conflict(f"not proven: {error.what}", where=error.where, fix="Put the files back") from None
    if profile.sha256 != entry.profile.sha256:
        raise Conflict(
            "not proven: the files are not what went live", where=str(profile.directory), fix="Put them back"
        )
    return profile


def _seconds() -> float:
    try:
        return float(os.environ.get(SECONDS_VARIABLE, DEFAULT_SECONDS))
    except ValueError:
        raise BadInput("is not a number of seconds", where=SECONDS_VARIABLE, fix="Correct the environment") from None


def proof_reply(report: Report) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of a report. What failed is an error to whoever looks at the status alone."""
    if report.ok:
        return 200, report.to_json()
    failed = [f"{check.name}: {'; '.join(check.problems)}" for check in report.checks if check.problems]
    error = Conflict(f"not proven: {' | '.join(failed)}", where="verify", fix="Unload it")
    return error.status, {**error_body(error), **report.to_json()}
