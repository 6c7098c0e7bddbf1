"""The corpus: an endless, seeded stream of documents; the labelled requests of the router.

A document is `{"family", "messages", "tools"}` in OpenAI's form, the same form in which users bring their own examples.
Documents come in groups with the same tools and opening, which a training row holds once.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...errors import ToolFailure
from ...tools.builtin import FAMILIES, builtin_tools
from ...tools.builtin.mail import receive
from ...tools.builtin.orders import make_orders
from ...tools.builtin.state import seed as seed_state
from ...tools.builtin.tables import make_tables
from . import random_tools
from .answers import AXES, PLAIN, RARE, TAGGED, Style, named, open_document, redrawn, styled, tag, word_answer
from .families import Dialogue, phrasings, play, refuse, request
from .intents import INTENTS
from .intents.common import Intent

Split = Literal["train", "test"]
Document = dict[str, Any]
MADE_UP = 0.9
"""Share of groups with made-up tools in the base's corpus of the families."""
BEHAVED = 0.35
"""Share of the base's groups of a family that are about a behaviour that shows in few requests."""
BEHAVED_TAGGED = 0.6
"""Share of these with a tag, which names that behaviour alone; the others show both sides of it."""
MIXED = 0.2
"""Share of groups that also show tools which none of their requests needs: of other families, or made up."""
HARD = {"chain": 1.6, "single": 1.0, "missing": 0.8}
"""How often an intent of each group is drawn, relative to the others."""
SOUGHT = {"confirm": 4.0, "verify": 4.0, "units": 20.0}
"""How much oftener an intent is drawn in which a behaviour shows that the tag names and few intents show."""
FOREIGN = 0.03
"""Share of requests for another family's tools."""
SPECIALIST_FOREIGN = 0.06
"""The same for a specialist."""
SPECIALIST_TAGGED = 0.2
"""Share of a specialist's groups with a tag."""
STATELESS = {*FAMILIES["calc"], *FAMILIES["dates"]}
"""Tools that leave nothing behind."""
SLIPS = 0.25
"""Share of requests with a value that a tool can mend in which it is misspelt."""


class World:
    """The built-in tools over a throw-away home, with a today that can be moved."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.today = date(2026, 5, 12)
        self.tools = builtin_tools(home, today=lambda: self.today)
        self.specs = {name: self.tools.get(name).spec() for family in FAMILIES.values() for name in family}
        self._clean = False

    def reset(self, rng: random.Random) -> None:
        """Empty the state and move today."""
        if not self._clean:
            seed_state(self.home, {})
            self._clean = True
        self.today = date(2024, 1, 1) + timedelta(days=rng.randrange(2000))

    def run(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One call on the real tool; its failure becomes the result that a model would see.

        Three names that are no tools prepare a world: `receive_mail`, `make_tables`, `make_orders`.
        """
        self._clean = self._clean and name in STATELESS
        if name == "receive_mail":
            receive(self.home / "office.db", **arguments)
        elif name == "make_tables":
            make_tables(self.home / "tables.db", **arguments)
        elif name == "make_orders":
            make_orders(self.home / "office.db", **arguments)
        else:
            try:
                result: dict[str, Any] = self.tools.get(name).function(**arguments)
            except ToolFailure as failure:
                return {"error": str(failure)}
            return result
        return {}


