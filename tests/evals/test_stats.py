"""Closed forms and independent references for the statistics."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.evals import stats


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_newcombe_1998(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3.
    got = stats.wilson(successes, n)
    assert (round(got.low, 4), round(got.high, 4)) == (low, high)


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(pair: tuple[int, int]) -> None:
    k, n = pair
    got = stats.wilson(k, n)
    assert 0 <= got.low <= k / n <= got.high <= 1
    mirrored = stats.wilson(n - k, n)
    assert got.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    for end in (got.low, got.high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_rate(k: int, n: int) -> None:
    with pytest.raises(BadInput):
        stats.wilson(k, n)


def test_runs_of_one_task_are_not_more_tasks() -> None:
    once = {str(i): [i < 6] for i in range(8)}
    assert stats.success_rate(once) == stats.wilson(6, 8)
    assert stats.success_rate({task: runs * 50 for task, runs in once.items()}) == stats.wilson(6, 8)
    # One run in 50 that fails says next to nothing more; a task with fewer runs counts as much as the others.
    mixed = stats.success_rate({"a": [True] * 49 + [False], "b": [True], **{str(i): [True] * 50 for i in range(6)}})
    assert mixed.n == 8
    assert mixed.estimate == pytest.approx(1 - 0.02 / 8)
    assert mixed.low == pytest.approx(stats.wilson(8, 8).low, abs=0.01)
    with pytest.raises(BadInput, match="b: no run"):
        stats.success_rate({"a": [True], "b": []})


@pytest.mark.parametrize(
    ("b", "c", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 22 / 1024), (4, 4, 1.0), (3, 10, 756 / 8192)]
)
def test_mcnemar_is_the_exact_binomial(b: int, c: int, p: float) -> None:
    assert stats.mcnemar(b, c) == pytest.approx(p)


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(0, 7))
def test_mcnemar_by_enumerating_coin_flips(b: int, c: int) -> None:
    n = b + c
    extreme = sum(1 for flips in itertools.product((0, 1), repeat=n) if min(sum(flips), n - sum(flips)) <= min(b, c))
    assert stats.mcnemar(b, c) == pytest.approx(min(1.0, extreme / 2**n) if n else 1.0)


def test_bootstrap_agrees_with_the_normal_limit() -> None:
    draw = random.Random(1)
    values = [draw.gauss(0.3, 2.0) for _ in range(400)]
    mean = sum(values) / len(values)
    se = math.sqrt(sum((v - mean) ** 2 for v in values)) / len(values)
    got = stats.paired_bootstrap(values)
    assert got.estimate == pytest.approx(mean)
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * se, rel=0.05)


def test_bootstrap_by_enumeration_of_all_resamples() -> None:
    # Three clusters have 27 resamples: with 90 % the ends are the order statistics of that exact distribution.
    sums, counts = [2.0, -1.0, 3.0], [2, 1, 3]
    values, names = [1.0, 1.0, -1.0, 1.0, 1.0, 1.0], ["a", "a", "b", "c", "c", "c"]
    means = sorted(
        sum(sums[i] for i in drawn) / sum(counts[i] for i in drawn) for drawn in itertools.product(range(3), repeat=3)
    )
    got = stats.paired_bootstrap(values, names, level=0.80, samples=40_000)
    assert got.n == 3
    assert [got.estimate, got.low, got.high] == pytest.approx([4 / 6, means[2], means[24]])


def test_clusters_widen_the_interval() -> None:
    values = [1.0, -1.0] * 20
    repeated = [v for v in values for _ in range(10)]
    names = [str(i) for i in range(40) for _ in range(10)]
    naive, honest = stats.paired_bootstrap(repeated), stats.paired_bootstrap(repeated, names)
    assert (honest.high - honest.low) > 2.5 * (naive.high - naive.low)
    assert honest.n == 40


@pytest.mark.parametrize(("b", "c", "n"), [(2, 12, 44), (7, 7, 60), (0, 3, 25), (9, 1, 30)])
def test_tango_ends_solve_the_score_equation_with_a_brute_force_likelihood(b: int, c: int, n: int) -> None:
    from scipy.optimize import minimize_scalar

    def distance(delta: float) -> float:
        # p(b) = q + delta, p(c) = q: maximise the multinomial likelihood over q by search, not by formula.
        def loss(q: float) -> float:
            same = 1 - 2 * q - delta
            if q < 0 or q + delta < 0 or same < 0:
                return math.inf
            terms = [(b, q + delta), (c, q), (n - b - c, same)]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

        q = minimize_scalar(
            loss, bounds=(max(0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
        ).x
        return float((b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta))))

    low, high = stats.tango(b, c, n)
    assert low < (b - c) / n < high
    assert distance(low) == pytest.approx(1.95996, abs=1e-3)
    assert distance(high) == pytest.approx(-1.95996, abs=1e-3)


def test_tango_without_discordance_has_a_closed_form() -> None:
    z2 = stats.z_score(0.975) ** 2
    assert stats.tango(0, 0, 30) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)))


def test_reachable_margin_worked_example() -> None:
    assert stats.reachable_margin(0.10, 247) == pytest.approx(0.05, abs=2e-4)
    assert stats.reachable_margin(0.10, 1546) == pytest.approx(0.02, abs=2e-4)
    assert stats.reachable_margin(0.0, 100) is None


def test_three_verdicts() -> None:
    same = [True] * 400
    assert stats.non_inferiority(same, same, margin=0.05).verdict == "non-inferior"
    assert stats.non_inferiority([False] * 20 + [True] * 20, [True] * 40, margin=0.05).verdict == "worse"
    mixed = stats.non_inferiority([True, False] * 10, [False, True] * 10, margin=0.05)
    assert (mixed.verdict, mixed.discordance, mixed.n) == ("not shown", 1.0, 20)
    assert mixed.reachable == pytest.approx(stats.reachable_margin(1.0, 20))


def test_a_handful_of_agreeing_tasks_prove_nothing() -> None:
    # The bootstrap alone would give [0, 0] here.
    few = stats.non_inferiority([True] * 8, [True] * 8, margin=0.05)
    assert few.verdict == "not shown"
    assert few.reachable is None
    # Nor do many runs of few tasks.
    many = stats.non_inferiority([True] * 800, [True] * 800, [str(i % 8) for i in range(800)], margin=0.05)
    assert (many.verdict, many.n) == ("not shown", 8)


def test_the_interval_of_a_difference_covers_bootstrap_and_tango() -> None:
    even = stats.paired_difference([True] * 20, [True] * 20)
    assert (even.low, even.high) == pytest.approx(stats.tango(0, 0, 20))
    runs = stats.paired_difference([True] * 800, [True] * 800, [str(i % 8) for i in range(800)])
    assert (runs.low, runs.high) == pytest.approx(stats.tango(0, 0, 8))
    a, b = [True, False] * 12 + [True] * 6, [True, True, False] * 10
    got, drawn = stats.paired_difference(a, b), stats.paired_bootstrap([x - y for x, y in zip(a, b, strict=True)])
    won, lost = (sum(x > y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    low, high = stats.tango(won, lost, 30)
    assert (got.low, got.high) == (min(low, drawn.low), max(high, drawn.high))
    with pytest.raises(BadInput, match="beside"):
        stats.paired_difference([True], [])


@pytest.mark.parametrize("margin", [0.0, 1.0, 5.0])
def test_margin_must_be_a_share(margin: float) -> None:
    with pytest.raises(BadInput):
        stats.non_inferiority([True], [True], margin=margin)


def test_pass_hat_k() -> None:
    trials = {"a": [True, True, True, False], "b": [True] * 4, "c": [False] * 4}
    assert stats.pass_hat_k(trials, 1) == pytest.approx((0.75 + 1 + 0) / 3)
    assert stats.pass_hat_k(trials, 2) == pytest.approx((3 / 6 + 1 + 0) / 3)
    with pytest.raises(BadInput, match="runs of every task"):
        stats.pass_hat_k({"a": [True]}, 2)


def test_percentile() -> None:
    assert stats.percentile([], 0.5) is None
    assert stats.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert stats.percentile([0.0, 10.0], 0.95) == pytest.approx(9.5)
