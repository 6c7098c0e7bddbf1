"""Small against large on the same tasks: what each arm achieved and used, and what the difference is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BadInput
from ..models.price import Prices
from . import stats
from .cost import Spending, Work, spending
from .records import Arm, Evaluation, Record

MARGIN = 0.05
"""Success points that small may lose and still count as good enough, unless another margin is stated."""


@dataclass(frozen=True)
class Summary:
    """One arm in numbers.

    Attributes:
        scored: runs that were judged; `infrastructure_errors` are the others.
        success: over tasks, however often each ran (see `stats.success_rate`); None when nothing was scored.
        codes: failures by code, commonest first; infrastructure errors among them.
        families: (successes, scored) by family.
        escalated: share of scored runs in which a step went to the large model; None without one.
    """

    arm: Arm
    scored: int
    successes: int
    infrastructure_errors: int
    success: stats.Interval | None
    codes: Mapping[str, int]
    families: Mapping[str, tuple[int, int]]
    escalated: float | None
    spending: Spending

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self.arm),
            "scored": self.scored,
            "successes": self.successes,
            "infrastructure_errors": self.infrastructure_errors,
            "success": None if self.success is None else asdict(self.success),
            "codes": dict(self.codes),
            "families": {name: {"successes": k, "scored": n} for name, (k, n) in self.families.items()},
            "escalated": self.escalated,
            "spending": self.spending.to_json(),
        }


@dataclass(frozen=True)
class Paired:
    """Runs that both arms finished, side by side.

    Attributes:
        both, only_small, only_large, neither: runs by which arm succeeded.
        left_out: runs that the infrastructure broke in either arm.
        p_value: McNemar's; None where a task ran several times, since its runs are not independent pairs.
    """

    both: int
    only_small: int
    only_large: int
    neither: int
    left_out: int
    difference: stats.Interval
    p_value: float | None
    non_inferiority: stats.NonInferiority

    @property
    def n(self) -> int:
        return self.both + self.only_small + self.only_large + self.neither

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"n": self.n, **asdict(self)}


@dataclass(frozen=True)
class Comparison:
    """Two arms on one suite. `paired` is None when no run was finished by both."""

    suite: str
    suite_sha256: str
    small: Summary
    large: Summary
    paired: Paired | None
    tasks: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with one row per run under `tasks`."""
        return {
            "suite": self.suite,
            "suite_sha256": self.suite_sha256,
            "small": self.small.to_json(),
            "large": self.large.to_json(),
            "paired": None if self.paired is None else self.paired.to_json(),
            "notes": notes(self),
            "tasks": [dict(row) for row in self.tasks],
        }


def summarise(evaluation: Evaluation, prices: Prices) -> Summary:
    """Add up one arm."""
    records = evaluation.records
    scored = [r for r in records if r.success is not None]
    successes = sum(r.success is True for r in scored)
    families: dict[str, tuple[int, int]] = {}
    trials: dict[str, list[bool]] = {}
    for record in scored:
        trials.setdefault(record.task, []).append(bool(record.success))
        k, n = families.get(record.family, (0, 0))
        families[record.family] = (k + bool(record.success), n + 1)
    codes = Counter(r.code for r in records if r.code is not None)
    return Summary(
        arm=evaluation.arm,
        scored=len(scored),
        successes=successes,
        infrastructure_errors=len(records) - len(scored),
        success=stats.success_rate(trials) if trials else None,
        codes=dict(codes.most_common()),
        families=families,
        escalated=sum(r.escalated for r in scored) / len(scored) if evaluation.arm.large and scored else None,
        spending=spending(
            [Work(r.success, r.seconds, r.spent) for r in records],
            prices,
            wall_seconds=evaluation.wall_seconds,
            joules=evaluation.joules,
        ),
    )


