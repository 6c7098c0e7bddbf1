"""Money, tokens, seconds and joules per task and per successful task. What is not known stays None.

A cheaper call is not a cheaper result: failed tasks are paid for too, so everything spent is divided by the successes.

Self-hosted models are priced by their machine, for the wall time of the tasks (`machine_cost_per_hour`): requests that
overlap share it, each model's machine is kept while another model answers, and idle time before and after is charged to
nobody. Hosted models are priced by the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, TypeVar

from ..errors import Unknown
from ..models.chat import Usage
from ..models.price import Price, Prices, cost
from . import stats


@dataclass(frozen=True)
class Spent:
    """One model call: by which model, tokens as the engine counted them, seconds as the caller saw them."""

    model: str
    usage: Usage
    seconds: float


@dataclass(frozen=True)
class Work:
    """What one task used.

    Attributes:
        success: None where the infrastructure failed.
        seconds: from the request to the answer.
    """

    success: bool | None
    seconds: float
    spent: tuple[Spent, ...]


@dataclass(frozen=True)
class Spending:
    """The price of a set of tasks.

    Attributes:
        tasks: runs; those that the infrastructure broke among them.
        dollars, joules: of all runs together.
        dollars_per_success, joules_per_success: the same over the successes; also None when nothing succeeded.
        dollars_per_task, tokens_per_task, ...: of the scored runs, over their number.
        tokens_per_task: prompt and answer together.
        joules_per_task: None where a run broke, too: nobody can tell what that one used.
        seconds_p50, seconds_p95: of the tasks that the infrastructure let finish.
        unpriced: models whose price, or whose usage, is not known.
        assumptions: what the numbers rest on, one sentence each.
    """

    tasks: int
    successes: int
    dollars: Decimal | None
    dollars_per_task: Decimal | None
    dollars_per_success: Decimal | None
    prompt_tokens_per_task: float | None
    completion_tokens_per_task: float | None
    tokens_per_task: float | None
    seconds_p50: float | None
    seconds_p95: float | None
    joules: float | None
    joules_per_task: float | None
    joules_per_success: float | None
    unpriced: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def require_dollars(self) -> Decimal:
        """Dollars of all runs, for those who asked for a price.

        Raises:
            Unknown: some model has no price, or its usage was not reported.
        """
        if self.dollars is None:
            names = ", ".join(self.unpriced) or "nothing that was run"
            raise Unknown(
                f"the price is not known for: {names}",
                fix="Add the model to the price file: input_cost_per_token and output_cost_per_token, "
                "or machine_cost_per_hour. A price per token also needs an engine that counts tokens.",
            )
        return self.dollars

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; money is text so that no digit is lost."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    return list(value) if isinstance(value, tuple) else value


def spending(work: Sequence[Work], prices: Prices, *, wall_seconds: float, joules: float | None) -> Spending:
    """Add up what a set of tasks used.

    Args:
        wall_seconds: from the first task's start to the last one's end; machines are charged for it.
        joules: measured over the same time, or None.
    """
    scored = [w for w in work if w.success is not None]
    n, successes = len(scored), sum(w.success is True for w in scored)
    calls, judged = ([s for w in some for s in w.spent] for some in (work, scored))
    charges = _charges(calls, prices, wall_seconds)
    in_scored = [w.success is not None for w in work for _ in w.spent]
    dollars, of_scored = _total(charges), _total([c for c, counts in zip(charges, in_scored, strict=True) if counts])
    prompt = _total([s.usage.prompt_tokens for s in judged])
    completion = _total([s.usage.completion_tokens for s in judged])
    finished = [w.seconds for w in scored]
    return Spending(
        tasks=len(work),
        successes=successes,
        dollars=dollars,
        dollars_per_task=of_scored / n if of_scored is not None and n else None,
        dollars_per_success=dollars / successes if dollars is not None and successes else None,
        prompt_tokens_per_task=prompt / n if prompt is not None and n else None,
        completion_tokens_per_task=completion / n if completion is not None and n else None,
        tokens_per_task=(prompt + completion) / n if prompt is not None and completion is not None and n else None,
        seconds_p50=stats.percentile(finished, 0.50),
        seconds_p95=stats.percentile(finished, 0.95),
        joules=joules,
        joules_per_task=joules / n if joules is not None and n and n == len(work) else None,
        joules_per_success=joules / successes if joules is not None and successes else None,
        unpriced=tuple(dict.fromkeys(s.model for s, c in zip(calls, charges, strict=True) if c is None)),
        assumptions=_assumptions(
            {s.model: prices.get(s.model) for s, c in zip(calls, charges, strict=True) if c is not None}
        ),
    )


def _charges(calls: Sequence[Spent], prices: Prices, wall_seconds: float) -> list[Decimal | None]:
    """What each call costs, in dollars; None where that is not known."""
    busy: dict[str, float] = {}
    for call in calls:
        busy[call.model] = busy.get(call.model, 0.0) + call.seconds
    charges = []
    for call in calls:
        seconds = call.seconds
        if _by_machine(prices.get(call.model)) and busy[call.model] > 0:
            seconds *= wall_seconds / busy[call.model]
        money = cost(call.usage, seconds, call.model, prices)
        charges.append(None if money is None else money.usd)
    return charges


def _by_machine(price: Price | None) -> bool:
    return price is not None and price.input is None and price.output is None and price.second is None


def _assumptions(priced: Mapping[str, Price | None]) -> tuple[str, ...]:
    lines = [f"Price of {model}: {price.source}" for model, price in priced.items() if price and price.source]
    if any(map(_by_machine, priced.values())):
        lines.append("Machines are charged for the wall time of the tasks, idle time is not.")
    return tuple(lines)


Amount = TypeVar("Amount", int, Decimal)


def _total(amounts: Sequence[Amount | None]) -> Amount | None:
    """Their sum; None if there are none or one of them is not known."""
    known = [a for a in amounts if a is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(amounts) else None
