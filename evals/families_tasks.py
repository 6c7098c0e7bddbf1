"""The tasks of each family, with its adapter and with the bare model: success by family and kind, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.chat import Sampling
from ..models.embedded.corpus import Split
from ..models.embedded.intents import INTENTS
from ..models.embedded.tasks import KINDS, phrased_tasks
from .arms import Side, arm_of
from .families_bars import Share
from .records import Record
from .run import Builder, Progress, run_suite
from .suite import Suite, make_suite

if TYPE_CHECKING:
    from ..models.engine import Engine

SEED = 7001
"""Of the tasks; others than those of the suite files."""
ORDER = ("single", "chain", "missing", *KINDS)
SHOWN_FAILURES = 40

Shown = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of something, by its label."""


@dataclass(frozen=True)
class Tally:
    """One arm on one family's tasks.

    Attributes:
        share: tasks solved, of those that ran.
        kinds: the same by kind of task.
        codes: how often each thing went wrong (see `score`).
        broken: runs that the infrastructure failed; they are in no share.
        failures: what was asked, answered and wrong, task by task.
    """

    share: Share
    kinds: dict[str, Share]
    codes: dict[str, int]
    broken: int
    failures: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.share.to_json(),
            "kinds": {kind: share.to_json() for kind, share in self.kinds.items()},
            "codes": self.codes,
            "broken": self.broken,
            "failures": list(self.failures),
        }


def kind_of(task: str) -> str:
    """The kind of a task by its id, `calc-003-calculate.add`: an intent's group, or `repair` or `no-tool`."""
    family, _, intent = task.split("-", 2)
    return intent if intent in KINDS else INTENTS[family][intent].group


def tally(records: Sequence[Record]) -> Tally:
    """Count the runs of one arm on one family."""
    ran = [record for record in records if record.success is not None]
    kinds = {kind: Share.of(bool(r.success) for r in ran if kind_of(r.task) == kind) for kind in ORDER}
    wrong = [record for record in records if not record.success]
    return Tally(
        share=Share.of(bool(record.success) for record in ran),
        kinds={kind: share for kind, share in kinds.items() if share.n},
        codes=dict(Counter(str(record.code) for record in wrong).most_common()),
        broken=len(records) - len(ran),
        failures=tuple(
            {"task": r.task, "code": r.code, "reason": r.reason, "ask": r.ask, "answer": r.answer}
            for r in wrong[:SHOWN_FAILURES]
        ),
    )


def family_suite(family: str, split: Split, limit: int | None = None) -> Suite:
    """A task for every phrasing of a family (see `phrased_tasks`), at most `limit`, in the world of the corpus."""
    tasks = phrased_tasks(split, family, SEED + list(INTENTS).index(family), limit)
    return make_suite({"name": f"{family}-{split}", "tasks": tasks}, f"{family}, split {split}")


def greedy_builder(profile: str | None, engine: Engine) -> Builder:
    """Agents that decode greedily, whatever the profile's own decoding, with no router and nobody to hand steps to."""
    from ..agent.agent import Agent
    from ..agent.journal import Journal
    from ..agent.policy import RoutingPolicy
    from ..models.price import load_prices

    policy, journal, prices = RoutingPolicy(), Journal(":memory:"), load_prices()

    def build(tools: Any) -> Agent:
        return Agent(
            tools, profile, engine, large=None, policy=policy, journal=journal, prices=prices, sampling=Sampling()
        )

    return build


async def measure_tasks(
    chosen: Side,
    engine: Engine,
    suites: dict[str, Suite],
    profiles: Iterable[str | None],
    *,
    concurrency: int,
    folder: Path,
    shown: Shown,
) -> dict[str, Tally | None]:
    """Every family's suite, each under its own profile.

    Args:
        profiles: one for each family, in order: its profile, or None for the bare model.
        folder: where the records are kept, a file for each family and arm.
    """
    found: dict[str, Tally | None] = {}
    for (family, suite), profile in zip(suites.items(), profiles, strict=True):
        arm = arm_of(Side(chosen.model, chosen.engine, profile), engine, concurrency=concurrency)
        name = profile or "bare"
        with shown(f"{family}, {name}") as told:
            file = folder / f"{family}-{'adapter' if profile else 'bare'}.jsonl"
            evaluation = await run_suite(suite, greedy_builder(profile, engine), arm, records=file, progress=told)
        found[family] = tally(evaluation.records)
    return found
