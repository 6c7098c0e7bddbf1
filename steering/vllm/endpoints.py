"""The HTTP side: an ASGI middleware that makes profiles callable as OpenAI models.

    GET  /v1/models                                 the base model and the live profiles
    POST /v1/chat/completions, /v1/completions      `model` is the base model's id, or a profile as `name`,
                                                    `name@version` or `name@sha256:...`
    GET  /v1/trimtab/receipts/{response id}         what was applied to a recent response
         /v1/trimtab/profiles...                    see `routes.py`

A profile is resolved or refused before anything is generated: `model` becomes the base model or its adapter inside
vLLM, the profile's hash goes to the model runner and into the prefix cache's salt, its decoding defaults fill what
the request leaves open. Responses carry the profile's id as `model`. A request's `"trimtab": {...}` may name the
profile instead of `model`, give its steering another strength, and ask for the receipt (`{"receipt": true}`): it comes
in the body, or in a chunk of its own before the end of a stream.

Why a middleware (`--middleware`) and no endpoint plugin: such a plugin would replace the completion routes and so copy
vLLM's handling of errors, cancelling and streams, and vLLM loads it only when named in `VLLM_PLUGINS` and swallows a
failure to import it. A middleware fails the start when it cannot be imported, leaves every route as it is, and sees the
application start before the first request is answered: `/health` says 200 only once the profiles are live. It stands
outside vLLM's authentication, so a request without a valid key is passed on untouched, for vLLM to refuse.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from ...errors import BadInput, Conflict, NotFound, TrimtabError
from ..proof import Report
from . import bodies
from .launch import PROFILES_VARIABLE, wanted_live
from .live import LiveProfiles
from .proving import Prover
from .routes import own_route
from .served import LiveProfile

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("vllm.trimtab")

GENERATE = frozenset({"/v1/chat/completions", "/v1/completions"})
BASE_ONLY = frozenset({"/tokenize", "/detokenize"})
"""Routes that do the same whatever the profile, so a profile's name is taken for the base model's."""
GUARDED = ("/v1", "/v2", "/inference", "/cohere")
"""Where vLLM asks for the API key."""
OWN = "/v1/trimtab/"
RECEIPTS = "/v1/trimtab/receipts/"
RECENT = 4096
"""Responses whose receipt can be asked for afterwards."""


class TrimtabMiddleware:
    """See the module. `live` is None until the application has started."""

    def __init__(self, app: App, live: LiveProfiles | None = None) -> None:
        self.app = app
        self.live = live
        self._prover = Prover()
        self._recent: OrderedDict[str, tuple[str, LiveProfile | None]] = OrderedDict()
        self._authorised: Callable[[Scope], bool] = lambda scope: True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, or the application's life."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] != "http" or self.live is None:
            await self.app(scope, receive, send)
        else:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path.startswith(GUARDED) and not self._authorised(scope):
                await self.app(scope, receive, send)
                return
            try:
                await self._http(self.live, path, scope, receive, send)
            except TrimtabError as error:
                await _send_json(send, error.status, bodies.error_body(error))

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        if message["type"] == "lifespan.startup" and self.live is None:
            try:
                await self._start(scope["app"].state)
            except Exception as error:
                log.error("Trimtab could not start: %s", error, exc_info=not isinstance(error, TrimtabError))
                # Said, not only raised: uvicorn would take that for an application without start-up and go on.
                await send({"type": "lifespan.startup.failed", "message": f"Trimtab could not start: {error}"})
                raise
        await self.app(scope, _replay(message, receive), send)

    async def _start(self, state: Any) -> None:
        roots = [Path(root) for root in os.environ.get(PROFILES_VARIABLE, "").split(os.pathsep) if root]
        live = LiveProfiles(state.engine_client, state.openai_serving_models, roots)
        await live.start(wanted_live())
        self._authorised = _authoriser(state.args)
        self.live = live

    async def _http(self, live: LiveProfiles, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if path.startswith(RECEIPTS) and method == "GET":
            await _send_json(send, 200, await self._receipt(live, path.removeprefix(RECEIPTS)))
        elif path.startswith(OWN):
            headers = {bytes(k).decode("latin-1").lower(): bytes(v).decode("latin-1") for k, v in scope["headers"]}
            origin = f"{scope.get('scheme', 'http')}://{headers.get('host', 'localhost')}"

            def prove(entry: LiveProfile) -> Awaitable[Report]:
                proof = self._prover.prove(live, entry, scope["app"], origin, headers.get("authorization"))
                return _while_there(receive, proof)

            what = path.removeprefix(OWN)
            await _send_json(send, *await own_route(live, method, what, headers, lambda: _read(receive), prove))
        elif path == "/v1/models" and method == "GET":
            await self.app(scope, receive, _Whole(send, lambda data: _with_profiles(live, data)))
        elif method == "POST" and not _header(scope, b"content-type").startswith("multipart/"):
            await self._post(live, path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _receipt(self, live: LiveProfiles, response: str) -> dict[str, Any]:
        known = self._recent.get(response)
        found = await live.receipt(*known) if known else None
        if found is None:
            raise NotFound(
                "no receipt is kept for this response",
                where="id",
                fix=f"Receipts are kept for profiles' last {RECENT} responses, and for others that asked for one",
            )
        return {"receipt": found}

    async def _post(self, live: LiveProfiles, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await _read(receive)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):  # not ours to judge: vLLM refuses it in its own words
            await self.app(scope, _replay(_request(raw), receive), send)
            return
        bodies.refuse_smuggling(body)
        model = body.get("model")
        if path in GENERATE:
            wanted = bodies.options(body)
            model = bodies.model_of(body, wanted, live.base_names)
            entry = live.resolve(model) if isinstance(model, str) else None
            if wanted.strength is not None:
                if entry is None:
                    raise BadInput("the base model has no strength", where="trimtab.strength", fix="Name a profile")
                entry = await live.at(entry, wanted.strength)
            await self._generate(live, entry, wanted.receipt, body, scope, receive, send)
            return
        if isinstance(model, str):
            if model in live.adapter_names():
                raise NotFound(f"The model or profile `{model}` does not exist", where="model")
            if any(model.partition("@")[0] == entry.profile.name for entry in live.profiles()):
                if path not in BASE_ONLY:
                    raise BadInput(
                        f"profiles are not served at {path}", where="model", fix=f"Use {' or '.join(sorted(GENERATE))}"
                    )
                raw = json.dumps({**body, "model": live.base_names[0]}).encode()
        await self.app(_resized(scope, raw), _replay(_request(raw), receive), send)

    async def _generate(
        self,
        live: LiveProfiles,
        entry: LiveProfile | None,
        wanted: bool,
        body: dict[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        receipt = uuid.uuid4().hex if entry is not None or wanted else None
        raw = json.dumps(bodies.rewrite(body, entry, live.base_names[0], receipt)).encode()
        scope, receive = _resized(scope, raw), _replay(_request(raw), receive)
        if receipt is None:
            await self.app(scope, receive, send)
            return

        async def look() -> dict[str, Any] | None:
            if not wanted:
                return None
            found = await live.receipt(receipt, entry)
            if found is None:
                raise TrimtabError("the engine knows nothing of a request it answered", where=f"request {receipt}")
            return found

        def note(response: str) -> None:
            self._recent[response] = (receipt, entry)
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)

        if entry is not None:
            entry.enter()
        try:
            relabel = bodies.Relabel(entry.profile.id if entry else None)
            await self.app(scope, receive, _Answer(send, relabel, look, note))
        finally:
            if entry is not None:
                entry.leave()


class _Whole:
    """Sends a JSON response on after changing its body; other responses pass unchanged."""

    def __init__(self, send: Send, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._send, self._change = send, change
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        raw = b"".join(self._parts)
        if self._start["status"] == 200:
            raw = json.dumps(await self._changed(json.loads(raw)), ensure_ascii=False).encode()
        await self._send({**self._start, "headers": _with_length(self._start["headers"], len(raw))})
        await self._send({"type": "http.response.body", "body": raw})

    async def _changed(self, data: dict[str, Any]) -> dict[str, Any]:
        return self._change(data)


class _Answer(_Whole):
    """As `_Whole`, for completions: streams pass event by event, and the receipt is looked up at the end."""

    def __init__(
        self,
        send: Send,
        relabel: bodies.Relabel,
        look: Callable[[], Awaitable[dict[str, Any] | None]],
        note: Callable[[str], None],
    ) -> None:
        super().__init__(send, lambda data: data)
        self._relabel, self._look, self._note = relabel, look, note
        self._stream = False
        self._rest = b""
        self._last: dict[str, Any] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._stream = any(kind.startswith(b"text/event-stream") for kind in kinds)
            if self._stream:
                await self._send(message)
                return
        if self._stream and message["type"] == "http.response.body":
            await self._send({**message, "body": await self._pass_on(message)})
            return
        await super().__call__(message)

    async def _pass_on(self, message: Message) -> bytes:
        found, self._rest = bodies.events(self._rest + message.get("body", b""))
        if not message.get("more_body", False) and self._rest:
            found, self._rest = [*found, self._rest], b""
        out = []
        for event in found:
            if event.startswith(b"data: [DONE]") and self._last is not None:
                out.append(await self._closing(self._last))
            event, data = self._relabel.event(event)
            if data is not None:
                if self._last is None and isinstance(data.get("id"), str):
                    self._note(data["id"])
                self._last = data
            out.append(event)
        return b"".join(out)

    async def _closing(self, last: dict[str, Any]) -> bytes:
        try:
            receipt = await self._look()
        except TrimtabError as error:  # the answer is out already: the client must learn that it cannot be trusted
            return bodies.Relabel.frame(bodies.error_body(error))
        return b"" if receipt is None else bodies.Relabel.frame(bodies.receipt_chunk(last, receipt))

    async def _changed(self, data: dict[str, Any]) -> dict[str, Any]:
        if isinstance(data.get("id"), str):
            self._note(data["id"])
        return self._relabel.body(data, await self._look())


def _with_profiles(live: LiveProfiles, data: dict[str, Any]) -> dict[str, Any]:
    """The model list, with profiles in place of vLLM's adapters."""
    hidden = live.adapter_names()
    cards = [card for card in data["data"] if card["id"] not in hidden]
    return {**data, "data": [*cards, *bodies.model_cards(live.named(), cards[0] if cards else {})]}


