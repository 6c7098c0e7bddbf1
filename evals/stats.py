"""Uncertainty: intervals for a success rate, and paired tests for the difference between two arms.

Two arms run the same tasks, so every statement about their difference is paired, and the task (not the run) is the
unit that is drawn: repeated runs of one task are one cluster.

Sources: Wilson 1927; McNemar 1947 (exact binomial form); Tango 1998 (score interval of a paired difference);
Miller, arXiv 2411.00640 (clusters); Yao et al., arXiv 2406.12045 (pass^k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from ..errors import BadInput

CELLS = 2_000_000
"""Numbers held at once by a bootstrap."""

Verdict = Literal["non-inferior", "worse", "not shown"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval. `n` is the number of units (tasks) behind it."""

    estimate: float
    low: float
    high: float
    level: float
    n: int


def z_score(probability: float) -> float:
    """The standard normal quantile of `probability`."""
    return NormalDist().inv_cdf(probability)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a success rate.

    Unlike estimate +- z*se it stays inside [0, 1] and says something at 0 and at n successes. Successes may be
    fractional.

    Raises:
        BadInput: no trials, or successes outside [0, n].
    """
    if n <= 0 or not 0 <= successes <= n:
        raise BadInput(f"{successes} successes out of {n} is not a rate", fix="Give at least one scored task.")
    z = z_score(0.5 + level / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # The ends are exactly 0 and 1 at no and all successes; rounding must not push them past.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(rate, low, high, level, n)


def success_rate(trials: Mapping[str, Sequence[bool]], level: float = 0.95) -> Interval:
    """The tasks' mean success, with Wilson's interval at the number of tasks.

    A task counts as the share of its runs that succeeded: tasks are drawn as whole clusters (Miller, arXiv 2411.00640),
    and more runs do not make more tasks. Shares with the mean p vary by p(1-p) at most, which is what Wilson's interval
    takes them to, so it errs on the careful side; a bootstrap over tasks would all but shrink to a point where only a
    few runs disagree. With one run of each task this is plain Wilson.

    Raises:
        BadInput: no tasks, or a task without runs.
    """
    empty = [task for task, runs in trials.items() if not runs]
    if empty:
        raise BadInput("no run of this task was scored", where=empty[0])
    return wilson(math.fsum(sum(runs) / len(runs) for runs in trials.values()), len(trials), level)


def paired_bootstrap(
    differences: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean paired difference, drawing whole clusters (tasks) with replacement.

    Args:
        differences: small minus large, one per pair.
        clusters: the task of each pair; None takes every pair as its own cluster.
        samples: resamples; the same `seed` gives the same interval.

    Raises:
        BadInput: no pairs, or as many clusters as pairs are not given.
    """
    import numpy as np

    names = [str(i) for i in range(len(differences))] if clusters is None else list(clusters)
    if not differences or len(names) != len(differences):
        raise BadInput(f"{len(differences)} differences with {len(names)} clusters", fix="Give one cluster per pair.")
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    at = np.array([order[name] for name in names])
    sums = np.bincount(at, weights=np.asarray(differences, dtype=np.float64))
    counts = np.bincount(at).astype(np.float64)
    m = len(order)
    rng, means = np.random.default_rng(seed), np.empty(samples)
    rows = max(1, CELLS // m)  # so many resamples at once: memory stays bounded for any number of tasks
    for start in range(0, samples, rows):
        stop = min(start + rows, samples)
        draws = rng.multinomial(m, np.full(m, 1 / m), size=stop - start).astype(np.float64)
        means[start:stop] = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), level, m)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided McNemar p-value from the two discordant counts.

    Under the null hypothesis each discordant pair is a fair coin; the p-value is twice the smaller binomial tail,
    at most 1. Without discordant pairs it is 1.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    tail: int = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, float(2 * tail / 2**n))


