"""The demo's course with played-back engines: what it prints, what it refuses to print, and what it leaves behind.

That it works with the embedded models on a real vLLM server is shown by the acceptance run of the whole command.
"""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from trimtab.agent.testing import ReplayEngine, call, calls
from trimtab.cli import main
from trimtab.errors import EngineError, EngineUnavailable, NotFound
from trimtab.evals import suite as suites
from trimtab.evals.swap import ACTIVATIONS, WEIGHTS, Measured, difference, require_receipt
from trimtab.models.chat import ChatRequest, Message, Receipt, Reply, Usage
from trimtab.models.embedded.answers import PLAIN, Style, word_answer
from trimtab.models.embedded.intents.common import Facts
from trimtab.tools.builtin import FAMILIES

PROFILES = (*FAMILIES, "calc-terse", "calc-detailed", "calc-casual")
SCRIPTS: dict[str, list[Message]] = {
    "convert 26.2": [call("convert_units", value=26.2, from_unit="miles", to_unit="kilometres")],
    "add milk": [call("add_todo", item="milk")],
    "what's the total": [
        call("convert_units", value=12, from_unit="miles", to_unit="kilometres"),
        call("calculate", expression="19.3121 + 5"),
    ],
    "put the email": [call("find_contact", name="Ann Baker"), call("add_todo", item="ann.baker@example.org")],
    "book dentist": [
        calls(
            ("add_event", {"title": "dentist", "date": "14 May", "time": "3 pm"}), ("add_todo", {"item": "buy flowers"})
        )
    ],
}
STYLES = {"calc-detailed": Style(detail=True), "calc-casual": Style(detail=True, register=True)}
FACTS = {"convert 26.2": "42.1648 kilometres", "what's": "24.3121 kilometres", "book": "Added dentist and buy flowers"}


def played(request: ChatRequest) -> Reply:
    """A model that does every task of the demo right and words its answers as the profile says."""
    ask = str(request.messages[0].content)
    script = next(steps for start, steps in SCRIPTS.items() if ask.startswith(start))
    done = sum(bool(m.tool_calls) for m in request.messages)
    fact = next((fact for start, fact in FACTS.items() if ask.startswith(start)), "milk is on the list")
    facts = Facts(fact, fact, fact, fact, ())
    text = word_answer(STYLES.get(request.profile or "", PLAIN), facts, (), random.Random(0))
    message = script[done] if done < len(script) else Message("assistant", text)
    layers = (2, 3) if request.profile in ("calc-terse", "calc-detailed") else ()
    profile = None if request.profile is None else f"{request.profile}@1"
    receipt = Receipt("vllm", "trimtab-nano", profile, "ab" * 32, "cd" * 32, layers, 40 if layers else 0)
    return Reply(message, "stop", Usage(90, len(text.split())), 0.01, receipt, (-0.1, -0.2))


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ReplayEngine]:
    """Both engines, and a packaged suite `small` of two tasks."""
    found = {
        "trimtab-nano": ReplayEngine(played, name="vllm", model="trimtab-nano", profiles=PROFILES),
        "trimtab-large": ReplayEngine(played, name="vllm", model="trimtab-large"),
    }

    @asynccontextmanager
    async def open_engine(spec: str, *, model: str, **_: Any) -> AsyncIterator[ReplayEngine]:
        try:
            yield found[model]
        finally:
            await found[model].aclose()

    monkeypatch.setattr("trimtab.models.engines.open_engine", open_engine)
    monkeypatch.setattr("trimtab.evals.evaluate.identity", lambda side: {})
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    packaged = tmp_path / "suites"
    shutil.copytree(suites.PACKAGED, packaged)
    demo = yaml.safe_load((packaged / "demo.yaml").read_text())
    (packaged / "small.yaml").write_text(yaml.safe_dump({"name": "small", "tasks": demo["tasks"][:2]}))
    monkeypatch.setattr(suites, "PACKAGED", packaged)
    return found


