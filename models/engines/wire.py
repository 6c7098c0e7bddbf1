"""OpenAI's chat-completions format, both ways: requests to JSON, answers and streams to replies, errors to our tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import EngineError, EngineRefused, EngineUnavailable, NotFound, TrimtabError
from ..chat import ChatRequest, Message, Receipt, Reply, Sampling, ToolCall, Usage, arguments_of, text_of, whole
from . import constrain

Json = dict[str, Any]


def request_body(request: ChatRequest, sampling: Sampling, *, model: str, trimtab: bool, stream: bool) -> Json:
    """The JSON of a request. With `trimtab`, the profile is the model id, and a receipt is asked for.

    Raises:
        BadInput: a constrained request with a tool to whose schema decoding cannot be held.
    """
    body: Json = {
        "model": request.profile if trimtab and request.profile else model,
        "messages": [m.to_openai() for m in request.messages],
        # Always said: servers have defaults of their own.
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if trimtab or sampling.max_tokens is not None:
        body["max_tokens"] = sampling.longest
    if request.tools:  # an empty list is refused by vLLM
        body["tools"] = list(request.tools)
        body["tool_choice"] = "auto"
        if request.constrained:
            body["response_format"] = constrain.response_format(request.tools)
            body["tools"] = constrain.unstrict(request.tools)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logprobs:
        body["logprobs"] = True
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if trimtab:
        body["trimtab"] = {"receipt": True}
    return body


def read_json(text: str) -> Any:
    """What a server sent as JSON.

    Raises:
        ValueError: it is none, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_reply(data: Any, *, seconds: float, request: ChatRequest, trimtab: bool, where: str) -> Reply:
    """The reply in a whole response.

    Raises:
        EngineError: it is not a chat completion, or lacks the receipt that a steered request must have.
    """
    try:
        choice = data["choices"][0]
        message = Message.from_openai({**choice["message"], "role": "assistant"})
        logprobs = _logprobs(choice) if request.sampling and request.sampling.logprobs else None
        reason = choice.get("finish_reason")
        usage = _usage(data.get("usage"))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EngineError(f"the answer is not a chat completion ({error!r:.200})", where=where) from None
    return Reply(
        message=Message("assistant", message.content or None, message.tool_calls),
        finish_reason=finish_reason(reason, message.tool_calls),
        usage=usage,
        seconds=seconds,
        receipt=receipt_of(data, request, where) if trimtab else None,
        logprobs=logprobs,
    )


