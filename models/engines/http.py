"""The engine for any OpenAI-compatible URL, a Trimtab server's among them."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

import httpx

from ...errors import BadInput, EngineError, EngineUnavailable, NotFound
from ...steering.asking import LIMITS
from ..chat import ChatRequest, Delta, Reply, Sampling, whole
from . import wire

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0
"""Seconds between tries: the pause doubles from the first, with jitter; Retry-After is followed up to the longest."""

LOCAL = ("127.0.0.1", "localhost", "::1")

NOTHING_SENT_BACK = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)
"""Failures which, before the response's first byte, mean that nothing of an answer was seen: a retry is safe."""


def key_from_environment() -> str | None:
    """The API key, from TRIMTAB_API_KEY or OPENAI_API_KEY."""
    return os.environ.get("TRIMTAB_API_KEY") or os.environ.get("OPENAI_API_KEY") or None


class HttpEngine:
    """Chat with a model over HTTP.

    Args:
        url: the server, with or without `/v1`.
        model: the model id; for a Trimtab server the base model's.
        trimtab: whether it is a Trimtab server: requests may name profiles, and answers carry receipts.
        key: the API key, sent as a bearer token and never shown.
        timeout: seconds without a byte from the server after which a request is given up.
        retries: tries after the first one, where a retry is safe: the connection failed before any byte of an answer,
            or the server said 429 or 503.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        trimtab: bool = False,
        key: str | None = None,
        timeout: float = 300.0,
        retries: int = 3,
    ) -> None:
        host = _host(url)
        self.root = url.rstrip("/").removesuffix("/v1")
        self.trimtab = trimtab
        self.retries = retries
        self._model = model
        self._key = key
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        self._local = host in LOCAL
        # A connection pool belongs to one event loop; `Agent.run` may bring a new loop at every call.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._closed = False

    @property
    def name(self) -> str:
        return "vllm" if self.trimtab else "openai"

    @property
    def model(self) -> str:
        return self._model

    def __repr__(self) -> str:
        return f"HttpEngine({self.root!r}, {self._model!r}, trimtab={self.trimtab})"

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer one request; see `Engine.chat`."""
        start = time.perf_counter()
        body = await self._body(request, stream=False)
        response = await self._post(body)
        try:
            text = await self._read(response)
        finally:
            await response.aclose()
        data = self._json(text, "the answer")
        error = wire.error_within(data, text, where=self.root, secret=self._key)
        if error is not None:
            raise error
        return wire.parse_reply(
            data, seconds=time.perf_counter() - start, request=request, trimtab=self.trimtab, where=self.root
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Answer one request in pieces; see `Engine.stream`."""
        start = time.perf_counter()
        body = await self._body(request, stream=True)
        response = await self._post(body)
        parts = wire.Assembly()
        try:
            async for chunk in self._events(response):
                try:
                    text = parts.add(chunk)
                except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                    said = f"a piece of the stream is malformed ({error!r:.200})"
                    raise EngineError(said, where=self.root) from None
                if text:
                    yield Delta(text)
        finally:
            await response.aclose()
        yield Delta(
            reply=parts.reply(
                seconds=time.perf_counter() - start, request=request, trimtab=self.trimtab, where=self.root
            )
        )

    async def profiles(self) -> list[str]:
        """Names of the live profiles; none at a server that is not Trimtab's."""
        if not self.trimtab:
            return []
        return [name for name in await served_models(self) or () if name != self._model]

    async def load(self, profile: str) -> None:
        """Make a profile of a Trimtab server's store live.

        Raises:
            NotFound, EngineRefused: the server has no such profile, or cannot apply it; in its words.
            EngineUnavailable: there is no answer.
        """
        try:
            answer = await self._client().post(f"{self.root}/v1/trimtab/profiles/load", json={"name": profile})
        except httpx.HTTPError as error:
            raise EngineUnavailable(_reason(error), where=self.root) from None
        if answer.status_code != 200:
            raise wire.error_of(answer.status_code, answer.text, where=self.root, secret=self._key)

    async def get(self, path: str) -> httpx.Response:
        """GET a path below the root, such as `/health`; one try.

        Raises:
            EngineUnavailable: there is no answer.
        """
        try:
            return await self._client().get(self.root + path, timeout=min(10.0, self._timeout.read or 10.0))
        except httpx.HTTPError as error:
            raise EngineUnavailable(_reason(error), where=self.root, fix="Is the server running?") from None

    async def aclose(self) -> None:
        self._closed = True
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _body(self, request: ChatRequest, *, stream: bool) -> wire.Json:
        if request.profile is not None and not self.trimtab:
            raise BadInput(
                f"profile {request.profile!r} cannot be applied by {self.root}, which is not a Trimtab server",
                where="profile",
                fix="Leave the profile out, or use a server started with `trimtab serve`",
            )
        if request.constrained and request.tools and not self.trimtab:
            raise BadInput(
                f"calls cannot be constrained at {self.root}, which is not a Trimtab server",
                where="constrained",
                fix="Ask without it, or use a server started with `trimtab serve`",
            )
        sampling = request.sampling or Sampling()
        if request.sampling is None and request.profile is not None:
            # Which version a name stands for is the server's to say.
            answer = await self.get(f"/v1/trimtab/profiles/{quote(request.profile, safe='')}")
            known = answer.status_code == 200
            sampling = wire.decoding_of(self._json(answer.text, "the profile's description") if known else None)
        return wire.request_body(request, sampling, model=self._model, trimtab=self.trimtab, stream=stream)

    def _client(self) -> httpx.AsyncClient:
        if self._closed:
            raise EngineUnavailable("the engine is closed", where=self.root)
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=self._timeout,
                # On this machine a connection costs less than a stale one: none is kept, and no proxy is asked.
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=0 if self._local else 20,
                    keepalive_expiry=LIMITS.keepalive_expiry,
                ),
                trust_env=not self._local,
            )
            self._clients[loop] = client
        return client

    async def _post(self, body: wire.Json) -> httpx.Response:
        """The response, its body unread, once its status is 200."""
        client = self._client()
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                response = await client.send(
                    client.build_request("POST", f"{self.root}/v1/chat/completions", json=body), stream=True
                )
            except NOTHING_SENT_BACK as error:
                if last:
                    raise EngineUnavailable(_reason(error), where=self.root, fix="Is the server running?") from None
                await asyncio.sleep(pause(attempt, None))
                continue
            except httpx.HTTPError as error:
                raise EngineUnavailable(_reason(error), where=self.root) from None
            if response.status_code == 200:
                return response
            try:
                text = await self._read(response)
            finally:
                await response.aclose()
            if last or response.status_code not in (429, 503):
                raise wire.error_of(response.status_code, text, where=self.root, secret=self._key)
            await asyncio.sleep(pause(attempt, response.headers.get("retry-after")))
        raise AssertionError("unreachable")

    async def _read(self, response: httpx.Response) -> str:
        try:
            await response.aread()
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"the answer broke off ({_reason(error)})", where=self.root) from None
        return response.text

    async def _events(self, response: httpx.Response) -> AsyncIterator[wire.Json]:
        """The JSON objects of a server-sent event stream."""
        try:
            async for line in _lines(response):
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    return
                chunk = self._json(data, "a piece of the stream")
                if not isinstance(chunk, dict):
                    raise EngineError("a piece of the stream is not a JSON object", where=self.root)
                error = wire.error_within(chunk, data, where=self.root, secret=self._key)
                if error is not None:
                    raise error
                yield chunk
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"the answer broke off ({_reason(error)})", where=self.root) from None

    def _json(self, text: str, what: str) -> Any:
        try:
            return wire.read_json(text)
        except ValueError:
            raise EngineError(f"{what} is not JSON", where=self.root) from None


