"""The HTTP engine against a real HTTP server on this machine that plays a script: answers, errors, broken lines."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.errors import BadInput, EngineError, EngineRefused, EngineUnavailable, NotFound
from trimtab.models.chat import ChatRequest, Delta, Message, Sampling, ToolCall, Usage, user
from trimtab.models.engine import Engine
from trimtab.models.engines import http as http_module
from trimtab.models.engines import open_engine
from trimtab.models.engines.http import HttpEngine, connect, pause

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ASK = ChatRequest((user("hello"),))
RECEIPT = {
    "engine": "vllm", "model": "base", "profile": "p@1", "profile_sha256": "ab", "adapter_sha256": None,
    "layers": [1, 2], "tokens_steered": 7,
}  # fmt: skip


def completion(message: dict[str, Any] | None = None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    choice = {"index": 0, "message": message or {"role": "assistant", "content": "hi"}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage, **more}


class Script:
    """What the server does at each chat request, in turn; the last act is repeated. Requests are kept."""

    def __init__(self) -> None:
        self.acts: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.models: list[str] | None = ["base"]
        self.profiles: dict[str, Any] | None = None
        self.profile: dict[str, Any] | None = None
        self.gone = threading.Event()
        self.url = ""

    def say(self, status: int, data: Any, **headers: str) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()

        def act(h: BaseHTTPRequestHandler) -> None:
            h.send_response(status)
            for name, value in headers.items():
                h.send_header(name.replace("_", "-"), value)
            h.send_header("content-length", str(len(raw)))
            h.end_headers()
            h.wfile.write(raw)

        self.acts.append(act)

    def hang_up(self, after: bytes = b"") -> None:
        """Reset the connection, after some bytes of a response."""

        def act(h: BaseHTTPRequestHandler) -> None:
            h.wfile.write(after)
            h.wfile.flush()
            if after:
                time.sleep(0.1)
            h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            h.connection.shutdown(socket.SHUT_RDWR)

        self.acts.append(act)

    def events(self, *chunks: Any, cut: bool = False, wait: float = 0.0) -> None:
        def act(h: BaseHTTPRequestHandler) -> None:
            h.send_response(200)
            h.send_header("content-type", "text/event-stream")
            h.end_headers()
            try:
                for chunk in chunks:
                    h.wfile.write(b": a comment\n\ndata: " + json.dumps(chunk).encode() + b"\n\n")
                    h.wfile.flush()
                    time.sleep(wait)
                if not cut:
                    h.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                self.gone.set()

        self.acts.append(act)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            script.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            script.headers.append(dict(self.headers))
            script.times.append(time.monotonic())
            script.acts[min(len(script.bodies), len(script.acts)) - 1](self)

        def do_GET(self) -> None:
            found = {
                "/v1/models": script.models and {"data": [{"id": m} for m in script.models]},
                "/v1/trimtab/profiles": script.profiles,
                "/v1/trimtab/profiles/p%401": script.profile,
            }.get(self.path)
            raw = json.dumps(found).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    yield script
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "FIRST_PAUSE", 0.01)


async def whole(engine: Engine, request: ChatRequest) -> list[Delta]:
    return [piece async for piece in engine.stream(request)]


async def test_a_plain_answer(script: Script) -> None:
    script.say(200, completion())
    engine = HttpEngine(script.url + "/v1/", "base")
    assert isinstance(engine, Engine)
    request = ChatRequest(
        (Message("system", "s"), user("hello")), (TOOL,), None, Sampling(0.5, 0.9, 17, seed=3, logprobs=True)
    )
    reply = await engine.chat(request)
    assert (reply.message, reply.finish_reason) == (Message("assistant", "hi"), "stop")
    assert reply.usage == Usage(5, 2, 3)
    assert reply.seconds > 0
    assert reply.receipt is None
    body = script.bodies[0]
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    assert (body["model"], body["tools"]) == ("base", [TOOL])
    sampled = [body[k] for k in ("temperature", "top_p", "max_tokens", "seed", "logprobs")]
    assert sampled == [0.5, 0.9, 17, 3, True]
    assert "trimtab" not in body
    assert "Authorization" not in script.headers[0]


async def test_greedy_is_said_and_no_tools_are_left_out(script: Script) -> None:
    script.say(200, completion())
    await HttpEngine(script.url, "base").chat(ASK)
    assert script.bodies[0]["temperature"] == 0
    assert not {"tools", "tool_choice", "seed", "logprobs"} & set(script.bodies[0])


async def test_only_trimtabs_own_servers_are_told_how_long_an_answer_may_be(script: Script) -> None:
    script.say(200, completion())
    await HttpEngine(script.url, "base").chat(ASK)
    await HttpEngine(script.url, "base").chat(ChatRequest(ASK.messages, sampling=Sampling(max_tokens=9)))
    await HttpEngine(script.url, "base", trimtab=True).chat(ASK)
    assert [body.get("max_tokens") for body in script.bodies] == [None, 9, 256]


async def test_tool_calls_decide_not_the_finish_reason(script: Script) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    script.say(200, completion({"role": "assistant", "content": None, "tool_calls": [call]}, finish="stop"))
    script.say(200, completion({"role": "assistant", "content": "x", "tool_calls": []}, finish="tool_calls"))
    engine = HttpEngine(script.url, "base")
    first, second = await engine.chat(ASK), await engine.chat(ASK)
    assert (first.finish_reason, first.message.tool_calls) == ("tool_calls", (ToolCall("c1", "f", '{"a": 1}'),))
    assert (second.finish_reason, second.message.tool_calls) == ("stop", ())


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (404, {"error": {"message": "The model `x` does not exist."}}, NotFound, "The model `x` does not exist."),
        (400, {"error": {"message": "context too long"}}, EngineRefused, "context too long"),
        (422, {"detail": "wrong field"}, EngineRefused, "wrong field"),
        (401, {"error": "bad key sesame"}, EngineRefused, "bad key ***"),
        (500, b"<html>oops</html>", EngineUnavailable, "oops"),
        (502, {"error": {"message": "engine dead"}}, EngineUnavailable, "engine dead"),
    ],
)
async def test_errors_are_mapped_with_the_servers_words(
    script: Script, status: int, body: Any, kind: type[Exception], words: str
) -> None:
    script.say(status, body)
    with pytest.raises(kind) as caught:
        await HttpEngine(script.url, "base", key="sesame").chat(ASK)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert len(script.bodies) == 1  # none of these is tried again


async def test_the_key_is_sent_and_not_shown(script: Script) -> None:
    script.say(200, completion())
    engine = HttpEngine(script.url, "base", key="sesame")
    await engine.chat(ASK)
    assert script.headers[0]["Authorization"] == "Bearer sesame"
    assert "sesame" not in repr(engine)


async def test_busy_servers_are_asked_again_when_they_say(script: Script) -> None:
    script.say(429, {"error": {"message": "slow down"}}, retry_after="0.3")
    script.say(503, {"error": {"message": "starting"}})
    script.say(200, completion())
    reply = await HttpEngine(script.url, "base").chat(ASK)
    assert reply.message.content == "hi"
    assert script.times[1] - script.times[0] >= 0.3


async def test_retries_end(script: Script) -> None:
    script.say(503, {"error": {"message": "still starting"}})
    with pytest.raises(EngineUnavailable, match="still starting"):
        await HttpEngine(script.url, "base", retries=2).chat(ASK)
    assert len(script.bodies) == 3


async def test_a_reset_before_any_byte_is_tried_again(script: Script) -> None:
    script.hang_up()
    script.say(200, completion())
    assert (await HttpEngine(script.url, "base").chat(ASK)).message.content == "hi"
    assert len(script.bodies) == 2


async def test_a_reset_within_the_answer_is_not(script: Script) -> None:
    script.hang_up(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"choices"')
    script.say(200, completion())
    with pytest.raises(EngineUnavailable, match="broke off"):
        await HttpEngine(script.url, "base").chat(ASK)
    assert len(script.bodies) == 1


async def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(EngineUnavailable, match="no connection"):
        await HttpEngine(f"http://127.0.0.1:{port}", "base", retries=1).chat(ASK)


async def test_a_slow_server_is_given_up(script: Script) -> None:
    script.acts.append(lambda _: time.sleep(0.8))
    with pytest.raises(EngineUnavailable, match="no answer in time"):
        await HttpEngine(script.url, "base", timeout=0.2).chat(ASK)
    assert len(script.bodies) == 1


async def test_odd_types_are_read_as_what_they_mean(script: Script) -> None:
    engine = HttpEngine(script.url, "base")
    parts = [{"type": "text", "text": "h"}, {"type": "image"}, {"type": "text", "text": "i \ud83d"}]
    script.say(200, completion({"content": parts}))
    script.say(200, {**completion({"content": 5}), "usage": {"prompt_tokens": "12", "completion_tokens": -1}})
    odd = {"prompt_tokens": True, "completion_tokens": 3, "prompt_tokens_details": [1]}
    script.say(200, {**completion({"content": {"a": 1}}), "usage": odd})
    calls = [{"id": 3, "function": {"name": "f", "arguments": given}} for given in ({"x": 1}, None, '{"x": 1}')]
    script.say(200, completion({"content": None, "tool_calls": calls}))
    replies = [await engine.chat(ASK) for _ in range(4)]
    assert [r.message.content for r in replies] == ["hi \ufffd", "5", '{"a": 1}', None]
    assert [r.usage for r in replies[1:3]] == [Usage(), Usage(None, 3)]
    assert [c.arguments for c in replies[3].message.tool_calls] == ['{"x": 1}', "", '{"x": 1}']


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"message": "quota exceeded", "code": 429}, EngineUnavailable, "HTTP 429: quota exceeded"),
        ({"message": "quota exceeded"}, EngineUnavailable, "quota exceeded"),
        ({"message": "too long \ud83d", "code": 400}, EngineRefused, "too long \ufffd"),
        ("no such thing", EngineUnavailable, "no such thing"),
    ],
)
async def test_an_error_in_the_place_of_an_answer(script: Script, error: Any, kind: Any, words: str) -> None:
    script.say(200, {"error": error})
    with pytest.raises(kind, match=words):
        await HttpEngine(script.url, "base").chat(ASK)


async def test_no_nesting_ends_in_a_traceback(script: Script) -> None:
    engine = HttpEngine(script.url, "base", retries=0)
    script.say(200, b"[" * 200_000)
    script.say(500, b"[" * 200_000)
    for kind in (EngineError, EngineUnavailable):
        with pytest.raises(kind):
            await engine.chat(ASK)
    script.acts.clear()
    script.say(200, b"data: " + b"[" * 200_000 + b"\n\n")
    with pytest.raises(EngineError, match="not JSON"):
        await whole(engine, ASK)


@pytest.mark.parametrize("data", [b"hello", b"[]", b"{}", {"choices": []}, {"choices": [{"message": 3}]}])
async def test_an_answer_of_another_kind_is_an_error(script: Script, data: Any) -> None:
    script.say(200, data)
    with pytest.raises(EngineError):
        await HttpEngine(script.url, "base").chat(ASK)


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call_part(index: int, arguments: str = "", **more: Any) -> dict[str, Any]:
    name = more.pop("name", None)
    return {"index": index, "function": {"name": name, "arguments": arguments}, **more}


async def test_a_stream_is_put_together(script: Script) -> None:
    script.events(
        chunk(role="assistant", content=""),
        chunk(content="Let me "),
        chunk(content="see."),
        chunk(tool_calls=[call_part(0, id="a", name="f")]),
        chunk(tool_calls=[call_part(0, '{"x":'), call_part(1, '{"y"', id="b", name="g")]),
        chunk(tool_calls=[call_part(1, ": 2}"), call_part(0, " 1}")]),
        chunk("stop"),
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
    )
    pieces = [piece async for piece in HttpEngine(script.url, "base").stream(ASK)]
    assert [p.text for p in pieces] == ["Let me ", "see.", ""]
    reply = pieces[-1].reply
    assert reply is not None
    calls = (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", '{"y": 2}'))
    assert reply.message == Message("assistant", "Let me see.", calls)
    assert (reply.finish_reason, reply.usage) == ("tool_calls", Usage(9, 4))
    assert script.bodies[0]["stream"] is True


async def test_only_line_ends_end_the_lines_of_a_stream(script: Script) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be"
    lines = [{"choices": [{"delta": {"content": odd}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    for end in (b"\n", b"\r\n", b"\r"):
        script.say(200, b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + 2 * end for one in lines))
    engine = HttpEngine(script.url, "base")
    for _ in range(3):
        assert (await whole(engine, ASK))[-1].reply.message.content == odd  # type: ignore[union-attr]


async def test_a_character_cut_in_two_by_chunks_is_whole(script: Script) -> None:
    halves = ["a\ud83d", "\ude00b", "\ud83d"]
    script.events(*(chunk(content=half) for half in halves), chunk("stop"))
    *pieces, last = await whole(HttpEngine(script.url, "base"), ASK)
    assert [one.text for one in pieces] == ["a", "\U0001f600b"]
    assert last.reply is not None
    assert last.reply.message.content == "a\U0001f600b\ufffd"


async def test_parallel_calls_that_all_have_the_same_index(script: Script) -> None:
    def part(index: int, id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
        return chunk(tool_calls=[{"index": index, "id": id, "function": {"name": name, "arguments": arguments}}])

    parts = [part(0, "a", "f", ""), part(0, None, None, '{"x": 1}'), part(0, "b", "f", {"x": 2})]
    # vLLM once gave each piece of one call an id of its own.
    parts += [part(1, "c", "f", ""), part(1, "d", None, '{"x": 3}')]
    script.events(*parts, chunk("tool_calls"))
    reply = (await whole(HttpEngine(script.url, "base"), ASK))[-1].reply
    assert reply is not None
    assert [(c.id, c.arguments) for c in reply.message.tool_calls] == [
        ("a", '{"x": 1}'), ("b", '{"x": 2}'), ("c", '{"x": 3}'),
    ]  # fmt: skip


async def test_a_stream_that_breaks_off_is_no_answer(script: Script) -> None:
    script.events(chunk(content="half"), cut=True)
    stream = HttpEngine(script.url, "base").stream(ASK)
    assert (await anext(stream)).text == "half"
    with pytest.raises(EngineUnavailable, match="broke off"):
        await anext(stream)
    assert len(script.bodies) == 1


async def test_an_error_within_a_stream(script: Script) -> None:
    script.events(chunk(content="half"), {"error": {"message": "engine died", "code": 500}})
    with pytest.raises(EngineUnavailable, match="engine died"):
        _ = [piece async for piece in HttpEngine(script.url, "base").stream(ASK)]


async def test_closing_a_stream_closes_the_connection(script: Script) -> None:
    script.events(*[chunk(content="x")] * 200, wait=0.01)
    stream = HttpEngine(script.url, "base").stream(ASK)
    assert (await anext(stream)).text == "x"
    await stream.aclose()  # type: ignore[attr-defined]
    assert await asyncio.to_thread(script.gone.wait, 5)


async def test_cancelling_a_chat_closes_the_connection(script: Script) -> None:
    gone = threading.Event()

    def act(h: BaseHTTPRequestHandler) -> None:
        h.connection.settimeout(5)
        if h.connection.recv(1) == b"":
            gone.set()

    script.acts.append(act)
    task = asyncio.create_task(HttpEngine(script.url, "base").chat(ASK))
    while not script.bodies:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gone.wait, 5)


async def test_a_profile_is_the_model_and_brings_a_receipt(script: Script) -> None:
    script.say(200, completion(trimtab={"receipt": RECEIPT}))
    reply = await HttpEngine(script.url, "base", trimtab=True).chat(
        ChatRequest((user("x"),), profile="p", sampling=Sampling())
    )
    assert (script.bodies[0]["model"], script.bodies[0]["trimtab"]) == ("p", {"receipt": True})
    assert reply.receipt is not None
    assert (reply.receipt.profile, reply.receipt.layers, reply.receipt.tokens_steered) == ("p@1", (1, 2), 7)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("profile", "receipt", "words"),
    [
        ("p", None, "without a receipt"),
        ("p", {**RECEIPT, "profile": "q@1"}, "the receipt says 'q@1'"),
        ("p@2", RECEIPT, "the receipt says 'p@1'"),
        ("p@sha256:01234567", RECEIPT, "the receipt says 'p@1'"),
        ("p", {**RECEIPT, "profile": None}, "the receipt says None"),
        (None, RECEIPT, "the receipt says 'p@1'"),
        ("p", {"engine": "vllm"}, "malformed"),
    ],
)
async def test_nothing_is_silently_unsteered(
    script: Script, stream: bool, profile: str | None, receipt: Any, words: str
) -> None:
    more = {"trimtab": {"receipt": receipt}} if receipt else {}
    if stream:
        script.events(chunk("stop", content="hi"), {"choices": [], **more})
    else:
        script.say(200, completion(**more))
    engine = HttpEngine(script.url, "base", trimtab=True)
    request = ChatRequest((user("x"),), profile=profile, sampling=Sampling())
    with pytest.raises(EngineError, match=words):
        await (whole(engine, request) if stream else engine.chat(request))


async def test_a_profiles_decoding_is_the_default(script: Script) -> None:
    """Of the profile that the server says the name stands for."""
    script.profile = {"profile": {"id": "p@1", "decoding": {"temperature": 0.7, "max_tokens": 9}}}
    script.say(200, completion(trimtab={"receipt": RECEIPT}))
    engine = HttpEngine(script.url, "base", trimtab=True)
    await engine.chat(ChatRequest((user("x"),), profile="p@1"))
    assert [script.bodies[-1][k] for k in ("temperature", "top_p", "max_tokens")] == [0.7, 1.0, 9]
    await engine.chat(ChatRequest((user("x"),), profile="p"))  # a server that knows nothing of it
    assert script.bodies[-1]["temperature"] == 0.0


async def test_a_foreign_server_takes_no_profile(script: Script) -> None:
    engine = HttpEngine(script.url, "base")
    with pytest.raises(BadInput, match="not a Trimtab server"):
        await engine.chat(ChatRequest((user("x"),), profile="p"))
    with pytest.raises(BadInput, match="not a Trimtab server"):
        await anext(engine.stream(ChatRequest((user("x"),), profile="p")))
    assert script.bodies == []
    assert await engine.profiles() == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "localhost:80",
        "http://",
        "",
        "http://[::1",
        "http://a:99999/v1",
        "http://a:b",
        "http://a\n",
        "http://a:0",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(BadInput, match="not an http"):
        HttpEngine(url, "m")


async def test_connect_finds_out_what_the_server_is(script: Script) -> None:
    assert not (await connect(script.url, "base")).trimtab
    assert (await connect(script.url, None)).model == "base"
    with pytest.raises(NotFound, match="It serves: base"):
        await connect(script.url, "other")
    script.models = ["a", "b"]
    with pytest.raises(BadInput, match="a, b"):
        await connect(script.url, None)
    script.profiles = {"profiles": []}
    trimtab = await connect(script.url, None)
    assert (trimtab.trimtab, trimtab.model, await trimtab.profiles()) == (True, "a", ["b"])


async def test_only_a_trimtab_server_constrains_calls(script: Script) -> None:
    script.say(200, completion())
    ask = ChatRequest((user("hello"),), (TOOL,), constrained=True)
    with pytest.raises(BadInput, match="not a Trimtab server"):
        await HttpEngine(script.url, "base").chat(ask)
    with pytest.raises(BadInput, match="not a Trimtab server"):
        await whole(HttpEngine(script.url, "base"), ask)
    assert script.bodies == []
    await HttpEngine(script.url, "base", trimtab=True).chat(ask)
    assert script.bodies[0]["response_format"]["format"]["tags"][0]["begin"].endswith('"name": "f", "arguments": ')
    # Without tools there is no call to hold to anything.
    await HttpEngine(script.url, "base").chat(ChatRequest((user("hello"),), constrained=True))
    assert "response_format" not in script.bodies[1]


async def test_open_engine_takes_a_url_and_a_key(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    script.say(200, completion())
    async with open_engine(script.url, model="base") as engine:
        assert (engine.name, engine.model) == ("openai", "base")
        await engine.chat(ASK)
    assert script.headers[0]["Authorization"] == "Bearer sesame"
    with pytest.raises(EngineUnavailable, match="closed"):
        await engine.chat(ASK)


def test_one_engine_in_several_event_loops(script: Script) -> None:
    script.say(200, completion())
    engine = HttpEngine(script.url, "base")
    assert [asyncio.run(engine.chat(ASK)).message.content for _ in range(3)] == ["hi"] * 3


async def test_an_unknown_engine() -> None:
    with pytest.raises(BadInput, match="unknown engine 'gpu'"):
        async with open_engine("gpu"):
            pass


@given(st.integers(0, 12))
def test_pauses_grow_with_jitter_and_stay_bounded(attempt: int) -> None:
    ceiling = min(http_module.FIRST_PAUSE * 2**attempt, http_module.LONGEST_PAUSE)
    assert ceiling / 2 <= pause(attempt, None) <= ceiling


def test_retry_after_is_seconds_or_a_date() -> None:
    assert pause(0, "2.5") == 2.5
    assert pause(0, "1e9") == http_module.LONGEST_PAUSE
    assert pause(0, "-3") == 0
    assert 3 < pause(0, email.utils.formatdate(time.time() + 5, usegmt=True)) <= 5
    assert pause(0, "soon") == http_module.FIRST_PAUSE