def compare_evaluations(small: Evaluation, large: Evaluation, prices: Prices, *, margin: float = MARGIN) -> Comparison:
    """Put two evaluations of one suite side by side.

    Args:
        margin: stated beforehand: how many success points (0.05 = 5) small may lose.

    Raises:
        BadInput: the evaluations are of different suites, or of different tasks.
    """
    left, right = _by_run(small), _by_run(large)
    if small.suite_sha256 != large.suite_sha256 or left.keys() != right.keys():
        raise BadInput(
            f"{small.arm.label!r} and {large.arm.label!r} did not run the same tasks",
            fix="Run both on the same suite with the same limit.",
        )
    finished = [key for key in left if left[key].success is not None and right[key].success is not None]
    paired = None
    if finished:
        a = [bool(left[key].success) for key in finished]
        b = [bool(right[key].success) for key in finished]
        cells = Counter(zip(a, b, strict=True))
        clusters = [task for task, _ in finished]
        once = len(set(clusters)) == len(clusters)
        paired = Paired(
            both=cells[True, True],
            only_small=cells[True, False],
            only_large=cells[False, True],
            neither=cells[False, False],
            left_out=len(left) - len(finished),
            difference=stats.paired_difference(a, b, clusters),
            p_value=stats.mcnemar(cells[True, False], cells[False, True]) if once else None,
            non_inferiority=stats.non_inferiority(a, b, clusters, margin=margin),
        )
    return Comparison(
        suite=small.suite,
        suite_sha256=small.suite_sha256,
        small=summarise(small, prices),
        large=summarise(large, prices),
        paired=paired,
        tasks=tuple(_row(left[key], right[key]) for key in left),
    )


def _by_run(evaluation: Evaluation) -> dict[tuple[str, int], Record]:
    return {(r.task, r.trial): r for r in sorted(evaluation.records, key=lambda r: (r.task, r.trial))}


def _row(small: Record, large: Record) -> dict[str, Any]:
    def side(record: Record) -> dict[str, Any]:
        return {
            "success": record.success,
            "code": record.code,
            "reason": record.reason,
            "answer": record.answer,
            "seconds": record.seconds,
        }

    row = {"id": small.task, "family": small.family, "trial": small.trial, "ask": small.ask}
    return {**row, "small": side(small), "large": side(large)}


def verdict(comparison: Comparison) -> str:
    """The outcome in one or two sentences that say no more than was shown."""
    paired = comparison.paired
    if paired is None:
        return "No task was finished by both arms, so nothing can be said."
    test = paired.non_inferiority
    points = f"{100 * test.margin:g} points"
    difference = f"difference {100 * test.difference:+.1f} points, one-sided 95 % bounds {100 * test.low:+.1f} to "
    difference += f"{100 * test.high:+.1f}, n = {test.n}"
    said = {
        "non-inferior": f"Small is non-inferior to large within {points}",
        "worse": "Small is worse than large",
        "not shown": f"It is not shown that small is within {points} of large",
    }[test.verdict]
    reach = "no pair disagreed, so the margin these tasks could show is not known"
    if test.reachable is not None:
        reach = (
            f"they disagree on {100 * test.discordance:.0f} % of the pairs, "
            f"so this many tasks can show a margin of {100 * test.reachable:.1f} points"
        )
    exact = "" if paired.p_value is None else f" McNemar's exact p = {paired.p_value:.3g}."
    return f"{said} ({difference}); {reach}.{exact}"


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    lines: dict[str, None] = {}
    for summary in (comparison.small, comparison.large):
        arm = summary.arm
        if arm.stand_in:
            lines[
                f"{arm.model} is a stand-in: a bigger model of this project's own making that takes the large model's "
                "place so that the comparison runs offline. It says nothing about commercial models."
            ] = None
        if summary.infrastructure_errors:
            lines[
                f"Runs of {arm.label} that the infrastructure broke: {summary.infrastructure_errors}; "
                "they are in nobody's success rate."
            ] = None
        for name in summary.spending.unpriced:
            lines[f"The price of {name} is not known."] = None
        lines.update(dict.fromkeys(summary.spending.assumptions))
        lines[f"{arm.label}: up to {arm.concurrency} tasks at once; latency is of whole tasks under that load."] = None
        lines.update(dict.fromkeys(energy_notes(summary)))
    return list(lines)


def energy_notes(summary: Summary) -> list[str]:
    """Why an arm's energy is not known, where it is not."""
    if summary.spending.joules is not None:
        return []
    if summary.arm.here:
        return ["Energy could not be measured on this machine."]
    return [
        f"The energy of {summary.arm.label} is not known: that of this machine's processor can be read, "
        "and its models compute elsewhere, or nobody says where."
    ]
