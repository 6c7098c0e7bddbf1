"""Money, tokens, seconds and joules per task and per successful task. What is not known stays None.

A cheaper call is not a cheaper result: failed tasks are paid for too, so everything spent is divided by the successes.

Self-hosted models are priced by their machine, for the wall time the tasks kept it (`machine_cost_per_hour`): requests
that overlap share it, idle time before and after is charged to nobody. Hosted models are priced by the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from ..errors import Unknown
from ..models.chat import Usage
from ..models.price import Prices, cost
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
        dollars_per_success: also None when nothing succeeded; then there is no such price.
        tokens_per_task: prompt and answer together.
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
    joules_per_task: float | None
    joules_per_success: float | None
    unpriced: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def require_dollars(self) -> Decimal:
        """Dollars per task, for those who asked for a price.

        Raises:
            Unknown: some model has no price, or its usage was not reported.
        """
        if self.dollars_per_task is None:
            names = ", ".join(self.unpriced) or "nothing that was run"
            raise Unknown(
                f"the price is not known for: {names}",
                fix="Add the model to the price file: input_cost_per_token and output_cost_per_token, "
                "or machine_cost_per_hour.",
            )
        return self.dollars_per_task

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
    n, successes = len(work), sum(w.success is True for w in work)
    calls = [s for w in work for s in w.spent]
    busy = sum(s.seconds for s in calls)
    share = wall_seconds / busy if busy > 0 else 1.0
    total: Decimal | None = Decimal(0)
    unpriced: dict[str, None] = {}
    assumptions: dict[str, None] = {}
    for call in calls:
        price = prices.get(call.model)
        by_machine = price is not None and price.input is None and price.output is None and price.second is None
        money = cost(call.usage, call.seconds * share if by_machine else call.seconds, call.model, prices)
        if money is None:
            total = None
            unpriced[call.model] = None
        elif total is not None:
            total += money.usd
        if money is not None and price is not None and price.source:
            assumptions[f"Price of {call.model}: {price.source}"] = None
        if money is not None and by_machine:
            assumptions["Machines are charged for the wall time of the tasks, idle time is not."] = None
    prompt = _total([s.usage.prompt_tokens for s in calls])
    completion = _total([s.usage.completion_tokens for s in calls])
    finished = [w.seconds for w in work if w.success is not None]
    known = total if calls else None
    return Spending(
        tasks=n,
        successes=successes,
        dollars=known,
        dollars_per_task=known / n if known is not None and n else None,
        dollars_per_success=known / successes if known is not None and successes else None,
        prompt_tokens_per_task=prompt / n if prompt is not None and n else None,
        completion_tokens_per_task=completion / n if completion is not None and n else None,
        tokens_per_task=(prompt + completion) / n if prompt is not None and completion is not None and n else None,
        seconds_p50=stats.percentile(finished, 0.50),
        seconds_p95=stats.percentile(finished, 0.95),
        joules_per_task=joules / n if joules is not None and n else None,
        joules_per_success=joules / successes if joules is not None and successes else None,
        unpriced=tuple(unpriced),
        assumptions=tuple(assumptions),
    )


def _total(counts: Sequence[int | None]) -> int | None:
    """Their sum; None if there are none or one of them is not known."""
    known = [c for c in counts if c is not None]
    return sum(known) if counts and len(known) == len(counts) else None
