"""A verification over the wire: which live profiles to prove on which server, and the report in words.

The proof itself is `steering/proof.py`, so that a server can give it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import httpx

from ..errors import BadInput, NotFound
from ..steering.admin import admin_headers
from ..steering.asking import LIMITS, Asker
from ..steering.proof import LENGTHS, NEW, prove, unread

if TYPE_CHECKING:
    from ..steering.profile import Profile
    from ..steering.proof import Check, Reader, Report
    from ..steering.store import ProfileStore

SECONDS = 240.0


class Client(Asker):
    """A server somewhere."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        url = url.rstrip("/").removesuffix("/v1")
        headers = admin_headers() | ({"Authorization": f"Bearer {key}"} if key else {})
        super().__init__(httpx.AsyncClient(base_url=url, timeout=SECONDS, headers=headers, limits=LIMITS), url, model)

    async def live(self) -> dict[str, str]:
        """The live profiles: id -> identity. Raises EngineUnavailable or EngineError."""
        data = await self._json("GET", "/v1/trimtab/profiles")
        return {str(entry["id"]): str(entry["sha256"]) for entry in data["profiles"]}

    async def unload(self, name: str) -> None:
        """Take a profile off the server: requests for it are refused from then on."""
        await self._json("POST", "/v1/trimtab/profiles/unload", {"name": name})


async def verify(
    client: Client,
    reference: Reader,
    store: ProfileStore,
    names: Sequence[str] = (),
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    new: int = NEW,
    tolerance: float | None = None,
) -> Report:
    """Check the live profiles of a server.

    Args:
        store: where the profiles' content is found, by identity.
        names: profiles to check, as in a request; all live ones by default.
        seed, lengths, new, tolerance: as for `prove`.

    Raises:
        NotFound: a profile is not live.
        EngineError, EngineUnavailable: the server does not answer, or not as Trimtab's does.
    """
    chosen = _chosen(await client.live(), names, store)
    return await prove(client, reference, chosen, seed=seed, lengths=lengths, new=new, tolerance=tolerance)


def _chosen(live: dict[str, str], names: Sequence[str], store: ProfileStore) -> dict[str, Profile | Check]:
    """The profiles to check, as the store has what the server says is live; what it does not have is an error."""
    wanted = dict.fromkeys(() if names else live)
    for name in names:
        meant = [one for one in live if name in (one, one.partition("@")[0])]
        if not meant:
            raise NotFound(f"{name!r} is not live", where="verify", fix=f"Live: {', '.join(live) or 'nothing'}")
        wanted |= dict.fromkeys(meant)
    found: dict[str, Profile | Check] = {}
    for name in wanted:
        try:
            found[name] = store.get(f"{name.partition('@')[0]}@sha256:{live[name]}")
        except (NotFound, BadInput) as error:
            found[name] = unread(name, live[name], error)
    return found


def table(report: Report) -> str:
    """The report in words."""
    width = max(len("profile"), *(len(check.name) for check in report.checks))
    lines = [f"{'profile':<{width}}  {'tokens':>6}  {'difference':>10}  {'steered':>8}  {'moved':>8}  "]
    for check in report.checks:
        moved = "" if check.moved is None else f"{check.moved:.3g}"
        steered = "?" if check.steered is None else str(check.steered)
        verdict = "; ".join(check.problems) or "ok"
        lines.append(
            f"{check.name:<{width}}  {check.tokens:>6}  {check.difference:>10.2g}  {steered:>8}  {moved:>8}  {verdict}"
        )
    same = "bit for bit the same" if report.base_alone == 0.0 else f"the same within {report.base_alone:.2g}"
    lines.append(f"the base model alone, among steered requests and after them: {same}")
    wrong = sum(bool(check.problems) for check in report.checks)
    count = len(report.checks) - 1
    held = f"{report.dtype}, tolerance {report.tolerance:g} nats"
    lines.append(
        f"{count} profile{'s' * (count != 1)} verified on {report.url} ({held})"
        if report.ok
        else f"{wrong} of {len(report.checks)} failed on {report.url}"
    )
    return "\n".join(lines)
