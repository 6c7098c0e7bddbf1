"""Two arms side by side: the pairing, the verdict's words, and the three files of a report."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from trimtab.errors import BadInput
from trimtab.evals import stats
from trimtab.evals.compare import compare_evaluations, notes, verdict
from trimtab.evals.cost import Spent
from trimtab.evals.records import Arm, Evaluation, Record
from trimtab.evals.report import markdown, write_report
from trimtab.models.chat import Usage
from trimtab.models.price import Price

PRICES = {
    "nano": Price(machine_hour=Decimal("0.08"), source="an assumption"),
    "big": Price(machine_hour=Decimal("0.08")),
}
SMALL = Arm("nano, routed", "nano", "vllm", routed=True)
LARGE = Arm("big (stand-in)", "big", "vllm", stand_in=True)


def evaluation(arm: Arm, outcomes: Sequence[bool | None], seconds: float = 1.0, sha: str = "abc") -> Evaluation:
    draw = random.Random(arm.label)
    records = []
    for i, success in enumerate(outcomes):
        code = "engine_error" if success is None else None if success else draw.choice(["no_call", "wrong_answer"])
        took = seconds * draw.uniform(0.5, 2.0)
        spent = (Spent(arm.model, Usage(200, 20), took * 0.9),)
        family = "calc" if i % 2 else "todos"
        records.append(
            Record(f"t{i}", family, 0, "ask", success, code, code and "why", "x | y", seconds=took, spent=spent)
        )
    return Evaluation("small", sha, arm, tuple(records), sum(r.seconds for r in records) / 4, None)


def test_pairs_and_verdict() -> None:
    small = evaluation(SMALL, [True] * 20 + [False] * 4 + [True] * 5 + [None])
    large = evaluation(LARGE, [True] * 20 + [True] * 4 + [False] * 5 + [True], 3.0)
    got = compare_evaluations(small, large, PRICES)
    assert got.paired is not None
    cells = (got.paired.both, got.paired.only_small, got.paired.only_large, got.paired.neither, got.paired.left_out)
    assert cells == (20, 5, 4, 0, 1)
    assert got.paired.p_value == 1.0
    assert got.paired.difference.estimate == pytest.approx(1 / 29)
    assert (got.small.scored, got.small.infrastructure_errors) == (29, 1)
    assert "not shown" in verdict(got)
    text = " ".join(notes(got))
    assert "stand-in" in text
    assert "Runs of nano, routed that the infrastructure broke: 1;" in text
    assert "an assumption" in text


def test_agreement_on_a_few_tasks_is_no_certainty() -> None:
    got = compare_evaluations(evaluation(SMALL, [True] * 12), evaluation(LARGE, [True] * 12), PRICES)
    assert got.paired is not None
    assert (got.paired.difference.low, got.paired.difference.high) == pytest.approx(stats.tango(0, 0, 12))


def test_several_runs_of_a_task_are_one_task() -> None:
    def often(one: Evaluation) -> Evaluation:
        return replace(one, records=tuple(replace(r, trial=i) for r in one.records for i in range(20)))

    small, large = evaluation(SMALL, [True] * 6 + [False] * 2), evaluation(LARGE, [True] * 8)
    once, got = compare_evaluations(small, large, PRICES), compare_evaluations(often(small), often(large), PRICES)
    assert (got.small.scored, got.small.success) == (160, stats.wilson(6, 8))
    assert once.small.success == got.small.success
    assert once.paired is not None
    assert got.paired is not None
    assert once.paired.p_value == 0.5
    assert got.paired.p_value is None
    assert got.paired.non_inferiority.n == 8
    assert "McNemar" in verdict(once)
    assert "McNemar" not in verdict(got)
    assert "| runs succeeded | 120 of 160 |" in markdown(got)
    assert "| tasks succeeded | 6 of 8 |" in markdown(once)


def test_only_the_same_tasks_can_be_compared() -> None:
    one = evaluation(SMALL, [True, False])
    with pytest.raises(BadInput, match="same tasks"):
        compare_evaluations(one, evaluation(LARGE, [True]), PRICES)
    with pytest.raises(BadInput, match="same tasks"):
        compare_evaluations(one, evaluation(LARGE, [True, True], sha="def"), PRICES)


def test_nothing_finished_by_both_claims_nothing() -> None:
    got = compare_evaluations(evaluation(SMALL, [None, True]), evaluation(LARGE, [True, None]), PRICES)
    assert got.paired is None
    assert "nothing can be said" in verdict(got)
    assert json.loads(json.dumps(got.to_json()))["paired"] is None


def test_unknown_prices_are_said_to_be_unknown(tmp_path: Path) -> None:
    got = compare_evaluations(evaluation(SMALL, [True] * 6), evaluation(LARGE, [False] * 6), {"nano": PRICES["nano"]})
    page = markdown(got)
    assert "The price of big is not known." in page
    assert "| dollars per successful task | $" in page
    row = next(line for line in page.splitlines() if line.startswith("| dollars per successful task"))
    assert row.endswith("| unknown |")
    assert "| joules per successful task | unknown | unknown |" in page
    assert all(path.stat().st_size for path in write_report(got, tmp_path))


def test_a_report_is_three_whole_files(tmp_path: Path) -> None:
    draw = random.Random(3)
    small = evaluation(SMALL, [draw.random() < 0.8 for _ in range(30)])
    large = evaluation(LARGE, [draw.random() < 0.85 for _ in range(30)], 3.0)
    got = compare_evaluations(small, large, PRICES)
    paths = write_report(got, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["comparison.json", "comparison.md", "comparison.png"]
    data = json.loads(paths[0].read_text())
    assert data["large"]["stand_in"] is True
    assert data["paired"]["n"] == 30
    assert len(data["tasks"]) == 30
    assert data["small"]["spending"]["joules_per_task"] is None
    assert Decimal(data["small"]["spending"]["dollars_per_success"]) > 0
    assert "stand-in" in paths[1].read_text()
    assert paths[2].read_bytes().startswith(b"\x89PNG")
