"""Prices: closed forms, laws that hold for any numbers, and every malformed file by name of entry and field."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.errors import BadInput, Unknown
from trimtab.models.chat import Usage
from trimtab.models.price import Money, Price, cost, load_prices, require_cost

TOKENS = Price(input=Decimal("0.000001"), output=Decimal("0.000004"), cache_read=Decimal("0.0000001"))


def test_tokens_by_hand() -> None:
    # 1000 prompt tokens, 400 of them cached, 50 generated: 600e-6 + 40e-6 + 200e-6
    assert cost(Usage(1000, 50, 400), 3.0, "m", {"m": TOKENS}) == Money(Decimal("0.00084"))


def test_machine_hours_by_hand() -> None:
    # 90 s of a machine at 0.08 USD an hour
    assert cost(Usage(), 90.0, "m", {"m": Price(machine_hour=Decimal("0.08"))}) == Money(Decimal("0.002"))


def test_tokens_come_before_seconds_before_machine_hours() -> None:
    every = Price(Decimal(1), Decimal(1), None, Decimal(7), Decimal(3600))
    assert cost(Usage(1, 1), 2.0, "m", {"m": every}) == Money(Decimal(2))
    assert cost(Usage(1, 1), 2.0, "m", {"m": Price(second=Decimal(7), machine_hour=Decimal(3600))}) == Money(
        Decimal(14)
    )


@pytest.mark.parametrize(
    ("usage", "seconds", "price"),
    [
        (Usage(1, 1), 1.0, None),
        (Usage(1, 1), 1.0, Price()),
        (Usage(None, 1), 1.0, TOKENS),
        (Usage(1, None), 1.0, TOKENS),
        (Usage(1, 1), 1.0, Price(input=Decimal(1), machine_hour=Decimal(1))),
        (Usage(1, 1), None, Price(second=Decimal(1))),
        (Usage(1, 1), None, Price(machine_hour=Decimal(1))),
    ],
)
def test_unknown_is_none_and_never_zero(usage: Usage, seconds: float | None, price: Price | None) -> None:
    prices = {} if price is None else {"m": price}
    assert cost(usage, seconds, "m", prices) is None
    with pytest.raises(Unknown, match="'m'"):
        require_cost(usage, seconds, "m", prices)


def test_a_price_of_zero_is_known() -> None:
    free = {"m": Price(input=Decimal(0), output=Decimal(0))}
    assert cost(Usage(5, 5), None, "m", free) == require_cost(Usage(5, 5), None, "m", free) == Money(Decimal(0))


counts = st.integers(0, 10**7)
rates = st.decimals(0, 1, places=12)


@given(counts, counts, counts, rates, rates, rates)
def test_tokens_cost_what_they_add_up_to(p: int, c: int, cached: int, i: Decimal, o: Decimal, r: Decimal) -> None:
    prices = {"m": Price(input=i, output=o, cache_read=r)}
    hit = min(cached, p)
    money = cost(Usage(p, c, cached), None, "m", prices)
    assert money == Money((p - hit) * i + hit * r + c * o)


@given(st.floats(0, 1e6), st.floats(0, 1e6), rates)
def test_machine_time_is_additive(a: float, b: float, rate: Decimal) -> None:
    prices = {"m": Price(machine_hour=rate)}
    one, two = cost(Usage(), a, "m", prices), cost(Usage(), b, "m", prices)
    whole = rate * (Decimal(repr(a)) + Decimal(repr(b))) / 3600
    assert one is not None
    assert two is not None
    assert abs((one + two).usd - whole) <= Decimal("1e-18")


def test_the_packaged_prices_say_where_they_come_from() -> None:
    prices = load_prices()
    assert {"trimtab-nano", "trimtab-large"} <= set(prices)
    assert all(p.source and "assumption" in p.source for p in prices.values())


def test_a_users_file_overrides_and_extends(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(
        json.dumps(
            {
                "sample_spec": {"input_cost_per_token": "what this key means"},
                "trimtab-nano": {"machine_cost_per_hour": 1},
                "gpt": {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05, "mode": "chat", "x": [1]},
                "by-second": {"input_cost_per_second": 0.001},
            }
        )
    )
    prices = load_prices(file)
    assert prices["trimtab-nano"].machine_hour == 1
    assert prices["gpt"].input == Decimal("0.0000025")  # exact: not what a float would make of it
    assert prices["by-second"].second == Decimal("0.001")
    assert "trimtab-large" in prices
    assert "sample_spec" not in prices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not readable"),
        ("[]", "object of entries"),
        ('{"m": 3}', ": m: a JSON object"),
        ('{"m": {"input_cost_per_token": -1}}', ": m: input_cost_per_token: -1 is not a price"),
        ('{"m": {"output_cost_per_token": "much"}}', ": m: output_cost_per_token: much"),
        ('{"m": {"cache_read_input_token_cost": true}}', ": m: cache_read_input_token_cost: True"),
        ('{"m": {"cost_per_second": NaN}}', ": m: cost_per_second: nan"),
        ('{"m": {"cost_per_second": 1e99999999999999999999}}', ": m: cost_per_second: 1e99999999999999999999 is not"),
        ('{"m": {"cost_per_second": "1e999999"}}', ": m: cost_per_second: 1e999999 is not a price"),
        ('{"m": {"machine_cost_per_hour": [1]}}', ": m: machine_cost_per_hour"),
        ('{"m": {"machine_cost_per_hour": "Infinity"}}', ": m: machine_cost_per_hour: Infinity"),
    ],
)
def test_a_malformed_file_names_entry_and_field(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        load_prices(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(BadInput, match="no such price file"):
        load_prices(Path("nowhere.json"))


def test_money_as_json_loses_no_digit() -> None:
    assert Money(Decimal("1E-9")).as_dict() == {"amount": "0.000000001", "currency": "USD"}
