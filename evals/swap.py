"""The same requests under several profiles of one running engine: what was applied, and what it changed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError
from ..models.chat import ChatRequest, Message, Receipt, Sampling, user
from .arms import builder
from .suite import Task, find_suite

if TYPE_CHECKING:
    from ..agent.steps import Result
    from ..models.engine import Engine

ACTIVATIONS, WEIGHTS, NOTHING = "activations", "weights", "adapter only"
PROFILES = {"calc": NOTHING, "calc-terse": ACTIVATIONS, "calc-detailed": ACTIVATIONS, "calc-casual": WEIGHTS}
"""The profiles shown, and how each steers. All four hold the same adapter."""
ASKS = 6
LONGEST_ANSWER = 80


@dataclass(frozen=True)
class Measured:
    """Answers under one profile.

    Attributes:
        tokens, logprob: means per answer and per token; None where the engine does not say.
        brief, casual: shares of answers worded so.
    """

    profile: str
    asks: int
    tokens: float | None
    words: float
    brief: float
    casual: float
    logprob: float | None


async def answer_under(profile: str, engine: Engine, task: Task) -> tuple[str, Receipt | None]:
    """A task's answer under a profile (or why there is none), with the receipt of the step that gave it."""
    result = await _run(profile, engine, task)
    last = [step for step in result.steps if step.kind == "model"][-1]
    stopped = result.stopped
    return result.answer if stopped is None else f"(stopped: {stopped.reason})", last.receipt


async def _run(profile: str, engine: Engine, task: Task) -> Result:
    from ..tools.builtin import builtin_tools
    from ..tools.builtin.state import seed

    with tempfile.TemporaryDirectory(prefix="trimtab-swap-") as name:
        home = Path(name)
        seed(home, dict(task.state))
        result: Result = await builder(profile, engine)(builtin_tools(home, today=lambda: task.today)).arun(task.ask)
        return result


def require_receipt(profile: str, kind: str, receipt: Receipt | None) -> None:
    """Refuse to show an answer whose receipt does not say that it was steered as claimed.

    Raises:
        EngineError: no receipt, another profile's, or without the layers or the weights it must name.
    """
    problem = None
    if receipt is None or receipt.profile is None:
        problem = "the engine gave no receipt for it"
    elif receipt.profile.partition("@")[0] != profile:
        problem = f"the engine applied {receipt.profile} instead"
    elif kind == ACTIVATIONS and not (receipt.layers and receipt.tokens_steered):
        problem = "the receipt names no steered layers"
    elif receipt.adapter_sha256 is None:
        problem = "the receipt names no adapter"
    if problem is not None:
        raise EngineError(problem, where=f"profile {profile!r}", fix="See `trimtab doctor`.")


def receipt_line(receipt: Receipt | None) -> str:
    """A receipt in one line."""
    if receipt is None:
        return "none"
    parts = [f"profile {(receipt.profile_sha256 or '?')[:8]}", f"adapter {(receipt.adapter_sha256 or 'none')[:8]}"]
    if receipt.layers:
        layers = f"layer{'s' * (len(receipt.layers) > 1)} {','.join(map(str, receipt.layers))}"
        parts.append(f"{layers}, {receipt.tokens_steered} tokens steered")
    return ", ".join(parts)


async def measure(engine: Engine, profiles: Sequence[str] = tuple(PROFILES)) -> list[Measured]:
    """Answers to the same tool results under each profile, all requests in flight at once.

    The calls are made once, under the first profile, so that the profiles differ in nothing but the answer.

    Raises:
        EngineError: no ask came as far as an answer.
    """
    tasks = [t for t in find_suite("small").tasks if t.family == "calc"][:ASKS] or list(find_suite("demo").tasks[:1])
    results = await asyncio.gather(*(_run(profiles[0], engine, task) for task in tasks))
    contexts = [context for result in results if (context := before_answer(result)) is not None]
    if not contexts:
        raise EngineError("no ask came as far as an answer", where=f"profile {profiles[0]!r}")
    sampling = Sampling(max_tokens=LONGEST_ANSWER, logprobs=True)
    replies = await asyncio.gather(
        *(engine.chat(ChatRequest(m, specs, profile, sampling)) for profile in profiles for m, specs in contexts)
    )
    n = len(contexts)
    return [_summed(profile, replies[i * n : (i + 1) * n]) for i, profile in enumerate(profiles)]


def before_answer(result: Result) -> tuple[tuple[Message, ...], tuple[dict[str, Any], ...]] | None:
    """The conversation and tools of a run's last model step; None for a run that stopped or went astray."""
    from datetime import date

    from ..tools.builtin import builtin_tools

    models = [step for step in result.steps if step.kind == "model"]
    if result.stopped is not None or len(models) < 2 or any(step.error for step in result.steps):
        return None
    messages = [user(result.task)]
    for step in result.steps[:-1]:
        if step.kind == "model":
            messages.append(Message("assistant", step.text, step.calls))
        else:
            messages.append(Message("tool", step.result, tool_call_id=step.call_id))
    route = models[-1].route
    # Only the specifications are used; nothing is ever written below this folder.
    tools = builtin_tools(Path(tempfile.gettempdir()) / "trimtab-specs", today=date.today)
    return tuple(messages), tuple(tools.only(route.tools if route is not None else ()).specs())


def _summed(profile: str, replies: Sequence[Any]) -> Measured:
    from ..models.embedded.answers import detect

    texts = [reply.message.content or "" for reply in replies]
    shown = [detect(text) for text in texts]
    tokens = [reply.usage.completion_tokens for reply in replies]
    logprobs = [value for reply in replies for value in reply.logprobs or ()]
    n = len(replies)
    return Measured(
        profile=profile,
        asks=n,
        tokens=None if None in tokens else sum(tokens) / n,
        words=sum(len(text.split()) for text in texts) / n,
        brief=sum(side["detail"] is False for side in shown) / n,
        casual=sum(side["register"] is True for side in shown) / n,
        logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )


def difference(measured: Sequence[Measured]) -> str:
    """The measured difference in words; it says so when there is none."""
    rows = {row.profile: row for row in measured}
    terse, detailed, casual, plain = (rows[p] for p in ("calc-terse", "calc-detailed", "calc-casual", "calc"))
    words = detailed.words - terse.words
    parts = [
        f"calc-detailed says {words:+.1f} words more than calc-terse per answer"
        if words > 0
        else f"no lengthening measured: calc-detailed says {words:+.1f} words against calc-terse"
    ]
    parts.append(f"calc-casual words {casual.casual:.0%} of its answers casually, calc {plain.casual:.0%}")
    return "; ".join(parts) + "."
