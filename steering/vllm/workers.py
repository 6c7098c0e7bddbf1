"""The workers of a server, asked by the process that speaks HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ...errors import BadInput, EngineError, LimitExceeded, NotFound, TrimtabError
from .door import knock

log = logging.getLogger("vllm.trimtab")

PATIENCE = 60.0
"""Seconds in which a worker must answer."""

_KINDS: dict[str, type[TrimtabError]] = {
    kind.__name__: kind for kind in (BadInput, NotFound, LimitExceeded, EngineError)
}


class Workers:
    """The processes that run the model, one for each rank; all do the same.

    Args:
        client: vLLM's engine client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._doors: list[str | None] = []

    async def open_doors(self) -> None:
        """Let `load` go beside the steps from now on, where the system can. Raises EngineError."""
        self._doors = [answer["address"] for answer in await self._ask_all("trimtab_door")]

    async def ask(self, method: str, *args: Any) -> dict[str, Any]:
        """Ask every worker between two steps; the first one's answer.

        Raises:
            EngineError: they do not answer.
            TrimtabError: what a worker answered as an error.
        """
        return _first(await self._ask_all(method, *args))

    async def load(self, directory: str, sha256: str, strength: float) -> None:
        """Let every worker load a profile: beside the step that it runs, where all have a door on this machine.

        Nothing else goes that way. A request may have come to its end here while the worker still computes its next
        token, so profiles are unloaded between steps only.

        Raises:
            TrimtabError: as `ask`.
        """
        question = (directory, sha256, strength)
        if self._doors and all(self._doors):
            try:
                async with asyncio.timeout(PATIENCE):
                    answers = await asyncio.gather(*(knock(str(door), *question) for door in self._doors))
            except OSError as error:
                log.warning("A worker does not answer at its door (%r)", error)
            else:
                _first(answers)
                return
        await self.ask("trimtab_load", *question)

    async def _ask_all(self, method: str, *args: Any) -> list[dict[str, Any]]:
        try:
            answers: list[dict[str, Any]] = await self._client.collective_rpc(method, timeout=PATIENCE, args=args)
        except Exception as error:
            raise EngineError(
                f"the model's process does not answer {method} ({error})",
                where="vllm",
                fix="Start the server with --worker-extension-cls trimtab.steering.vllm.worker.SteeringExtension",
            ) from error
        return answers


def _first(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first worker's answer. Raises what any of them answered as an error."""
    for answer in answers:
        if "error" in answer:
            fields = answer["error"]
            raise _KINDS.get(fields["type"], EngineError)(fields["what"], where=fields["where"], fix=fields["fix"])
    return answers[0]