class Assembly:
    """A reply put together from the chunks of a stream."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._half = ""
        self._calls: list[dict[str, str]] = []
        self._at: dict[int, dict[str, str]] = {}
        self._reason: str | None = None
        self._logprobs: list[Any] = []
        self._usage: Any = None
        self._receipt: Any = None

    def add(self, chunk: Json) -> str:
        """Take one chunk in; the text it brings, maybe empty.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, RecursionError: it is not a chunk of a chat completion.
        """
        self._usage = chunk.get("usage") or self._usage
        self._receipt = chunk.get("trimtab") or self._receipt
        text = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text += self._add_text(text_of(delta.get("content")) or "")
            for part in delta.get("tool_calls") or ():
                self._add_call(part)
            self._logprobs.extend((choice.get("logprobs") or {}).get("content") or ())
            self._reason = choice.get("finish_reason") or self._reason
        return text

    def _add_text(self, piece: str) -> str:
        # A character may be cut in two by the border of two chunks: its first half waits for the second.
        piece = self._half + piece
        end = len(piece) - ("\ud800" <= piece[-1:] <= "\udbff")
        piece, self._half = whole(piece[:end]), piece[end:]
        self._text.append(piece)
        return piece

    def _add_call(self, part: Json) -> None:
        function, index, fresh_id = part.get("function") or {}, part.get("index"), part.get("id")
        if index is None:
            # Some servers leave the index out where there is one call; a new id then means a new call.
            call = self._calls[-1] if self._calls else None
            fresh = call is None or (fresh_id and fresh_id != call["id"])
            index = len(self._calls) if fresh else 0
        else:
            # Some say 0 for every call. A new id alone says nothing: old vLLM servers put one on each piece of a call.
            call = self._at.get(int(index))
            fresh = call is None or (fresh_id and call["id"] and fresh_id != call["id"] and function.get("name"))
        if call is None or fresh:
            call = self._at[int(index)] = {"id": "", "name": "", "arguments": ""}
            self._calls.append(call)
        call["id"] = call["id"] or fresh_id or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += arguments_of(function.get("arguments"))

    def reply(self, *, seconds: float, request: ChatRequest, trimtab: bool, where: str) -> Reply:
        """The whole reply, once the stream has ended.

        Raises:
            EngineError: the stream ended without a finish reason, or a steered request has no receipt.
        """
        if self._reason is None:
            raise EngineUnavailable("the stream broke off before the answer was whole", where=where)
        calls = [{"id": c["id"], "function": {"name": c["name"], "arguments": c["arguments"]}} for c in self._calls]
        choice = {
            "message": {"content": "".join(self._text) + self._half, "tool_calls": calls},
            "logprobs": {"content": self._logprobs},
            "finish_reason": self._reason,
        }
        data = {"choices": [choice], "usage": self._usage, "trimtab": self._receipt}
        return parse_reply(data, seconds=seconds, request=request, trimtab=trimtab, where=where)


def finish_reason(said: str | None, calls: tuple[ToolCall, ...]) -> str:
    """Why the answer ended. Servers claim `tool_calls` without any call, and the reverse: the calls decide."""
    if calls:
        return "tool_calls"
    return "stop" if said in (None, "tool_calls", "function_call") else whole(str(said))


def receipt_of(data: Mapping[str, Any], request: ChatRequest, where: str) -> Receipt | None:
    """The receipt in a response of a Trimtab server.

    Raises:
        EngineError: it is missing for a steered request, or says something else than was asked for.
    """
    about = data.get("trimtab")
    raw = about.get("receipt") if isinstance(about, Mapping) else None
    if raw is None:
        if request.profile is None:
            return None
        raise EngineError(
            f"profile {request.profile!r} was asked for and the answer came without a receipt, so it may be unsteered",
            where=where,
            fix="Is this a Trimtab server of this version? Start one with `trimtab serve`",
        )
    try:
        receipt = Receipt(
            engine=whole(str(raw["engine"])),
            model=whole(str(raw["model"])),
            profile=_word(raw.get("profile")),
            profile_sha256=_word(raw.get("profile_sha256")),
            adapter_sha256=_word(raw.get("adapter_sha256")),
            layers=tuple(int(layer) for layer in raw.get("layers") or ()),
            tokens_steered=_count(raw.get("tokens_steered")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the receipt is malformed ({error!r:.200})", where=where) from None
    if not _fits(request.profile, receipt):
        raise EngineError(
            f"profile {request.profile!r} was asked for, the receipt says {receipt.profile!r}"
            + (f" ({receipt.profile_sha256})" if receipt.profile_sha256 else ""),
            where=where,
        )
    return receipt


def _fits(asked: str | None, receipt: Receipt) -> bool:
    """Whether what was applied is what was asked for: its name, and its version or hash where they were given."""
    if asked is None or receipt.profile is None:
        return asked == receipt.profile
    name, _, rest = asked.partition("@")
    applied, _, version = receipt.profile.partition("@")
    if rest.startswith("sha256:"):
        return name == applied and (receipt.profile_sha256 or "").startswith(rest.removeprefix("sha256:"))
    return name == applied and rest in ("", version)


def error_of(status: int, text: str, *, where: str, secret: str | None = None) -> TrimtabError:
    """The error of our tree for an HTTP error, with the server's own words."""
    words = _words(text) or f"HTTP {status}"
    if secret:
        words = words.replace(secret, "***")
    if status == 404:
        return NotFound(words, where=where)
    if status in (401, 403):
        return EngineRefused(words, where=where, fix="Set TRIMTAB_API_KEY or OPENAI_API_KEY to a key it accepts")
    if status == 429 or status >= 500:
        return EngineUnavailable(f"HTTP {status}: {words}", where=where)
    return EngineRefused(f"HTTP {status}: {words}", where=where)


def error_within(data: Any, text: str, *, where: str, secret: str | None = None) -> TrimtabError | None:
    """The error that a response of status 200, or a piece of a stream, holds instead of an answer; None without one."""
    error = data.get("error") if isinstance(data, Mapping) else None
    if not error:
        return None
    code = error.get("code") if isinstance(error, Mapping) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return error_of(status, text, where=where, secret=secret)


def _words(text: str) -> str:
    try:
        data = read_json(text)
        error = data.get("error", data)
        found = error if isinstance(error, str) else error.get("message") or error.get("what") or data.get("detail")
    except (ValueError, AttributeError):
        found = text
    return whole(" ".join(str(found or "").split())[:800])


def decoding_of(data: Any) -> Sampling:
    """The sampling that a profile's decoding defaults make, from `GET /v1/trimtab/profiles/{profile}`; greedy without
    any."""
    try:
        given = data["profile"].get("decoding") or {}
        return Sampling(**{k: v for k, v in given.items() if k in ("temperature", "top_p", "max_tokens")})
    except (KeyError, TypeError, AttributeError):
        return Sampling()


def _logprobs(choice: Json) -> tuple[float, ...] | None:
    content = (choice.get("logprobs") or {}).get("content")
    return tuple(float(token["logprob"]) for token in content) if content is not None else None


def _usage(raw: Any) -> Usage:
    if not isinstance(raw, Mapping):
        return Usage()
    details = raw.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(_count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens")), _count(cached))


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none, such as a text."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _word(value: Any) -> str | None:
    return None if value is None else whole(str(value))
