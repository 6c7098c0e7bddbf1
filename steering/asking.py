"""Asking a server of Trimtab's for answers that can be proven: greedy, token by token, with their receipts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from ..errors import EngineError, EngineUnavailable

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
"""Of a client of a server of any make. Stock vLLM closes connections that were idle for 5 seconds, and one that is used
again at that very moment fails for no reason: who reads answers on the reference between questions is idle as long."""


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        ids: the answer's tokens.
        logprobs: log probability of each, nats.
        receipt: what was applied.
        cached: prompt tokens whose states were there already; None where the server does not say.
        model: as what it answered.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    receipt: dict[str, Any]
    cached: int | None
    model: str


class Asker:
    """One server and its base model.

    Args:
        http: a client whose base URL is the server's, or whose transport is the server's application itself.
        url: what to call the server in errors and reports.
        model: the base model's id.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, model: str) -> None:
        self._http, self.url, self.model = http, url, model

    async def aclose(self) -> None:
        """Close the client."""
        await self._http.aclose()

    async def ask(self, name: str, prompt: Sequence[int], new: int, salt: str | None = None) -> Answer:
        """Greedy, and never ended by an end token.

        Raises:
            EngineError, EngineUnavailable: no answer, or none that can be proven.
        """
        body: dict[str, Any] = {"model": name, "prompt": list(prompt), "max_tokens": new, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True, "logprobs": 1, "trimtab": {"receipt": True}}
        if salt is not None:
            body["cache_salt"] = salt
        data = await self._json("POST", "/v1/completions", body)
        try:
            choice = data["choices"][0]
            details = data["usage"].get("prompt_tokens_details") or {}
            answer = Answer(
                tuple(choice["token_ids"]),
                tuple(map(float, choice["logprobs"]["token_logprobs"])),
                dict(data["trimtab"]["receipt"]),
                details.get("cached_tokens"),
                str(data["model"]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise EngineError(f"the answer lacks {error}", where=self.url, fix="Verify a `trimtab serve`") from None
        if not len(answer.ids) == len(answer.logprobs) == new:
            raise EngineError(f"{len(answer.ids)} tokens were answered, not {new}", where=self.url)
        return answer

    async def dtype(self) -> str:
        """The number format that the server computes in. Raises EngineError, EngineUnavailable when it does not say."""
        data = await self._json("GET", "/v1/trimtab/profiles")
        try:
            return str(data["worker"]["dtype"])
        except (KeyError, TypeError):
            raise EngineError(
                "the server does not say what number format it computes in",
                where=self.url,
                fix="Start it again, with this version of Trimtab",
            ) from None

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            reply = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise EngineUnavailable(f"no answer ({reason})", where=self.url + path) from None
        if reply.status_code != 200:
            raise EngineError(f"HTTP {reply.status_code}: {reply.text[:200]}", where=self.url + path)
        try:
            return reply.json()
        except ValueError:
            raise EngineError("the answer is not JSON", where=self.url + path) from None
