"""What an answer costs, from a price file and measured usage. A price that is not known stays None; it is never zero.

The file is JSON in litellm's key format, one entry per model id:

    {"some-model": {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6, "cache_read_input_token_cost": 1e-7},
     "my-own":     {"machine_cost_per_hour": 0.08, "source": "cloud list price, 2026-05"}}

An entry is priced by the first of these it has: tokens; `cost_per_second` (alias `input_cost_per_second`) times the
seconds of the request; `machine_cost_per_hour`, the price of the machine that serves the model, times the seconds of it
the request took. Other keys of litellm's files (`mode`, `max_tokens`, `litellm_provider`, ...) are read over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ..errors import BadInput, Unknown
from .chat import Usage

PACKAGED = Path(__file__).parent / "prices.json"
SECONDS_PER_HOUR = 3600
MOST = Decimal(10) ** 12
"""USD a price is at most: what is multiplied with usage and added up has to stay a number."""


@dataclass(frozen=True)
class Money:
    """An exact amount of US dollars."""

    usd: Decimal

    def __add__(self, other: Money) -> Money:
        return Money(self.usd + other.usd)

    def __str__(self) -> str:
        return f"${self.usd:.6f}" if self.usd < 1 else f"${self.usd:.2f}"

    def as_dict(self) -> dict[str, str]:
        """JSON-ready; the amount is text so that no digit is lost."""
        return {"amount": format(self.usd, "f"), "currency": "USD"}


@dataclass(frozen=True)
class Price:
    """The prices of one model, in USD; None where the file says nothing.

    Attributes:
        input, output, cache_read: per token.
        second: per second of a request.
        machine_hour: per hour of the machine that serves the model.
        source: where the numbers come from.
    """

    input: Decimal | None = None
    output: Decimal | None = None
    cache_read: Decimal | None = None
    second: Decimal | None = None
    machine_hour: Decimal | None = None
    source: str | None = None


Prices = Mapping[str, Price]


def load_prices(path: Path | None = None) -> dict[str, Price]:
    """The packaged prices, overridden and extended by those of `path`.

    Raises:
        BadInput: the file is missing or malformed; names entry and field.
    """
    prices = _read(PACKAGED)
    if path is not None:
        prices.update(_read(path))
    return prices


def cost(usage: Usage, seconds: float | None, model: str, prices: Prices) -> Money | None:
    """The price of one answer; None when the model has no price or a number that the price needs is not known.

    Args:
        usage: tokens as the engine counted them. Prompt tokens include cached ones, as in OpenAI's usage; without a
            cache price, or without a count, all prompt tokens are charged in full.
        seconds: of the engine's time this answer took: wall time where requests run alone, else a share of it.
        model: the id to look up, exactly.
    """
    price = prices.get(model)
    if price is None:
        return None
    if price.input is not None or price.output is not None:
        return _token_cost(usage, price)
    if seconds is None:
        return None
    if price.second is not None:
        return Money(price.second * _decimal(seconds))
    if price.machine_hour is not None:
        return Money(price.machine_hour * _decimal(seconds) / SECONDS_PER_HOUR)
    return None


def require_cost(usage: Usage, seconds: float | None, model: str, prices: Prices) -> Money:
    """As `cost`, for those who cannot go on without it.

    Raises:
        Unknown: the price, or a number it needs, is not known.
    """
    money = cost(usage, seconds, model, prices)
    if money is None:
        what = "has no price" if model not in prices else "has a price, but the usage it needs was not reported"
        raise Unknown(
            f"model {model!r} {what}",
            fix="Give a price file with an entry of that name (litellm's keys, or machine_cost_per_hour)",
        )
    return money


def _token_cost(usage: Usage, price: Price) -> Money | None:
    if price.input is None or price.output is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    cached = min(usage.cached_tokens or 0, usage.prompt_tokens) if price.cache_read is not None else 0
    total = price.input * (usage.prompt_tokens - cached) + price.output * usage.completion_tokens
    return Money(total + (price.cache_read or 0) * cached)


def _decimal(seconds: float) -> Decimal:
    return Decimal(repr(float(seconds)))


def _exact(text: str) -> Decimal | str:
    """A number of JSON as it is written; its text where no Decimal holds it, for `_entry` to refuse by name."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def _read(path: Path) -> dict[str, Price]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_float=_exact, parse_int=_exact)
    except FileNotFoundError:
        raise BadInput("there is no such price file", where=str(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"not readable as JSON ({error})", where=str(path)) from None
    if not isinstance(data, dict):
        raise BadInput("a JSON object of entries by model id is expected", where=str(path))
    # litellm's own file opens with an entry that documents the keys.
    return {name: _entry(path, name, entry) for name, entry in data.items() if name != "sample_spec"}


def _entry(path: Path, name: str, entry: Any) -> Price:
    if not isinstance(entry, dict):
        raise BadInput("a JSON object is expected", where=f"{path}: {name}")

    def number(key: str) -> Decimal | None:
        value = entry.get(key)
        if value is None:
            return None
        try:
            amount = Decimal(value) if isinstance(value, (Decimal, str)) else None
        except InvalidOperation:
            amount = None
        if amount is None or not amount.is_finite() or not 0 <= amount <= MOST:
            raise BadInput(
                f"{value!s} is not a price", where=f"{path}: {name}: {key}", fix="Write a number of USD, 0 or more"
            )
        return amount

    seconds = number("cost_per_second"), number("input_cost_per_second")
    return Price(
        input=number("input_cost_per_token"),
        output=number("output_cost_per_token"),
        cache_read=number("cache_read_input_token_cost"),
        second=seconds[0] if seconds[0] is not None else seconds[1],
        machine_hour=number("machine_cost_per_hour"),
        source=str(entry["source"]) if entry.get("source") else None,
    )