def tango(only_first: float, only_second: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for a paired difference of proportions (Statistics in Medicine 17, 1998).

    It keeps its coverage where the bootstrap collapses to a point: with no discordant pair at all its ends are
    -z^2/(n+z^2) and +z^2/(n+z^2). Counts may be fractional.
    """
    z = z_score(0.5 + level / 2)

    def score(delta: float) -> float:
        # Maximum-likelihood estimate of the second discordant cell given the difference: the larger root.
        a = 2 * n
        b = -only_first - only_second + (2 * n - only_first + only_second) * delta
        c = -only_second * delta * (1 - delta)
        cell = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * cell + delta * (1 - delta))
        distance = only_first - only_second - n * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    def solve(target: float, low: float, high: float) -> float:
        # `score` falls as delta grows.
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > target else (low, middle)
        return (low + high) / 2

    estimate = (only_first - only_second) / n
    return solve(z, -1.0, estimate), solve(-z, estimate, 1.0)


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    clusters: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The difference of two success rates on the same tasks, first minus second.

    Each end is the more careful of two: the bootstrap's over tasks, and Tango's at the number of tasks. Alone, a
    bootstrap over tasks without disagreement would shrink to a point.

    Raises:
        BadInput: no pairs, or different lengths.
    """
    if len(first) != len(second):
        raise BadInput(f"{len(first)} results of the small arm beside {len(second)} of the large one")
    drawn = paired_bootstrap([a - b for a, b in zip(first, second, strict=True)], clusters, level=level, seed=seed)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    shrink = drawn.n / len(first)
    low, high = tango(only_first * shrink, only_second * shrink, drawn.n, level)
    return replace(drawn, low=min(low, drawn.low), high=max(high, drawn.high))


@dataclass(frozen=True)
class NonInferiority:
    """Is the small arm at most `margin` worse than the large one?

    Attributes:
        verdict: `non-inferior` if `low` > -margin; `worse` if `high` < 0; else `not shown`.
        difference: success of small minus success of large, over all pairs.
        low: one-sided 95 % lower bound of the difference; `high` the upper one.
        n: tasks (clusters).
        discordance: share of pairs on which the arms differ.
        reachable: the margin that this many tasks could show with 80 % power at this discordance:
            (z.95 + z.80) * sqrt(d / n). None without any discordant pair, where the formula says nothing.
    """

    verdict: Verdict
    margin: float
    difference: float
    low: float
    high: float
    n: int
    discordance: float
    reachable: float | None


def reachable_margin(discordance: float, n: int, *, confidence: float = 0.95, power: float = 0.80) -> float | None:
    """The smallest margin that `n` pairs can show at this discordance; None without discordance or pairs."""
    if discordance <= 0 or n <= 0:
        return None
    return (z_score(confidence) + z_score(power)) * math.sqrt(discordance / n)


def non_inferiority(
    small: Sequence[bool],
    large: Sequence[bool],
    clusters: Sequence[str] | None = None,
    *,
    margin: float = 0.05,
    seed: int = 0,
) -> NonInferiority:
    """The verdict on paired successes, with a margin stated beforehand.

    The bounds are those of `paired_difference`.

    Raises:
        BadInput: no pairs, different lengths, or a margin that is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise BadInput(f"margin {margin} is not between 0 and 1", fix="5 points are written 0.05.")
    found = paired_difference(small, large, clusters, level=0.90, seed=seed)
    discordance = sum(a != b for a, b in zip(small, large, strict=True)) / len(small)
    verdict: Verdict = "non-inferior" if found.low > -margin else "worse" if found.high < 0 else "not shown"
    reachable = reachable_margin(discordance, found.n)
    return NonInferiority(verdict, margin, found.estimate, found.low, found.high, found.n, discordance, reachable)


def pass_hat_k(trials: Mapping[str, Sequence[bool]], k: int) -> float:
    """pass^k: the chance that k runs of a task all succeed, averaged over tasks: C(c, k) / C(n, k).

    Raises:
        BadInput: k < 1, no tasks, or a task with fewer than k runs.
    """
    short = [task for task, runs in trials.items() if len(runs) < k]
    if k < 1 or not trials or short:
        raise BadInput(
            f"pass^{k} needs at least {max(k, 1)} runs of every task",
            where=", ".join(short[:3]) or None,
            fix="Run with more trials.",
        )
    return sum(math.comb(sum(runs), k) / math.comb(len(runs), k) for runs in trials.values()) / len(trials)


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-quantile (0 to 1) with linear interpolation between order statistics; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
