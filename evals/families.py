"""`trimtab eval families --split test`: all that the small model and its adapters are held to, on one server.

Tasks of every family with the family's adapter and without any; exact calls of tools that no training has seen, and no
call where none fits; the planted behaviours under their tags and without. Everything is greedy, but for the replies
without a tag: a greedy model always takes the likelier of two sides, so only sampling can show how likely each is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import need_place, need_png
from ..errors import BadInput
from ..home import write_atomic
from ..models.embedded.answers import AXES
from ..models.embedded.corpus import Split
from ..tools.builtin import FAMILIES
from .arms import Side, dtype_of, side
from .evaluate import open_sides, record_folder
from .families_bars import ABSTENTION, UNSEEN, VALID, Abstention, Bar, Share, abstention, mean, share_bar, task_bars
from .families_behaviour import Seen, prompts, seen
from .families_calls import Watched, ask_all, silent
from .families_tasks import Tally, family_suite, measure_tasks
from .families_unseen import COUNT, Probe, abstention_probes, exact, missed, unseen_probes
from .progress import shown

if TYPE_CHECKING:
    from ..models.chat import Message
    from ..models.engine import Engine

CONCURRENCY = 24


@dataclass(frozen=True)
class Asked:
    """What is measured, and how far."""

    split: Split
    families: tuple[str, ...]
    limit: int | None
    concurrency: int

    @property
    def probes(self) -> int:
        """How many requests with unseen tools; two at least, one for either half of the abstention."""
        return COUNT if self.limit is None else max(2, min(self.limit, COUNT))


@dataclass(frozen=True)
class Found:
    """What was measured. `adapters` holds None for a family without a profile."""

    adapters: dict[str, Tally | None]
    bare: dict[str, Tally | None]
    constrained: tuple[Share, list[dict[str, Any]]]
    free: tuple[Share, list[dict[str, Any]]]
    abstention: Abstention
    behaviours: list[Seen]
    calls: Share
    misfits: list[str]

    @property
    def bars(self) -> list[Bar]:
        """Every bar, in the order in which they are shown."""
        return [
            *task_bars(_shares(self.adapters), _shares(self.bare)),
            share_bar("unseen.exact_constrained", self.constrained[0], UNSEEN),
            share_bar("abstention.precision", self.abstention.precision, ABSTENTION),
            share_bar("abstention.recall", self.abstention.recall, ABSTENTION),
            *(one.bar for one in self.behaviours),
            share_bar("calls.valid", self.calls, VALID),
        ]

    def to_json(self) -> dict[str, Any]:
        """The bars, and what is behind them."""
        return {
            "bars": [bar.to_json() for bar in self.bars],
            "success": {
                "adapters": mean(list(_shares(self.adapters).values())),
                "bare": mean(list(_shares(self.bare).values())),
                "families": {
                    family: {
                        "adapter": None if with_ is None else with_.to_json(),
                        "bare": None if (without := self.bare[family]) is None else without.to_json(),
                    }
                    for family, with_ in self.adapters.items()
                },
            },
            "unseen": {
                name: {**share.to_json(), "missed": wrong}
                for name, (share, wrong) in (("exact_constrained", self.constrained), ("exact_free", self.free))
            },
            "abstention": {
                "precision": self.abstention.precision.to_json(),
                "recall": self.abstention.recall.to_json(),
            },
            "behaviours": {one.prompts.name: one.to_json() for one in self.behaviours},
            "calls": {**self.calls.to_json(), "misfits": self.misfits[:40]},
            "notes": [
                "Replies without a tag are sampled at temperature 1, each with its own seed: a greedy model always "
                "takes the likelier side, so only sampling can show how likely each is. All else is greedy.",
                "Their share is of the first side among the replies that show either; `neither` counts the others.",
            ],
        }


async def evaluate_families(args: argparse.Namespace) -> int:
    """All of it; see `commands.py` for the arguments."""
    asked = _asked(args)
    chosen = side(args.model, args.engine)
    need_png(args.plot, "--plot")
    need_place(record_folder(), "TRIMTAB_HOME", folder=True)
    start = time.monotonic()
    folder = record_folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-families-{asked.split}"
    async with open_sides([chosen]) as [engine]:
        found = await measure(asked, chosen, engine, folder)
        model, dtype = engine.model, dtype_of(engine)
    document = {
        "suite": "families",
        "split": asked.split,
        "model": model,
        "dtype": dtype,
        "families": list(asked.families),
        "limit": asked.limit,
        **found.to_json(),
        "seconds": time.monotonic() - start,
        "records": str(folder),
    }
    from .families_report import chart, print_tables

    title = f"{model}, families, split {asked.split}"
    if args.json:
        print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)
    else:
        print_tables(found, title)
        print(f"Records: {folder}", flush=True)
    if args.plot is not None:
        write_atomic(args.plot, chart(found.bars, title))
        if not args.json:
            print(f"Chart: {args.plot}")
    return 0


async def measure(asked: Asked, chosen: Side, engine: Engine, folder: Path) -> Found:
    """Everything, one after the other; `asked.concurrency` requests at once."""
    watched = Watched(engine)
    live = {name.partition("@")[0] for name in await engine.profiles()}
    suites = {family: family_suite(family, asked.split, asked.limit) for family in asked.families}
    ready = {family: suite for family, suite in suites.items() if family in live}
    common: dict[str, Any] = {"concurrency": asked.concurrency, "folder": folder, "shown": shown}
    # A family without a profile stays unknown.
    none: dict[str, Tally | None] = dict.fromkeys(suites)
    adapters = none | await measure_tasks(chosen, watched, ready, list(ready), **common)
    bare = await measure_tasks(chosen, watched, suites, [None] * len(suites), **common)
    probes = unseen_probes(asked.probes)
    constrained = await _probe(engine, "unseen tools, constrained", probes, asked, constrained=True)
    free = await _probe(watched, "unseen tools, free", probes, asked)
    halves = abstention_probes(asked.probes)
    replies = await _probe(watched, "abstention", halves, asked)
    behaviours = [await _behave(engine, axis, one, asked) for axis in AXES for one in (True, False, None)]
    return Found(
        adapters=adapters,
        bare=bare,
        constrained=_exactness(probes, constrained),
        free=_exactness(probes, free),
        abstention=abstention([(p.wanted is None, silent(r)) for p, r in zip(halves, replies, strict=True)]),
        behaviours=[one for one in behaviours if one is not None],
        calls=watched.valid,
        misfits=watched.misfits,
    )


async def _probe(
    engine: Engine, label: str, probes: Sequence[Probe], asked: Asked, *, constrained: bool = False
) -> list[Message]:
    with shown(label) as told:
        requests = [probe.request(constrained=constrained) for probe in probes]
        return await ask_all(engine, requests, asked.concurrency, told)


def _exactness(probes: Sequence[Probe], replies: Sequence[Message]) -> tuple[Share, list[dict[str, Any]]]:
    return Share.of(map(exact, probes, replies)), missed(probes, replies)


async def _behave(engine: Engine, axis: str, named: bool | None, asked: Asked) -> Seen | None:
    """What the replies to one kind of prompts show; None where no chosen family has such prompts."""
    wanted = prompts(axis, named, asked.families, asked.split, asked.limit)
    if not wanted.requests and set(asked.families) != set(FAMILIES):
        return None
    with shown(wanted.name) as told:
        return seen(wanted, await ask_all(engine, wanted.requests, asked.concurrency, told))


def _shares(tallies: dict[str, Tally | None]) -> dict[str, Share | None]:
    return {family: None if tally is None else tally.share for family, tally in tallies.items()}


def _asked(args: argparse.Namespace) -> Asked:
    """What the arguments ask for. Raises BadInput for what does not go together."""
    if args.suite != "families":
        raise BadInput(
            f"suite {args.suite!r} has no splits", where="--split", fix="Leave it out, or ask for `eval families`."
        )
    for option, given in (
        ("--profile", args.profile is not None),
        ("--resume", args.resume is not None),
        ("--prices", args.prices is not None),
        ("--trials", args.trials != 1),
    ):
        if given:
            raise BadInput("does not go with --split", where=option, fix="Leave one of them out.")
    names = tuple(FAMILIES) if args.families is None else tuple(filter(None, map(str.strip, args.families.split(","))))
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise BadInput(
            f"unknown family {unknown[0]!r}" if unknown else "no family is named",
            where="--families",
            fix=f"Families: {', '.join(FAMILIES)}.",
        )
    return Asked(args.split, tuple(dict.fromkeys(names)), args.limit, args.concurrency or CONCURRENCY)