def _authoriser(args: Any) -> Callable[[Scope], bool]:
    """Whether a request carries a key that vLLM accepts; always, when the server asks for none."""
    from starlette.datastructures import Headers
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    if not tokens:
        return lambda scope: True
    checker = AuthenticationMiddleware(lambda *_: None, tokens)
    return lambda scope: scope["method"] == "OPTIONS" or bool(checker.verify_token(Headers(scope=scope)))


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _request(raw: bytes) -> Message:
    return {"type": "http.request", "body": raw, "more_body": False}


async def _while_there(receive: Receive, answer: Coroutine[Any, Any, T]) -> T:
    """What `answer` gives; it is ended when the client, whose request has been read, hangs up.

    Raises:
        Conflict: the client is gone.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(leave())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Conflict("given up: the client is gone")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _replay(first: Message, receive: Receive) -> Receive:
    """A receiver that gives `first`, then whatever comes."""
    given: list[Message] = [first]

    async def replayed() -> Message:
        return given.pop() if given else await receive()

    return replayed


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]


def _resized(scope: Scope, raw: bytes) -> Scope:
    return {**scope, "headers": _with_length(scope["headers"], len(raw))}


def _header(scope: Scope, name: bytes) -> str:
    return next((bytes(value).decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")


async def _send_json(send: Send, status: int, data: dict[str, Any]) -> None:
    raw = json.dumps(data, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
