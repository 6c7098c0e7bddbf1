"""The words of a conversation: messages, tool calls, what is asked of an engine and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
LONGEST_ANSWER = 256
"""Generated tokens of an answer where nobody says another number: small models that ramble on are stopped."""


def whole(text: str) -> str:
    """Text that can be written anywhere: two halves of a character are joined, a lone one becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def whole_json(text: str) -> str:
    """JSON text likewise, but halves become the escapes that JSON has for them: a tool is to refuse them, not to act on
    another text."""
    joined: str = json.loads(json.dumps(text))
    return joined.encode(errors="backslashreplace").decode()


def text_of(content: Any) -> str | None:
    """A message's content as text: of a list of parts the texts, of anything else its JSON."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        return json.dumps(content, ensure_ascii=False)
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def arguments_of(value: Any) -> str:
    """A call's arguments as JSON text; some servers send the object itself."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it. `arguments` is JSON text and may be broken: the agent validates it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One message of a conversation, in OpenAI's terms."""

    role: Role
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def to_openai(self) -> dict[str, Any]:
        """The message as an OpenAI chat-completions dictionary."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        return out

    @classmethod
    def from_openai(cls, data: Mapping[str, Any]) -> Message:
        """The reverse of `to_openai`. Missing fields become None or empty, halves of characters are mended."""
        calls = tuple(
            ToolCall(
                whole(str(c.get("id") or "")),
                whole(str(c["function"]["name"] or "")),
                whole_json(arguments_of(c["function"].get("arguments"))),
            )
            for c in data.get("tool_calls") or ()
        )
        content, answers = text_of(data.get("content")), data.get("tool_call_id")
        return cls(
            data["role"],
            None if content is None else whole(content),
            calls,
            None if answers is None else whole(str(answers)),
        )


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Greedy by default.

    Attributes:
        max_tokens: generated tokens at most. None is `LONGEST_ANSWER` on Trimtab's own engines; to anybody else's
            server nothing is said, and its own limit holds.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    logprobs: bool = False

    @property
    def longest(self) -> int:
        """Generated tokens at most on an engine of Trimtab's own."""
        return LONGEST_ANSWER if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True)
class ChatRequest:
    """One request to an engine.

    Attributes:
        tools: OpenAI tool specifications (`{"type": "function", "function": {...}}`).
        profile: `name`, `name@version` or `name@sha256:...`; None asks for the bare base model.
        sampling: None takes the profile's decoding defaults, else greedy.
        constrained: calls may only name an offered tool and hold arguments that fit its schema; the model may still
            answer in text. A call that `max_tokens` cuts short is text. An engine that cannot do it refuses. Without
            tools there is nothing to hold to.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    profile: str | None = None
    sampling: Sampling | None = None
    constrained: bool = False


@dataclass(frozen=True)
class Usage:
    """Tokens counted by the engine. None where the engine does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Receipt:
    """What really was applied to one response, as the engine that applied it says.

    Attributes:
        engine: the engine's name, such as `vllm`.
        model: the base model.
        profile: `name@version`, or None for the bare base.
        profile_sha256: identity of the profile's canonical content.
        adapter_sha256: identity of the served LoRA (adapter and weight deltas together), or None.
        layers: layers at which interventions acted, ascending.
        tokens_steered: positions at which interventions were added, over prompt and answer; 0 without interventions.
    """

    engine: str
    model: str
    profile: str | None = None
    profile_sha256: str | None = None
    adapter_sha256: str | None = None
    layers: tuple[int, ...] = ()
    tokens_steered: int | None = None


@dataclass(frozen=True)
class Reply:
    """One answer of an engine. `seconds` is wall time seen by the caller; `logprobs` one natural log per token."""

    message: Message
    finish_reason: str
    usage: Usage
    seconds: float
    receipt: Receipt | None = None
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of a streamed answer. The last one carries the whole `reply`."""

    text: str = ""
    reply: Reply | None = field(default=None)


def user(text: str) -> Message:
    """A user's message."""
    return Message("user", text)


def conversation(messages: Sequence[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """Messages from OpenAI dictionaries, messages, or a mix of both."""
    return tuple(m if isinstance(m, Message) else Message.from_openai(m) for m in messages)
