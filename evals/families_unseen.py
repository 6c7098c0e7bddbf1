"""Tools that no training has seen: are calls of them exact, and is no call made where none of them fits?"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.chat import ChatRequest, Message, Sampling, user

# The draw of arguments that training documents use; this evaluation must not have another.
from ..models.embedded.random_tools import MadeUpTool, ask, draw_tools
from ..models.embedded.random_tools import _arguments as draw_arguments
from ..models.embedded.words import HELD_OUT
from .families_calls import parsed, same

SEED = 7101
COUNT = 300
OFFERED = 4


@dataclass(frozen=True)
class Probe:
    """One request with four made-up tools; `wanted` is the right call, None where none of the tools fits."""

    text: str
    tools: tuple[dict[str, Any], ...]
    wanted: tuple[str, Mapping[str, Any]] | None

    def request(self, *, constrained: bool = False) -> ChatRequest:
        """The request, greedy, on the bare model."""
        return ChatRequest((user(self.text),), self.tools, None, Sampling(), constrained)


def unseen_probes(count: int = COUNT, seed: int = SEED) -> list[Probe]:
    """Single requests, each for one of four tools that are named with held-out words."""
    return [_fitting(random.Random(seed * 1_000_003 + i)) for i in range(count)]


def abstention_probes(count: int = COUNT, seed: int = SEED) -> list[Probe]:
    """The same sets of tools; in every other request, a held-out tool is asked for that is not among them."""
    return [
        _absent(random.Random(seed * 1_000_003 + i)) if i % 2 == 0 else _fitting(random.Random(seed * 1_000_003 + i))
        for i in range(count)
    ]


def _offered(rng: random.Random) -> list[MadeUpTool]:
    while True:
        tools = draw_tools(rng, OFFERED, HELD_OUT)
        # Fewer when two had the same name; and a request that two tools serve equally well has no right answer.
        if len(tools) == OFFERED and len({(tool.verb, tool.thing) for tool in tools}) == OFFERED:
            return tools


def _fitting(rng: random.Random) -> Probe:
    tools = _offered(rng)
    made = rng.choice(tools)
    arguments = draw_arguments(rng, made)
    return Probe(ask(rng, made, arguments), tuple(tool.spec() for tool in tools), (made.name, arguments))


def _absent(rng: random.Random) -> Probe:
    tools = _offered(rng)
    things = {tool.thing for tool in tools}
    while (made := draw_tools(rng, 1, HELD_OUT)[0]).thing in things:
        pass
    return Probe(ask(rng, made, draw_arguments(rng, made)), tuple(tool.spec() for tool in tools), None)


def exact(probe: Probe, reply: Message) -> bool:
    """Whether a reply is the one right call: its name, and arguments equal as JSON values."""
    if probe.wanted is None or len(reply.tool_calls) != 1:
        return False
    call = reply.tool_calls[0]
    return call.name == probe.wanted[0] and same(parsed(call.arguments), dict(probe.wanted[1]))


def missed(probes: Sequence[Probe], replies: Sequence[Message], limit: int = 40) -> list[dict[str, Any]]:
    """What was asked, wanted and replied where a reply is not exact, for the reader of the document."""
    wrong = [(probe, reply) for probe, reply in zip(probes, replies, strict=True) if not exact(probe, reply)]
    return [
        {
            "ask": probe.text,
            "wanted": list(probe.wanted) if probe.wanted else None,
            "calls": [[call.name, call.arguments] for call in reply.tool_calls],
            "text": reply.content,
        }
        for probe, reply in wrong[:limit]
    ]
