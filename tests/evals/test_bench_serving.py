"""The serving benchmarks: what is compared with what, what counts, and the engines themselves on a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import math
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from trimtab.cli import main
from trimtab.errors import EngineError
from trimtab.evals.bench.arm import Block, Setup, Work, environment, started
from trimtab.evals.bench.picture import steering_png, turns_png
from trimtab.evals.bench.profiles import conditional, vectors
from trimtab.evals.bench.soak import Soak, soak
from trimtab.evals.bench.soak_tally import Case, Said, Soaked, Tally
from trimtab.evals.bench.steering import ROWS, Measured, Trial, check_steered, plan
from trimtab.evals.bench.turns import Turn, Turns, converse, write_profiles
from trimtab.models.card import find_model
from trimtab.steering.asking import LIMITS, Asker
from trimtab.steering.profile import load_profile
from trimtab.steering.reference import Reference
from trimtab.steering.store import ProfileStore
from trimtab.steering.vllm.launch import BLOCK_TOKENS, server_environment

HERE = importlib.util.find_spec("vllm") is not None


def measured(**trials: tuple[Trial, ...]) -> Measured:
    return Measured(
        "m", 64, 4, 8, 2, "bfloat16", {name.replace("__", "."): found for name, found in trials.items()}, {}
    )


def test_a_row_is_the_median_of_ratios_within_a_round() -> None:
    fast, slow = Block(1.0, 100, 5), Block(2.0, 100)
    found = measured(
        steering__64_profiles=(Trial(fast, (slow, slow)), Trial(fast, (fast, fast)), Trial(slow, (slow, fast))),
        steering__vs_hooks=(Trial(fast, (slow,)),) * 3,
    )
    bars = {bar.name: bar for bar in found.bars()}
    assert set(bars) == {"steering.64_profiles", "steering.vs_hooks"}
    assert bars["steering.64_profiles"].value == 1.0
    assert bars["steering.64_profiles"].met
    assert bars["steering.vs_hooks"].value == 2.0
    assert not bars["steering.vs_hooks"].met
    document = found.to_json(found.bars())
    assert document["ratios"]["steering.64_profiles"] == pytest.approx([2.0, 1.0, 50 / 75])
    assert json.loads(json.dumps(document))["tokens_per_second"] == {
        "stock": 75,
        "64 profiles": 100,
        "hooks, decoding": 50,
        "64 profiles, decoding": 100,
    }
    assert steering_png(found, found.bars()).startswith(b"\x89PNG")


def test_where_the_bar_is_near_one_the_other_side_runs_before_and_after() -> None:
    orders = {row.name: row.order for row in ROWS}
    assert orders["steering.idle"] == ("stock", "plugin, unsteered", "stock")
    assert orders["lora.vs_stock_lora"] == ("4 adapters, stock", "4 adapters")


def test_decoding_is_what_is_left_without_the_prompts() -> None:
    left = Block(3.0, 96, 90).after(Block(1.0, 32))
    assert (left.rate, left.steered) == (32.0, 90)
    for first in (Block(3.0, 32), Block(1.0, 96)):
        with pytest.raises(EngineError, match="Generate more tokens"):
            Block(3.0, 96).after(first)


@pytest.mark.skipif(not HERE, reason="vLLM is not installed")
def test_rows_can_be_chosen(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["bench", "steering", "--model", str(tiny_model)]
    assert main([*model, "--rows", "steering.nothing"]) == 2
    assert "Known: steering.64_profiles" in capsys.readouterr().err
    assert main([*model, "--rows", ","]) == 2
    assert "no row is named" in capsys.readouterr().err
    assert main([*model, "--adapters", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*model, "--plot", str(tmp_path / "file" / "x.png")]) == 2
    assert "--plot" in capsys.readouterr().err
    assert main([*model, "--rows", "lora.vs_stock_base"]) == 2
    assert "needs adapters" in capsys.readouterr().err
    assert main([*model, "--rows", "steering.vs_hooks", "--tokens", "1"]) == 2
    assert "nothing to decode" in capsys.readouterr().err
    assert main([*model, "--prompt", "9999999"]) == 2
    assert "Ask for fewer" in capsys.readouterr().err


def test_a_side_that_did_not_steer_is_an_error() -> None:
    work = Work((0, None), (None, None), 4, 4)
    check_steered("x", work, Block(1.0, 8, 7))
    check_steered("x", work, Block(1.0, 8, None))
    check_steered("x", Work((None,), (None,), 4, 4), Block(1.0, 8, 0))
    with pytest.raises(EngineError, match="no token was steered"):
        check_steered("x", work, Block(1.0, 8, 0))


def test_every_row_is_measured_and_stock_has_no_plugin(tiny_model: Path, tmp_path: Path) -> None:
    card = find_model(tiny_model)
    setups, works = plan(card, [tmp_path / "a"], tmp_path, in_flight=3, prompt=4, tokens=5, threads=1, dtype="bfloat16")
    assert {setup.dtype for setup in setups.values()} == {"bfloat16"}
    assert {side for row in ROWS for side in (row.ours, row.theirs)} == set(works)
    assert {arm for arm, _ in works.values()} == set(setups)
    assert {setup.length for setup in setups.values()} == {512}
    longer, _ = plan(card, [], tmp_path / "long", in_flight=3, prompt=600, tokens=5, threads=1, dtype="float32")
    assert longer["hooks"].length == 605


def test_profiles_to_measure_with_are_different_and_act_on_every_layer(tiny_model: Path, tmp_path: Path) -> None:
    card = find_model(tiny_model)
    for made in (vectors(card, 3, tmp_path / "v"), conditional(card, 2, 4, tmp_path / "c")):
        assert len({sha for _, sha in made}) == len(made)
        for folder, _ in made:
            assert load_profile(Path(folder)).layers == tuple(range(card.num_layers))


def test_servers_wait_asleep_and_sides_of_the_benchmark_as_stock_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    sides = [Setup("vllm", "m"), Setup("vllm", "m", plugin=True), Setup("hooks", "m")]
    assert server_environment([], [])["GOMP_SPINCOUNT"] == "5000"
    assert not any("GOMP_SPINCOUNT" in environment(side) for side in sides)
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert server_environment([], [])["GOMP_SPINCOUNT"] == "77"
    assert {environment(side)["GOMP_SPINCOUNT"] for side in sides} == {"77"}
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in server_environment([], [])


def test_replayed_answers_that_cannot_be_compared_are_wrong() -> None:
    def replayed(scores: list[float]) -> tuple[int, float | None, list[str]]:
        reference = SimpleNamespace(scored=lambda *_: (scores, 0))
        tally = Tally(said={Case(None, None, 0, 2): [Said((3, 4), (-1.0, -2.0))]})
        run: Any = SimpleNamespace(tally=tally, profiles={}, prompts=[[1]], reference=reference)
        return (*Soak.replay(run), tally.wrong)

    assert replayed([-1.0, -2.0]) == (1, 0.0, [])
    assert "0.5 nats" in replayed([-1.0, -2.5])[2][0]
    assert "nan nats" in replayed([math.nan, -2.0])[2][0]
    run: Any = SimpleNamespace(tally=Tally())
    assert Soak.replay(run) == (0, None)


def test_a_soak_keeps_answers_that_differ_and_counts_what_is_wrong() -> None:
    tally, case = Tally(), Case("p@1", None, 0, 2)
    for logprobs in ((-1.0, -2.0), (-1.0, -2.00001), (-1.0, -2.5)):
        tally.note(case, Said((3, 4), logprobs))
    tally.note(case, Said((3, 5), (-1.0, -2.0)))
    assert len(tally.said[case]) == 3
    tally.counts = Counter(answered=7)
    bars = {bar.name: bar for bar in Soaked("m", 1.0, tally, 3, 0.0).bars()}
    assert (bars["swap.ms"].value, bars["swap.ms"].met) == (None, False)
    assert bars["soak.missteered"].met
    silence = Soaked("m", 1.0, Tally(), 0, None)
    assert silence.to_json()["largest_difference_nats"] is None
    assert [(bar.value, bar.met) for bar in silence.bars()] == [(None, False)] * 3
    assert not silence.good
    assert Soaked("m", 1.0, tally, 3, 0.0).good
    lost = Soaked("m", 1.0, Tally(lost=["y"]), 0, 0.0)
    assert [bar.value for bar in lost.bars()] == [None, None, 1.0]
    tally.swaps, tally.wrong, tally.lost = [0.02, 0.03, 0.5], ["x"], ["y"]
    found = Soaked("m", 1.0, tally, 3, 0.0)
    assert [bar.met for bar in found.bars()] == [True, False, False]
    assert steering_png(measured(steering__idle=(Trial(Block(1.0, 2), (Block(1.0, 2),)),)), found.bars()).startswith(
        b"\x89PNG"
    )
    assert found.to_json()["swap_ms"] == {"n": 3, "median": 30.0, "p95": 30.0, "max": 500.0}


@pytest.mark.server
@pytest.mark.skipif(not HERE, reason="vLLM is not installed")
def test_an_engine_says_how_many_tokens_it_steered(tiny_model: Path, tmp_path: Path) -> None:
    """The child process that measures, with Hugging Face hooks: no server, the same protocol."""
    card = find_model(tiny_model)
    setup = Setup("hooks", str(card.path), profiles=vectors(card, 1, tmp_path), in_flight=2)
    with started("hooks", setup, tmp_path / "log") as arm:
        arm.wait()
        block = arm.run(Work((0, 0), (None, None), 5, 7))
    assert (block.tokens, block.steered) == (14, None)
    assert block.seconds > 0


def test_turns_are_compared_within_a_conversation() -> None:
    slow = [[Turn(4, 0, 2.0), Turn(12, 8, 3.0)], [Turn(4, None, 1.0), Turn(12, 4, 9.0)]]
    base = [[Turn(4, 0, 1.0), Turn(12, 8, 1.0)], [Turn(4, 0, 1.0), Turn(12, 8, 1.0)]]
    found = Turns("m", 4, {"base": base, "all": base, "generated": slow}, 1e-5, 0.2)
    assert found.seconds("generated") == [1.5, 6.0]
    assert found.computed("generated") == [None, 6.0]
    assert [bar.met for bar in found.bars()] == [True]
    assert json.loads(json.dumps(found.to_json()))["difference_if_reused"] == 0.2
    assert turns_png(found).startswith(b"\x89PNG")


def test_turns_are_shown_though_their_picture_cannot_be_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(*_: Any, **__: Any) -> Turns:
        return Turns("m", 4, {side: [[Turn(4, 0, 1.0)]] for side in ("base", "all", "generated")}, 1e-5, 0.2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.models.engines.vllm.require_vllm", lambda: None)
    monkeypatch.setattr("trimtab.evals.bench.turns.measure", measured)
    monkeypatch.setattr("trimtab.home.write_atomic", full)
    words = ["bench", "turns", "--model", str(tiny_model), "--turns", "1", "--plot", str(tmp_path / "x.png")]
    assert main(words) == 1
    assert "prompt tokens computed" in capsys.readouterr().out


@pytest.mark.server
def test_steered_answers_are_computed_again_once(server: Any) -> None:
    """The blocks of an answer in the turn after it, and never later; those of a profile on all tokens are reused."""
    card = find_model(server.model_dir)
    card = dataclasses.replace(card, name=server.model)
    profiles = write_profiles(card, server.roots[0])
    for name in profiles.values():
        assert post(server, "load", name.id).status_code == 200

    async def run() -> Turns:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=LIMITS) as http:
            asker, reference = Asker(http, server.url, server.model), Reference(server.model_dir)
            sizes = {"turns": 3, "prompt": BLOCK_TOKENS, "new": 2 * BLOCK_TOKENS + 1, "conversations": 1}
            return await converse(asker, reference, profiles, **sizes, block=BLOCK_TOKENS, seed=time.time_ns() % 2**40)

    try:
        found = asyncio.run(run())
    finally:
        for name in profiles.values():
            post(server, "unload", name.id)
            ProfileStore(*server.roots).remove(name.id)
    assert found.difference < min(2e-3, found.reused / 5)
    # An answer's last token is computed by the next turn in any case, and begins a block of what the user says.
    base, scoped = found.computed("base"), found.computed("generated")
    assert None not in base
    again = (0, 2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)
    assert scoped == [(one or 0) + more for one, more in zip(base, again, strict=True)]
    assert found.computed("all") == found.computed("base")


def post(server: Any, action: str, name: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/trimtab/profiles/{action}", json={"name": name}, timeout=60)


def test_an_engine_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    dying = started("hooks", Setup("hooks", str(tmp_path / "nothing")), tmp_path / "log")
    with dying as arm, pytest.raises(EngineError, match="the engine died"):
        arm.wait()


async def test_a_soak_does_not_end_with_its_last_kill() -> None:
    soak = Soak.__new__(Soak)
    soak.end = asyncio.Event()
    killer = asyncio.create_task(soak.killer([]))
    await asyncio.sleep(0.01)
    assert not killer.done()
    soak.end.set()
    await killer


@pytest.mark.server
@pytest.mark.skipif(not HERE, reason="vLLM is not installed")
def test_a_short_soak(trimtab_home: Path, tmp_path: Path) -> None:
    """The whole of it, killed once, on the small model without shipped profiles."""
    from trimtab.steering.store import ProfileStore

    told: list[str] = []
    scratch = tmp_path / "store"
    scratch.mkdir()
    run: Any = soak(
        find_model("trimtab-nano"), ProfileStore(scratch), scratch, minutes=0.2, clients=6, kills=1, told=told.append
    )
    found = asyncio.run(run)
    assert not found.tally.wrong
    assert not found.tally.lost
    assert found.answered > 20
    assert found.replayed > 10
    assert found.tally.counts["kills"] == 1
