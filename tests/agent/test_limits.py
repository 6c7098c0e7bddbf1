import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.agent import Agent, Budget, Journal, Limits, RoutingPolicy, Spent
from trimtab.agent.testing import ReplayEngine
from trimtab.errors import LimitExceeded
from trimtab.models.chat import Usage


def test_budgets_nest_and_all_are_charged() -> None:
    with Budget(Limits(tokens=100)) as outer:
        with Budget(Limits(tokens=50)) as inner:
            inner.charge(tokens=30, steps=1)
            inner.check()
        assert inner.remaining.tokens == 20
        with Budget(Limits(tokens=None)) as inner:
            inner.charge(tokens=70)
            with pytest.raises(LimitExceeded) as raised:
                inner.check()
    assert (raised.value.kind, raised.value.value, raised.value.limit) == ("tokens", 100, 100)
    assert outer.spent.tokens == 100
    assert outer.spent.steps == 1


@given(st.lists(st.integers(0, 50)), st.integers(0, 200))
def test_what_is_left_and_what_is_spent_add_up(charges: list[int], limit: int) -> None:
    budget = Budget(Limits(tokens=limit))
    for charge in charges:
        budget.charge(tokens=charge)
    assert budget.remaining.tokens == max(limit - sum(charges), 0)
    assert budget.remaining.steps == Limits().steps


@given(st.integers(0, 20), st.integers(0, 20))
def test_steps_are_checked_ahead(spent: int, limit: int) -> None:
    budget = Budget(Limits(steps=limit), Spent(steps=spent))
    if spent + 1 > limit:
        with pytest.raises(LimitExceeded):
            budget.check(steps=1)
    else:
        budget.check(steps=1)


def test_time_counts_only_while_open() -> None:
    budget = Budget(Limits(seconds=10), Spent(seconds=3.0))
    with budget:
        time.sleep(0.05)
        assert (budget.seconds_left() or 0) < 7
    spent = budget.spent.seconds
    time.sleep(0.05)
    assert budget.spent.seconds == spent


def test_a_budget_around_several_runs() -> None:
    agent = Agent(
        engine=ReplayEngine(lambda request: "ok", usage=Usage(60, 40)),
        journal=Journal(":memory:"),
        policy=RoutingPolicy(),
    )
    with Budget(Limits(tokens=200)) as budget:
        assert [agent.run("x").stopped for _ in range(2)] == [None, None]
        last = agent.run("x").stopped
    assert last is not None
    assert last.kind == "tokens"
    assert budget.spent.tokens == 200
