"""OpenAI's chat-completions format, both ways: requests to JSON, answers and streams to replies, errors to our tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import EngineError, EngineRefused, EngineUnavailable, NotFound, TrimtabError
from ..chat import ChatRequest, Message, Receipt, Reply, Sampling, ToolCall, Usage
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
        "max_tokens": sampling.max_tokens,
    }
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


def parse_reply(data: Any, *, seconds: float, request: ChatRequest, trimtab: bool, where: str) -> Reply:
    """The reply in a whole response.

    Raises:
        EngineError: it is not a chat completion, or lacks the receipt that a steered request must have.
    """
    try:
        choice = data["choices"][0]
        message = Message.from_openai({"role": "assistant"} | choice["message"])
        logprobs = _logprobs(choice)
        reason = choice.get("finish_reason")
        usage = _usage(data.get("usage"))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the answer is not a chat completion ({error!r})", where=where) from None
    return Reply(
        message=Message("assistant", message.content or None, message.tool_calls),
        finish_reason=finish_reason(reason, message.tool_calls),
        usage=usage,
        seconds=seconds,
        receipt=receipt_of(data, request, where) if trimtab else None,
        logprobs=logprobs if request.sampling and request.sampling.logprobs else None,
    )


class Assembly:
    """A reply put together from the chunks of a stream."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._reason: str | None = None
        self._logprobs: list[float] = []
        self._usage: Any = None
        self._receipt: Any = None

    def add(self, chunk: Json) -> str:
        """Take one chunk in; the text it brings, maybe empty.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not a chunk of a chat completion.
        """
        self._usage = chunk.get("usage") or self._usage
        self._receipt = chunk.get("trimtab") or self._receipt
        text = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            piece = delta.get("content") or ""
            if piece:
                text += piece
                self.text.append(piece)
            for part in delta.get("tool_calls") or ():
                self._add_call(part)
            self._logprobs.extend(_logprobs(choice) or ())
            self._reason = choice.get("finish_reason") or self._reason
        return text

    def _add_call(self, part: Json) -> None:
        # Some servers leave the index out where there is one call; a new id then means a new call.
        index = part.get("index")
        if index is None:
            last = max(self._calls, default=-1)
            fresh = last < 0 or (part.get("id") and part["id"] != self._calls[last]["id"])
            index = last + 1 if fresh else last
        call = self._calls.setdefault(int(index), {"id": "", "name": "", "arguments": ""})
        function = part.get("function") or {}
        call["id"] = call["id"] or part.get("id") or ""
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""

    def reply(self, *, seconds: float, request: ChatRequest, trimtab: bool, where: str) -> Reply:
        """The whole reply, once the stream has ended.

        Raises:
            EngineError: the stream ended without a finish reason, or a steered request has no receipt.
        """
        if self._reason is None:
            raise EngineUnavailable("the stream broke off before the answer was whole", where=where)
        calls = tuple(ToolCall(c["id"], c["name"], c["arguments"]) for _, c in sorted(self._calls.items()))
        return Reply(
            message=Message("assistant", "".join(self.text) or None, calls),
            finish_reason=finish_reason(self._reason, calls),
            usage=_usage(self._usage),
            seconds=seconds,
            receipt=receipt_of({"trimtab": self._receipt}, request, where) if trimtab else None,
            logprobs=tuple(self._logprobs) if request.sampling and request.sampling.logprobs else None,
        )


def finish_reason(said: str | None, calls: tuple[ToolCall, ...]) -> str:
    """Why the answer ended. Servers claim `tool_calls` without any call, and the reverse: the calls decide."""
    if calls:
        return "tool_calls"
    return "stop" if said in (None, "tool_calls", "function_call") else str(said)


def receipt_of(data: Mapping[str, Any], request: ChatRequest, where: str) -> Receipt | None:
    """The receipt in a response of a Trimtab server.

    Raises:
        EngineError: it is missing for a steered request, or says something else than was asked for.
    """
    raw = (data.get("trimtab") or {}).get("receipt")
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
            engine=str(raw["engine"]),
            model=str(raw["model"]),
            profile=raw.get("profile"),
            profile_sha256=raw.get("profile_sha256"),
            adapter_sha256=raw.get("adapter_sha256"),
            layers=tuple(int(layer) for layer in raw.get("layers") or ()),
            tokens_steered=raw.get("tokens_steered"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the receipt is malformed ({error!r})", where=where) from None
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


def _words(text: str) -> str:
    try:
        data = json.loads(text)
        error = data.get("error", data)
        found = error if isinstance(error, str) else error.get("message") or error.get("what") or data.get("detail")
    except (ValueError, AttributeError):
        found = text
    return " ".join(str(found or "").split())[:800]


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
    details = raw.get("prompt_tokens_details") or {}
    return Usage(raw.get("prompt_tokens"), raw.get("completion_tokens"), details.get("cached_tokens"))
