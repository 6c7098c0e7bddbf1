"""Money, tokens, seconds and joules: worked sums, and unknown staying unknown."""

from decimal import Decimal
from pathlib import Path

import pytest
from trimtab.errors import Unknown
from trimtab.evals.cost import Spent, Work, spending
from trimtab.evals.energy import EnergyMeter
from trimtab.models.chat import Usage
from trimtab.models.price import Price

PRICES = {
    "own": Price(machine_hour=Decimal("3.60"), source="a machine at 3.60 an hour"),
    "hosted": Price(input=Decimal("1e-6"), output=Decimal("4e-6")),
}


def work(success: bool | None, model: str, seconds: float, usage: Usage | None = None) -> Work:
    return Work(success, seconds, (Spent(model, usage or Usage(100, 50), seconds),))


def test_a_machine_is_charged_for_its_wall_time_however_requests_overlap() -> None:
    # Four tasks of 5 s at once keep the machine for 5 s: 0.005 dollars, over two successes.
    got = spending([work(i < 2, "own", 5.0) for i in range(4)], PRICES, wall_seconds=5.0, joules=80.0)
    assert got.dollars == pytest.approx(Decimal("0.005"))
    assert got.dollars_per_task == pytest.approx(Decimal("0.00125"))
    assert got.dollars_per_success == pytest.approx(Decimal("0.0025"))
    assert (got.joules_per_task, got.joules_per_success) == (20.0, 40.0)
    assert (got.tokens_per_task, got.seconds_p50) == (150.0, 5.0)
    assert any("3.60" in line for line in got.assumptions)


def test_every_machine_is_charged_for_the_whole_wall_time() -> None:
    prices = {**PRICES, "big": Price(machine_hour=Decimal("36"))}
    # One task of 10 s: the small model answers for 1 s of it, and waits for another for 9 s.
    for other, price in (("hosted", Decimal("0.0003")), ("big", Decimal("0.1"))):
        spent = Spent("own", Usage(100, 50), 1.0), Spent(other, Usage(100, 50), 9.0)
        got = spending([Work(True, 10.0, spent)], prices, wall_seconds=10.0, joules=None)
        assert got.dollars == pytest.approx(Decimal("0.01") + price)


def test_broken_runs_are_paid_for_but_are_no_tasks() -> None:
    runs = [*[work(True, "hosted", 1.0)] * 5, *[Work(None, 0.0, ())] * 4, work(None, "hosted", 1.0)]
    got = spending(runs, PRICES, wall_seconds=6.0, joules=90.0)
    assert got.tokens_per_task == 150.0
    assert got.dollars_per_task == Decimal("0.0003")
    assert got.dollars == Decimal("0.0018")
    assert got.dollars_per_success == Decimal("0.00036")
    assert (got.joules, got.joules_per_task, got.joules_per_success) == (90.0, None, 18.0)
    nothing = spending([work(None, "hosted", 1.0)], PRICES, wall_seconds=1.0, joules=None)
    assert (nothing.tokens_per_task, nothing.dollars_per_task, nothing.dollars) == (None, None, Decimal("0.0003"))
    assert nothing.require_dollars() == Decimal("0.0003")


def test_tokens_are_charged_whatever_the_clock_says() -> None:
    got = spending([work(True, "hosted", 9.0), work(False, "hosted", 1.0)], PRICES, wall_seconds=77.0, joules=None)
    assert got.dollars == Decimal("0.0006")
    assert got.dollars_per_success == Decimal("0.0006")
    assert got.joules_per_task is None


def test_one_unknown_price_makes_the_sum_unknown_and_says_whose() -> None:
    got = spending([work(True, "own", 1.0), work(True, "mystery", 1.0)], PRICES, wall_seconds=2.0, joules=None)
    assert (got.dollars, got.dollars_per_task, got.dollars_per_success) == (None, None, None)
    assert got.unpriced == ("mystery",)
    with pytest.raises(Unknown, match="mystery"):
        got.require_dollars()


def test_unreported_tokens_are_unknown_not_zero() -> None:
    got = spending(
        [work(True, "hosted", 1.0, Usage()), work(True, "hosted", 1.0)], PRICES, wall_seconds=2.0, joules=None
    )
    assert (got.tokens_per_task, got.dollars) == (None, None)


def test_without_success_there_is_no_price_of_a_success() -> None:
    got = spending([work(False, "own", 1.0), work(None, "own", 3.0)], PRICES, wall_seconds=4.0, joules=8.0)
    assert got.dollars_per_task is not None
    assert (got.dollars_per_success, got.joules_per_success) == (None, None)
    assert got.seconds_p95 == 1.0  # the task that the infrastructure broke has no latency


def test_nothing_run_is_unknown() -> None:
    got = spending([], PRICES, wall_seconds=0.0, joules=None)
    assert (got.dollars, got.tokens_per_task, got.seconds_p50) == (None, None, None)


def zone(root: Path, name: str, label: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    return folder


def test_energy_counts_packages_once_and_survives_a_wrap(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 5_000_000)
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 9_500_000)
    assert meter.joules() == pytest.approx(0.5)
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    assert meter.joules() == pytest.approx(2.0)


def test_energy_is_none_where_it_cannot_be_read(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(tmp_path)
    (folder / "energy_uj").write_text("")
    assert meter.joules() is None
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    assert meter.joules() is None  # a gap in the count cannot be mended