def _host(url: str) -> str:
    """The host of an http(s) URL. Raises BadInput for anything else, and for what httpx would not send to."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and httpx.URL(url).host:
            return parts.hostname
    except (httpx.InvalidURL, ValueError):  # `port` raises one, too
        pass
    raise BadInput(f"{url!r} is not an http(s) URL", fix="Write it as http://HOST:PORT or https://HOST/v1")


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a server-sent event stream. `aiter_lines` would also break them at U+2028 and the like, which JSON
    leaves as they are."""
    rest = ""
    async for text in response.aiter_text():
        *lines, rest = re.split(r"\r\n|\n|\r", rest + text)
        for line in lines:
            yield line
    yield rest


async def served_models(engine: HttpEngine) -> list[str] | None:
    """The ids under `/v1/models`; None where the server keeps no such list.

    Raises:
        EngineUnavailable: there is no answer.
        EngineRefused: the key is not accepted.
    """
    response = await engine.get("/v1/models")
    if response.status_code in (401, 403):
        raise wire.error_of(response.status_code, response.text, where=engine.root)
    try:
        if response.status_code != 200:
            return None
        return [whole(str(entry["id"])) for entry in wire.read_json(response.text)["data"]]
    except (ValueError, KeyError, TypeError):
        return None


async def connect(url: str, model: str | None, *, key: str | None = None) -> HttpEngine:
    """An engine for a server that runs already; finds out whether it is Trimtab's and whether it serves the model.

    Args:
        model: None takes the only model there is; a Trimtab server's base model.

    Raises:
        EngineUnavailable: nothing answers at the URL.
        NotFound: the server does not serve the model.
    """
    engine = HttpEngine(url, model or "", key=key)
    try:
        ids = await served_models(engine)
        trimtab = (await engine.get("/v1/trimtab/profiles")).status_code == 200
    finally:
        await engine.aclose()
    if model is None:
        if not ids or (len(ids) > 1 and not trimtab):
            raise BadInput(
                "which model is meant", where=url, fix=f"Name one with --model: {', '.join(ids or ['(no list)'])}"
            )
        model = ids[0]
    elif ids is not None and model not in ids:
        raise NotFound(f"model {model!r} is not served", where=url, fix=f"It serves: {', '.join(ids) or 'nothing'}")
    return HttpEngine(url, model, trimtab=trimtab, key=key)


def pause(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait before the next try: what the server asks for (seconds or an HTTP date), or jittered backoff."""
    if retry_after is not None:
        try:
            asked = float(retry_after)
        except ValueError:
            try:
                asked = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
            except (ValueError, TypeError):
                asked = FIRST_PAUSE
        return min(max(asked, 0.0), LONGEST_PAUSE)
    ceiling = min(FIRST_PAUSE * 2.0**attempt, LONGEST_PAUSE)
    return ceiling * (0.5 + 0.5 * random.random())


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