@contextmanager
def open_world() -> Iterator[World]:
    """A world that is gone afterwards; in memory where the machine has a memory disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="trimtab-world-", dir=memory if memory.is_dir() else None) as folder:
        yield World(Path(folder))


def _offered(rng: random.Random, family: str, used: set[str], whole: float) -> list[str]:
    """The tools shown: the family as it is with probability `whole`, else those used and some others, shuffled."""
    names = list(FAMILIES[family])
    if rng.random() < whole:
        return names
    others = [n for n in names if n not in used]
    shown = [*sorted(used), *rng.sample(others, rng.randint(min(1, len(others)), len(others)))]
    rng.shuffle(shown)
    return shown


def _bystanders(rng: random.Random, world: World, family: str | None) -> list[dict[str, Any]]:
    """One to three tools that no request of the family needs, as specifications: of other families, or made up.

    Args:
        family: None for requests that need made-up tools: all are then of the families.
    """
    mine = set(FAMILIES[family]) if family else set()
    foreign = [name for name in world.specs if name not in mine]
    count = rng.choice((1, 1, 2, 3))
    made_up = sum(rng.random() < 0.4 for _ in range(count)) if family else 0
    shown = [world.specs[name] for name in rng.sample(foreign, count - made_up)]
    while made_up:
        tool = random_tools.draw_tools(rng, 1)[0]
        if not any(part in name for part in tool.thing.split() for name in mine):
            shown.append(tool.spec())
            made_up -= 1
    return shown


def family_group(
    rng: random.Random,
    world: World,
    family: str,
    split: Split = "train",
    *,
    count: int = 5,
    whole: float = 0.6,
    style: Style | None = None,
    specialist: bool = False,
    axis: str | None = None,
) -> list[Document]:
    """`count` documents of a family with the same tools and opening, each of one or two requests.

    Args:
        whole: share of groups that show all tools of the family in their usual order.
        style: fixed style without a tag; None draws one and tags four groups of ten.
        specialist: without a tag, answer in English and act at once: what a family's adapter is for. Fewer groups
            have a tag, and more requests are such that only other families could serve them.
        axis: a behaviour that the requests show oftener, and a tag, if there is one, names alone.
    """
    opening: list[dict[str, Any]] = []
    drawn = style
    if axis is not None:
        drawn, opening = open_document(rng, [axis], BEHAVED_TAGGED)
    elif drawn is None:
        drawn, opening = open_document(rng, axes_of(family), SPECIALIST_TAGGED if specialist else TAGGED)
    sought = named(opening) if axis is None else {axis}
    foreign = SPECIALIST_FOREIGN if specialist else FOREIGN
    beside = _bystanders(rng, world, family) if rng.random() < MIXED else []
    shown = {str(spec["function"]["name"]) for spec in beside}
    used: set[str] = set()
    played = []
    for _ in range(count):
        own = drawn
        if style is None:
            own = redrawn(rng, drawn, opening)
            if specialist and not opening:
                own = replace(own, language=False, confirm=False, verify=False, units=True)
        turns: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 1, 1, 1, 2))):
            dialogue = _dialogue(rng, world, family, split, own, sought, foreign, shown)
            used |= {name for name, _ in dialogue.calls}
            turns += dialogue.turns
        played.append(turns)
    tools = [world.specs[n] for n in _offered(rng, family, used, 0.0 if beside else whole)] + beside
    if beside:
        rng.shuffle(tools)
    return [{"family": family, "messages": [*opening, *turns], "tools": tools} for turns in played]


def _dialogue(
    rng: random.Random,
    world: World,
    family: str,
    split: Split,
    style: Style,
    sought: Collection[str],
    foreign: float,
    beside: Collection[str],
) -> Dialogue:
    world.reset(rng)
    roll = rng.random()
    if roll < 0.07:
        return refuse(split, "other", rng, style)
    if roll < 0.085:
        return refuse(split, "chat", rng, style)
    if roll < 0.085 + foreign:
        return refuse(split, "other", rng, style, [foreign_request(rng, family, split, beside)])
    intent = draw_intent(rng, family, sought)
    return play(split, family, intent, rng, style, world.run, slip=rng.random() < SLIPS)


def draw_intent(rng: random.Random, family: str, sought: Collection[str] = ()) -> str:
    """One intent of a family; chains, which are harder, more often, and those in which a behaviour of `sought` shows
    that shows in few."""
    intents = INTENTS[family]
    weights = [
        HARD[intent.group] * max((SOUGHT[axis] for axis in sought if _few_show(axis, intent)), default=1.0)
        for intent in intents.values()
    ]
    return rng.choices(list(intents), weights)[0]


def _few_show(axis: str, intent: Intent) -> bool:
    """Whether an intent shows a behaviour that most intents cannot show."""
    return bool({"confirm": intent.confirm, "verify": intent.verify, "units": intent.units}.get(axis))


@cache
def axes_of(family: str) -> tuple[str, ...]:
    """The behaviours that can show in a family's documents."""
    intents = INTENTS[family].values()
    return tuple(axis for axis in AXES if axis not in RARE or any(_few_show(axis, intent) for intent in intents))


def foreign_request(rng: random.Random, family: str, split: Split, beside: Collection[str] = ()) -> str:
    """A request of another family that none of this family's tools, and none of those `beside` it, could serve."""
    mine = {*FAMILIES[family], *beside}
    strangers = [name for name, tools in FAMILIES.items() if not mine & set(tools)]
    strange = rng.choice(strangers or ["other"])
    if strange == "other":
        return rng.choice(phrasings(split)["other"]["other"])
    intents = [name for name, intent in INTENTS[strange].items() if intent.group == "single"]
    return request(split, strange, rng.choice(intents), rng)


