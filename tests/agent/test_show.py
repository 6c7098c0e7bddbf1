import io
from typing import Any

from rich.console import Console
from trimtab.agent import Agent, Journal, Limits, RoutingPolicy
from trimtab.agent.show import render_end, render_step
from trimtab.agent.testing import ReplayEngine, call
from trimtab.models.chat import Message, Receipt, Reply, Usage
from trimtab.tools import tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def printed(result: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    for step in result.steps:
        console.print(render_step(step))
    console.print(render_end(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(script: Any, **options: Any) -> Any:
    engine = ReplayEngine(script, profiles=["sums"])
    policy = RoutingPolicy({"sums": ("add",)})
    return Agent([add], engine=engine, journal=Journal(":memory:"), policy=policy, **options).run("go")


def test_a_steered_step_shows_route_reason_call_result_tokens_and_receipt() -> None:
    receipt = Receipt("vllm", "nano", "sums@1", "ab" * 32, "cd" * 32, (3, 4), 17)
    replies = [Reply(m, "stop", Usage(31, 9), 0.2, receipt) for m in (call("add", a=1, b=2), Message("assistant", "3"))]
    text = printed(run(replies))
    for part in (
        "sums on replay (small)  all tools are of the family sums",
        'add {"a": 1, "b": 2}',
        "31 + 9 tokens",
        "receipt vllm/nano · sums@1 abababab · adapter cdcdcdcd · steered layers 3,4, 17 tokens",
        "cost unknown",
    ):
        assert part in text


def test_a_stop_says_why_and_unknown_tokens_are_no_zeros() -> None:
    text = printed(run([call("add", a=1, b=2)], limits=Limits(steps=1)))
    assert "stopped: the limit of 1 steps is reached" in text
    assert "? + ? tokens" in text


def test_what_a_model_writes_cannot_steer_the_terminal_or_flood_it() -> None:
    text = printed(run(["\x1b[2J\x1b]0;owned\x07[bold]hi[/bold]" + "x" * 100_000]))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]hi" in text
    assert len(text) < 20_000
