"""Budgets: how much a run, or several runs together, may spend.

    with Budget(Limits(tokens=5_000)) as budget:
        agent.run("..."); agent.run("...")      # both charge `budget`, besides the agent's own limits
    budget.spent.tokens, budget.remaining.tokens

Budgets nest: what is spent inside is charged to every budget that is open around it, so an agent used as another
agent's tool cannot spend more than the outer one has left.
"""

from __future__ import annotations

import contextvars
import time
from dataclasses import asdict, dataclass, fields, replace
from types import TracebackType

from ..errors import BadInput, LimitExceeded

_open: contextvars.ContextVar[tuple[Budget, ...]] = contextvars.ContextVar("trimtab_budgets", default=())


@dataclass(frozen=True)
class Limits:
    """What may be spent. None is no limit.

    Attributes:
        steps: model calls and tool calls together.
        tokens: prompt and answer tokens over all model calls. Where an engine does not count, the bytes of the text
            stand in for them: a token is at least a byte, so the limit still holds.
        seconds: wall time.
        tool_calls: calls that a tool really ran.
    """

    steps: int | None = 40
    tokens: int | None = 200_000
    seconds: float | None = 600.0
    tool_calls: int | None = 30

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:
                raise BadInput(f"a limit is a number of at least 0, not {value!r}", where=f"limits: {name}")


@dataclass(frozen=True)
class Spent:
    """What was spent, in the units of `Limits`."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tool_calls: int = 0


class Budget:
    """A limit and what was spent under it. As a context manager it is charged for everything that runs inside.

    Args:
        limits: what may be spent.
        spent: what had been spent before, as when a run is continued.
    """

    def __init__(self, limits: Limits, spent: Spent | None = None) -> None:
        self.limits = limits
        self._spent = spent or Spent()
        self._since: float | None = None
        self._around: tuple[Budget, ...] = ()

    def __enter__(self) -> Budget:
        self._around = _open.get()
        _open.set((*self._around, self))
        self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spent, self._since = self.spent, None
        _open.set(self._around)

    @property
    def spent(self) -> Spent:
        """What was spent so far; seconds count while the budget is open."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return replace(self._spent, seconds=self._spent.seconds + running)

    @property
    def remaining(self) -> Limits:
        """What is left, never below 0; None where there is no limit."""
        spent, limits = asdict(self.spent), asdict(self.limits)
        return Limits(**{k: None if v is None else max(v - spent[k], 0) for k, v in limits.items()})

    def charge(self, *, steps: int = 0, tokens: int = 0, tool_calls: int = 0) -> None:
        """Write down what was spent, here and in every budget around. Raises nothing: `check` does."""
        for budget in (self, *self._around):
            spent = budget._spent
            budget._spent = replace(
                spent,
                steps=spent.steps + steps,
                tokens=spent.tokens + tokens,
                tool_calls=spent.tool_calls + tool_calls,
            )

    def check(self, *, steps: int = 0, tool_calls: int = 0) -> None:
        """Make sure that something is left, and room for what is about to be spent.

        Raises:
            LimitExceeded: with `kind`, `value` and `limit`; for this budget or one around it.
        """
        ahead = {"steps": steps, "tool_calls": tool_calls}
        for budget in (self, *self._around):
            spent = asdict(budget.spent)
            for field in fields(Limits):
                limit = getattr(budget.limits, field.name)
                if limit is None:
                    continue
                more = ahead.get(field.name)
                # Seconds and tokens cannot be known ahead: they stop what comes after the limit was passed.
                if spent[field.name] >= limit if more is None else spent[field.name] + more > limit:
                    raise spent_error(field.name, spent[field.name], limit)

    def seconds_left(self) -> float | None:
        """The least time left in this budget and those around; None without any limit."""
        left = [budget.remaining.seconds for budget in (self, *self._around)]
        return min((seconds for seconds in left if seconds is not None), default=None)

    def time_is_up(self) -> LimitExceeded:
        """The error for the budget with the least time left."""
        timed = [b for b in (self, *self._around) if b.limits.seconds is not None]
        first = min(timed, key=lambda b: b.remaining.seconds or 0.0)
        assert first.limits.seconds is not None
        return spent_error("seconds", first.spent.seconds, first.limits.seconds)


def spent_error(kind: str, value: float, limit: float) -> LimitExceeded:
    """The error for a limit that was reached."""
    names = {"steps": "steps", "tokens": "tokens", "seconds": "seconds", "tool_calls": "tool calls"}
    return LimitExceeded(
        f"the limit of {limit:g} {names[kind]} is reached ({value:.6g} spent)",
        fix=f"Raise it with Limits({kind}=...) and continue the run",
        kind=kind,
        value=value,
        limit=limit,
    )