def base_documents(
    seed: int, world: World, *, copy_share: float = 0.01, made_up: float = MADE_UP
) -> Iterator[Document]:
    """The endless corpus of the base models: made-up tools and all families.

    Args:
        copy_share: share of groups that are pure copying.
        made_up: share of the other groups with made-up tools.
    """
    rng = random.Random(seed)
    families = list(FAMILIES)
    while True:
        if rng.random() < copy_share:
            yield random_tools.copy_document(rng)
        elif rng.random() < made_up:
            beside = _bystanders(rng, world, None) if rng.random() < MIXED else []
            yield from random_tools.group(rng, rng.randint(3, 6), beside)
        else:
            axis = rng.choice(list(RARE)) if rng.random() < BEHAVED else None
            family = rng.choice([f for f in families if axis is None or axis in axes_of(f)])
            yield from family_group(rng, world, family, count=rng.randint(3, 6), whole=0.5, axis=axis)


def family_documents(seed: int, world: World, family: str, style: Style | None = None) -> Iterator[Document]:
    """The endless corpus of one family's adapter; with `style`, untagged and all in that style."""
    rng = random.Random(seed)
    while True:
        yield from family_group(
            rng, world, family, count=rng.randint(3, 6), whole=0.8, style=style, specialist=style is None
        )


def labelled_requests(split: Split, n: int, seed: int) -> list[tuple[str, str]]:
    """`n` requests with the family that serves each, or `other` where none does."""
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    for _ in range(n):
        family = rng.choice((*FAMILIES, "other"))
        if family == "other":
            rows.append((rng.choice(phrasings(split)["other"][rng.choice(("other", "other", "chat"))]), family))
        else:
            rows.append((request(split, family, rng.choice(list(INTENTS[family])), rng), family))
    return rows


def contrast_pairs(axis: str, family: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` contrast pairs for steering: one conversation up to the last tool result, and the answer in both styles.

    Args:
        axis: a behaviour of `AXES` that shows in the answer. The two answers differ in it only; the other behaviours
            are the same on both sides and drawn anew for each pair.
    """
    rng = random.Random(seed)
    pairs: list[dict[str, Any]] = []
    with open_world() as world:
        while len(pairs) < n:
            world.reset(rng)
            intent = rng.choice([i for i, one in INTENTS[family].items() if one.group != "missing" and not one.units])
            drawn = redrawn(rng, PLAIN, [])
            calm = replace(drawn, confirm=False, verify=False, language=drawn.language and axis == "language")
            dialogue = play("train", family, intent, rng, calm, world.run)
            names = tuple(name for name, _ in dialogue.calls)
            wordings = rng.getrandbits(32)
            positive, negative = (
                # The same draw of wordings on both sides: nothing else may differ.
                word_answer(replace(calm, **{axis: side}), dialogue.facts, names, random.Random(wordings))
                for side in (True, False)
            )
            pairs.append(
                {
                    "messages": list(dialogue.turns[:-1]),
                    "tools": [world.specs[name] for name in FAMILIES[family]],
                    "positive": positive,
                    "negative": negative,
                }
            )
    return pairs


def _shows(axis: str, intent: Intent) -> bool:
    """Whether a behaviour can show in the reply that `behaviour_prompts` leaves open."""
    if axis == "units":
        return intent.units
    if intent.group != "single" or intent.units:
        return False
    if axis in RARE:
        return _few_show(axis, intent)
    # After a change the next reply may be one more call, to verify it, which shows no side of the others.
    return intent.verify is None


def behaviour_prompts(
    axis: str, family: str, split: Split, n: int, seed: int, side: bool | None
) -> list[dict[str, Any]]:
    """`n` conversations on which a behaviour shows in the reply that comes next.

    Args:
        side: the side that a leading tag names; None for no tag.

    Returns:
        `{"messages", "tools"}` each; for `confirm` and `units` the messages end with the request, for `verify` with the
        result of the call that changed something, else with the last tool result before the answer.
    """
    rng = random.Random(seed)
    opening: Sequence[Mapping[str, Any]] = [] if side is None else [tag([AXES[axis][0 if side else 1]])]
    chosen = PLAIN if side is None else styled([AXES[axis][0 if side else 1]], PLAIN)
    intents = [name for name, intent in INTENTS[family].items() if _shows(axis, intent)]
    found: list[dict[str, Any]] = []
    with open_world() as world:
        while intents and len(found) < n:
            world.reset(rng)
            own = replace(chosen, confirm=False, verify=False)
            dialogue = play(split, family, rng.choice(intents), rng, own, world.run)
            if dialogue.facts.short.startswith("Error"):
                continue
            turns = dialogue.turns[:1] if axis in ("confirm", "units") else dialogue.turns[:-1]
            tools = [world.specs[name] for name in FAMILIES[family]]
            found.append({"messages": [*opening, *turns], "tools": tools})
    return found
