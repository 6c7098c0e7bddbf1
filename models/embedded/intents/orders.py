"""The family `orders`: what customers ordered, and what there is in stock."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ..words import person, word
from .common import Facts, Intent, Prepare, Recorder, Run, Script, Slots, failed, nothing, with_error

STATUSES = ("open", "open", "shipped", "shipped", "cancelled", "refunded")


def _item(rng: random.Random) -> str:
    return word(rng) if rng.random() < 0.75 else f"{word(rng)} {word(rng)}"


def _price(rng: random.Random) -> int | float:
    size = 10 ** rng.choice((1, 2, 2, 3))
    return rng.randint(1, size) if rng.random() < 0.5 else round(rng.uniform(0.1, size), rng.choice((1, 2, 2)))


def _quantity(rng: random.Random) -> int:
    return rng.randint(1, rng.choice((5, 12, 60)))


def _number(rng: random.Random) -> int:
    return rng.randint(100, 999) if rng.random() < 0.35 else rng.randint(1000, 9999)


def _new(known: set[str], draw: Callable[[], str]) -> str:
    """A text that is not `known` yet, whatever the case."""
    while True:
        name = draw()
        if name.casefold() not in known:
            known.add(name.casefold())
            return name


def _world(
    rng: random.Random,
    run: Run,
    *,
    item: str | None = None,
    stock: int | None = None,
    absent: tuple[str, ...] = (),
    orders: tuple[dict[str, Any], ...] = (),
) -> None:
    """Make the world's stock and orders.

    Args:
        item: an item that is in stock.
        stock: how many there are of it.
        absent: items that are not in stock, customers that have no orders.
        orders: orders there are, given in part; others are of other customers.
    """
    known = {one.casefold() for one in absent} | ({item.casefold()} if item else set())
    known |= {str(value).casefold() for order in orders for value in order.values()}
    items: list[dict[str, Any]] = (
        [] if item is None else [{"item": item, "stock": rng.randint(0, 80) if stock is None else stock}]
    )
    items += [
        {"item": _new(known, lambda: _item(rng)), "stock": rng.randint(0, 80)} for _ in range(rng.choice((1, 1, 2, 3)))
    ]
    taken = {order["order"] for order in orders}
    made = []
    others: list[dict[str, Any]] = [{} for _ in range(rng.choice((0, 1, 1, 2)))]
    for given in (*orders, *others):
        number = next(n for n in iter(lambda: _number(rng), None) if n not in taken)
        if "order" not in given:
            taken.add(number)
        drawn = {
            "order": number,
            "customer": _new(known, lambda: person(rng)),
            "item": rng.choice(items)["item"],
            "quantity": _quantity(rng),
            "status": rng.choice(STATUSES),
        }
        made.append({**drawn, **given})
    for one in items:
        one["price"] = _price(rng)
    rng.shuffle(items)
    run("make_orders", {"orders": made, "stock": items})


def _this_order(*statuses: str, sure: bool = False) -> Prepare:
    """The order of the slots, in one of these states (often in the first); missing in one world of ten."""

    def prepare(rng: random.Random, s: Slots, run: Run) -> None:
        status = statuses[0] if rng.random() < 0.75 else rng.choice(statuses)
        there = sure or rng.random() < 0.9
        order = {"order": s["order"], "status": status, **({"customer": s["customer"]} if "customer" in s else {})}
        _world(rng, run, orders=(order,) if there else ())

    return prepare


def _this_item(sure: bool = False) -> Prepare:
    """The item of the slots; missing in one world of ten."""

    def prepare(rng: random.Random, s: Slots, run: Run) -> None:
        there = sure or rng.random() < 0.9
        _world(rng, run, item=s["item"] if there else None, absent=(s["item"],))

    return prepare


def _enough(share: float, *, sure: bool = False) -> Prepare:
    """The item of the slots, in `share` of the worlds with enough of it; missing in one world of ten."""

    def prepare(rng: random.Random, s: Slots, run: Run) -> None:
        if not sure and rng.random() < 0.1:
            _world(rng, run, absent=(s["item"], s["customer"]))
        else:
            wanted: int = s["quantity"]
            stock = wanted + rng.randint(0, 60) if rng.random() < share else rng.randint(0, wanted - 1)
            _world(rng, run, item=s["item"], stock=stock, absent=(s["customer"],))

    return prepare


def _some_orders(rng: random.Random, s: Slots, run: Run) -> None:
    orders: list[dict[str, Any]] = []
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 3))):
        number = next(n for n in iter(lambda: _number(rng), None) if n not in [o["order"] for o in orders])
        orders.append({"order": number, "customer": s["customer"]})
    _world(rng, run, orders=tuple(orders), absent=(s["customer"],))


def _order(rng: random.Random) -> Slots:
    return {"order": _number(rng)}


def _customer(rng: random.Random) -> Slots:
    return {"customer": person(rng)}


def _stock(rng: random.Random) -> Slots:
    return {"item": _item(rng)}


def _amount(rng: random.Random) -> Slots:
    return {"item": _item(rng), "quantity": _quantity(rng)}


def _purchase(rng: random.Random) -> Slots:
    return {"item": _item(rng), "quantity": _quantity(rng), "customer": person(rng)}


def _order_status(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        number, status = x["order"], x["status"]
        return Facts(
            status,
            f"Order {number} is {status}",
            f"Status: {status}",
            f"Der Status der Bestellung {number} ist {status}",
            (status,),
        )

    return with_error(r.one("order_status", order=s["order"]), facts)


def _in_stock(x: dict[str, Any]) -> Facts:
    item, stock = x["item"], x["stock"]
    return Facts(
        f"{stock} {item} in stock",
        f"The stock of {item} is {stock}",
        f"{stock} {item} auf Lager",
        f"Der Bestand von {item} ist {stock}",
        (str(stock),),
    )


def _check_stock(s: Slots, r: Recorder) -> Facts:
    return with_error(r.one("check_stock", item=s["item"]), _in_stock)


def _item_price(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        item, price = x["item"], str(x["price"])
        return Facts(price, f"The price of {item} is {price}", price, f"Der Preis von {item} ist {price}", (price,))

    return with_error(r.one("check_stock", item=s["item"]), facts)


def _list_orders(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        customer, orders = r.calls[-1][1]["customer"], "; ".join(x["orders"])
        if not orders:
            return _none(customer)
        return Facts(orders, f"{customer} has {orders}", orders, f"{customer} hat {orders}", tuple(x["orders"]))

    return with_error(r.one("list_orders", customer=s["customer"]), facts)


def _none(customer: str) -> Facts:
    none = nothing("orders", "open orders")
    return Facts("0 orders", f"{customer} has 0 orders", "0 Bestellungen", f"{customer} hat 0 Bestellungen", (none,))


def _placed(x: dict[str, Any]) -> Facts:
    number, what = str(x["order"]), f"{x['quantity']} {x['item']}"
    return Facts(
        f"Order {number}: {what}",
        f"Order {number} for {what} is placed",
        f"Bestellung {number}: {what}",
        f"Bestellung {number} über {what} ist aufgegeben",
        (number, what),
    )


def _place_order(s: Slots, r: Recorder) -> Facts:
    result = r.one("place_order", item=s["item"], quantity=s["quantity"], customer=s["customer"])
    return with_error(result, _placed)


def _cancelled(x: dict[str, Any]) -> Facts:
    number = x["cancelled"]
    return Facts(
        f"Cancelled order {number}",
        f"Order {number} is cancelled",
        f"Bestellung {number} storniert",
        f"Die Bestellung {number} ist storniert",
        (str(number),),
    )


def _refunded(x: dict[str, Any]) -> Facts:
    number = x["refunded"]
    return Facts(
        f"Refunded order {number}",
        f"The money for order {number} is paid back",
        f"Bestellung {number} erstattet",
        f"Das Geld für Bestellung {number} ist erstattet",
        (str(number),),
    )


def _by_number(tool: str, facts: Callable[[dict[str, Any]], Facts]) -> Script:
    def script(s: Slots, r: Recorder) -> Facts:
        return with_error(r.one(tool, order=s["order"]), facts)

    return script


def _restock(s: Slots, r: Recorder) -> Facts:
    return with_error(r.one("restock", item=s["item"], quantity=s["quantity"]), _in_stock)


def _order_if_stock(s: Slots, r: Recorder) -> Facts:
    found = r.one("check_stock", item=s["item"])
    if "error" in found:
        return failed(found)
    item, stock = found["item"], found["stock"]
    if stock < s["quantity"]:
        return Facts(
            f"Only {stock} {item} in stock",
            f"I ordered nothing: there are only {stock} {item} in stock",
            f"Nur {stock} {item} auf Lager",
            f"Ich habe nichts bestellt: nur {stock} {item} sind auf Lager",
            (f"{stock} {item}",),
        )
    return with_error(r.one("place_order", item=item, quantity=s["quantity"], customer=s["customer"]), _placed)


def _refund_customer(s: Slots, r: Recorder) -> Facts:
    listed = r.one("list_orders", customer=s["customer"])
    if "error" in listed:
        return failed(listed)
    if not listed["orders"]:
        return _none(s["customer"])
    number = int(listed["orders"][0].split(":")[0])
    return with_error(r.one("refund_order", order=number), _refunded)


def _cancel_and_refund(s: Slots, r: Recorder) -> Facts:
    cancelled = r.one("cancel_order", order=s["order"])
    if "error" in cancelled:
        return failed(cancelled)

    def facts(x: dict[str, Any]) -> Facts:
        number = x["refunded"]
        return Facts(
            f"Cancelled and refunded order {number}",
            f"Order {number} is cancelled and the money is paid back",
            f"Bestellung {number} storniert und erstattet",
            f"Die Bestellung {number} ist storniert und das Geld erstattet",
            (str(number),),
        )

    return with_error(r.one("refund_order", order=s["order"]), facts)


def _order_cost(s: Slots, r: Recorder) -> Facts:
    found = r.one("check_stock", item=s["item"])
    if "error" in found:
        return failed(found)

    def facts(x: dict[str, Any]) -> Facts:
        cost, what = str(x["result"]), f"{s['quantity']} {found['item']}"
        return Facts(cost, f"The price of {what} is {cost}", cost, f"Der Preis von {what} ist {cost}", (cost,))

    return with_error(r.one("calculate", expression=f"{found['price']} * {s['quantity']}"), facts)


def _refill(s: Slots, r: Recorder) -> Facts:
    found = r.one("check_stock", item=s["item"])
    if "error" in found:
        return failed(found)

    def facts(x: dict[str, Any]) -> Facts:
        item, before, after = x["item"], str(found["stock"]), str(x["stock"])
        return Facts(
            f"{item}: {before}, now {after}",
            f"The stock of {item} was {before} and is now {after}",
            f"{item}: {before}, jetzt {after}",
            f"Der Bestand von {item} war {before} und ist jetzt {after}",
            (before, after),
        )

    return with_error(r.one("restock", item=found["item"], quantity=s["quantity"]), facts)


def _look_at_order(s: Slots) -> tuple[str, dict[str, Any]]:
    return "order_status", {"order": s["order"]}


def _look_at_stock(s: Slots) -> tuple[str, dict[str, Any]]:
    return "check_stock", {"item": s["item"]}


_CANCEL = ("cancel order {order}?", "Bestellung {order} stornieren?")
_REFUND = ("refund order {order}?", "Bestellung {order} erstatten?")
INTENTS: dict[str, Intent] = {
    "order_status": Intent(_order, _order_status, _this_order("open", "shipped", "shipped", "cancelled", "refunded")),
    "check_stock": Intent(_stock, _check_stock, _this_item(), typo="item"),
    "item_price": Intent(_stock, _item_price, _this_item(), typo="item"),
    "list_orders": Intent(_customer, _list_orders, _some_orders, typo="customer"),
    "place_order": Intent(_purchase, _place_order, _enough(0.85), typo="item"),
    "cancel_order": Intent(
        _order,
        _by_number("cancel_order", _cancelled),
        _this_order("open", "shipped", "cancelled", "open"),
        confirm=_CANCEL,
        verify=_look_at_order,
    ),
    "refund_order": Intent(
        _order,
        _by_number("refund_order", _refunded),
        _this_order("shipped", "cancelled", "open", "refunded"),
        confirm=_REFUND,
        verify=_look_at_order,
    ),
    "restock": Intent(_amount, _restock, _this_item(), verify=_look_at_stock),
    "order_if_stock": Intent(_purchase, _order_if_stock, _enough(0.6), group="chain", typo="item"),
    "refund_customer": Intent(
        lambda rng: {"customer": person(rng), "order": _number(rng)},
        _refund_customer,
        _this_order("shipped", "cancelled", "open"),
        group="chain",
        confirm=("refund the order of {customer}?", "die Bestellung von {customer} erstatten?"),
        verify=_look_at_order,
    ),
    "cancel_and_refund": Intent(
        _order,
        _cancel_and_refund,
        _this_order("open", "open", "open", "shipped"),
        group="chain",
        confirm=("cancel and refund order {order}?", "Bestellung {order} stornieren und erstatten?"),
        verify=_look_at_order,
    ),
    "order_cost": Intent(_amount, _order_cost, _this_item(), group="chain", typo="item"),
    "refill": Intent(_amount, _refill, _this_item(), group="chain", verify=_look_at_stock),
    "missing.quantity": Intent(
        _purchase,
        _place_order,
        _enough(0.9, sure=True),
        group="missing",
        question=(
            "How many {item} should I order for {customer}?",
            "Wie viele {item} soll ich für {customer} bestellen?",
            "quantity",
        ),
    ),
    "missing.order": Intent(
        _order,
        _by_number("cancel_order", _cancelled),
        _this_order("open", sure=True),
        group="missing",
        question=("Which order should I cancel?", "Welche Bestellung soll ich stornieren?", "order"),
        verify=_look_at_order,
    ),
}
