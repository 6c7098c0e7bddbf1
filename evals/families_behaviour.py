"""The planted behaviours: does a tag bring out the side it names, and are both sides as likely without one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..models.chat import ChatRequest, Message, Sampling, conversation
from ..models.embedded.answers import AXES, detect
from ..models.embedded.corpus import Split, behaviour_prompts
from .families_bars import BEHAVIOUR, UNTAGGED, Bar, Share, share_bar
from .families_calls import parsed

SEED = 7201
TAGGED = 240
"""Replies a side; 4 may miss. A model that shows its side in 995 of 1000 fails that once in 130 tries; of 60 replies,
of which 1 may miss, once in 27."""
SAMPLED = 240
"""Replies without a tag: of so many, a fair coin falls outside of 0.4 to 0.6 twice in a thousand tries; of 60, once in
eleven."""


@dataclass(frozen=True)
class Prompts:
    """Requests on which one behaviour shows. `side` is the one that the tag names (True: the first); None: no tag."""

    axis: str
    side: bool | None
    requests: tuple[ChatRequest, ...]

    @property
    def name(self) -> str:
        """`detail.brief`, `detail.untagged`."""
        return f"{self.axis}.{'untagged' if self.side is None else AXES[self.axis][0 if self.side else 1]}"


def prompts(axis: str, side: bool | None, families: Sequence[str], split: Split, limit: int | None = None) -> Prompts:
    """Requests from all families in which the behaviour can show, as many from each.

    With a tag they are greedy. Without one they are sampled, each with its own seed: a greedy model always takes the
    likelier side, so only sampling can show how likely the sides are.
    """
    wanted = SAMPLED if side is None else TAGGED
    seed = SEED + 10 * list(AXES).index(axis)
    able = [f for f in families if behaviour_prompts(axis, f, split, 1, seed, side)]
    count = min(wanted if limit is None else limit, wanted)
    found: list[dict[str, Any]] = []
    for i, family in enumerate(able):
        mine = count // len(able) + (i < count % len(able))
        found += behaviour_prompts(axis, family, split, mine, seed + i + (1000 if side is None else 0), side)
    return Prompts(
        axis,
        side,
        tuple(
            ChatRequest(
                conversation(one["messages"]),
                tuple(one["tools"]),
                None,
                Sampling(temperature=1.0, seed=seed + i) if side is None else Sampling(),
            )
            for i, one in enumerate(found)
        ),
    )


def shown_side(axis: str, reply: Message) -> bool | None:
    """Which side of a behaviour a reply shows; None for neither.

    `confirm` and `verify` show in what is done: a question before acting, or a call; a further call, or an answer.
    `units` shows in the target of the first conversion.
    """
    calls, text = reply.tool_calls, reply.content or ""
    if axis == "confirm":
        return False if calls else detect(text)["confirm"]
    if axis == "verify":
        return True if calls else False if detect(text)["register"] is not None else None
    if axis == "units":
        arguments = next((parsed(call.arguments) for call in calls if call.name == "convert_units"), None)
        return detect(text, [("convert_units", arguments)])["units"] if isinstance(arguments, dict) else None
    return None if calls else detect(text)[axis]


@dataclass(frozen=True)
class Seen:
    """What the replies to some prompts showed: how many the first side, the second, neither."""

    prompts: Prompts
    first: int
    second: int
    neither: int

    @property
    def bar(self) -> Bar:
        """With a tag, the share of all replies with the side it names; without, of the first among those with one."""
        name, side = f"behaviour.{self.prompts.name}", self.prompts.side
        if side is None:
            return share_bar(name, Share(self.first, self.first + self.second), UNTAGGED)
        shown = self.first if side else self.second
        return share_bar(name, Share(shown, self.first + self.second + self.neither), BEHAVIOUR)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        words = AXES[self.prompts.axis]
        share = self.bar.share
        assert share is not None
        return {
            **share.to_json(),
            words[0]: self.first,
            words[1]: self.second,
            "neither": self.neither,
            "decoding": "greedy" if self.prompts.side is not None else "temperature 1",
        }


def seen(asked: Prompts, replies: Sequence[Message]) -> Seen:
    """Count the sides that the replies show."""
    sides = [shown_side(asked.axis, reply) for reply in replies]
    return Seen(asked, sides.count(True), sides.count(False), sides.count(None))