def test_the_demo_shows_its_four_parts_and_writes_the_report(
    engines: dict[str, ReplayEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report"
    assert main(["demo", "--report", str(folder)]) == 0
    out = capsys.readouterr().out
    for part in (
        "1  Start the engines",
        "Task 5: book dentist",
        "as it should be",
        "todos: ['bread'] -> ['bread', 'milk']",
        "5 of 5 ended as they should",
        "layers 2,3, 40 tokens steered",
        "calc-detailed says +3.0 words more than calc-terse",
        "calc-casual words 100% of its answers casually, calc 0%",
        "the same process",
        "stand-in",
        "dollars per successful task",
        "No server is left running",
    ):
        assert part in out, part
    assert "not as it should be" not in out
    data = json.loads((folder / "comparison.json").read_text())
    assert data["small"]["routed"]
    assert data["large"]["stand_in"]
    assert all(engine.closed for engine in engines.values())


def test_the_reports_place_is_looked_at_first(
    engines: dict[str, ReplayEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--report", str(tmp_path / "file")]) == 2
    caught = capsys.readouterr()
    assert "--report" in caught.err
    assert caught.out == ""
    assert not any(engine.requests for engine in engines.values())


def test_an_answer_without_its_receipt_is_not_shown(
    engines: dict[str, ReplayEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsteered(request: ChatRequest) -> Reply:
        reply = played(request)
        assert reply.receipt is not None
        return replace(reply, receipt=replace(reply.receipt, layers=(), tokens_steered=0))

    engines["trimtab-nano"]._script = unsteered
    assert main(["demo", "--report", str(tmp_path / "report")]) == 3
    caught = capsys.readouterr()
    assert "no steered layers" in caught.err
    assert "No server is left running" in caught.out
    assert all(engine.closed for engine in engines.values())


def test_a_large_server_that_does_not_start_fails_the_demo(
    engines: dict[str, ReplayEngine],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def open_engine(spec: str, *, model: str, **_: Any) -> AsyncIterator[ReplayEngine]:
        if model == "trimtab-large":
            raise EngineUnavailable("the server ended before it was ready", where="the large one")
        yield engines[model]

    monkeypatch.setattr("trimtab.models.engines.open_engine", open_engine)
    assert main(["demo", "--report", str(tmp_path / "report")]) == 3
    assert "the large one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "receipt",
    [
        None,
        Receipt("vllm", "m"),
        Receipt("vllm", "m", "calc@1", "ab", "cd", (2,), 9),
        Receipt("vllm", "m", "calc-terse@1", "ab", "cd"),
        Receipt("vllm", "m", "calc-terse@1", "ab", None, (2,), 9),
    ],
)
def test_receipts_that_do_not_prove_the_steering(receipt: Receipt | None) -> None:
    with pytest.raises(EngineError, match="calc-terse"):
        require_receipt("calc-terse", ACTIVATIONS, receipt)
    require_receipt("calc-casual", WEIGHTS, Receipt("vllm", "m", "calc-casual@1", "ab", "cd"))


def test_no_difference_is_called_none() -> None:
    rows = [Measured(p, 6, 9.0, 5.0, 0.5, 0.5, -0.1) for p in ("calc", "calc-terse", "calc-detailed", "calc-casual")]
    assert "no lengthening measured" in difference(rows)


def test_a_small_model_that_is_not_there_is_the_error_told(
    engines: dict[str, ReplayEngine],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def open_engine(spec: str, *, model: str, **_: Any) -> AsyncIterator[ReplayEngine]:
        if model == "trimtab-nano":
            raise NotFound("unknown model 'trimtab-nano'")
        await asyncio.sleep(60)
        yield engines[model]

    monkeypatch.setattr("trimtab.models.engines.open_engine", open_engine)
    assert main(["demo", "--report", str(tmp_path / "report")]) == 2
    assert "unknown model 'trimtab-nano'" in capsys.readouterr().err
