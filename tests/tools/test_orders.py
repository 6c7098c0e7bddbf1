"""Orders and stock: what is taken comes from the shelf, what is cancelled goes back, and nothing else changes."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.tools import ToolFailure, Toolset
from trimtab.tools.builtin.orders import make_orders, order_tools, read_orders
from trimtab.tools.builtin.state import seed, snapshot

SUGGESTION = re.compile(r"(?P<what>.+); did you mean (?P<right>.+)\?")
ORDERS: list[dict[str, Any]] = [
    {"order": 205, "customer": "Bob", "item": "lamp", "quantity": 1, "status": "shipped"},
    {"order": 1203, "customer": "Ana Baker", "item": "lamp", "quantity": 2, "status": "open"},
    {"order": 1204, "customer": "Ana Baker", "item": "green chair", "quantity": 1, "status": "refunded"},
]
STOCK: list[dict[str, Any]] = [
    {"item": "green chair", "stock": 0, "price": 49},
    {"item": "lamp", "stock": 5, "price": 12.5},
]


class Shop:
    """The tools on a database of their own, called by name."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.tools = Toolset(order_tools(database))

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        return self.tools[name].function(**arguments)

    def stock(self, item: str) -> int:
        return int(self("check_stock", item=item)["stock"])


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    make_orders(tmp_path / "office.db", ORDERS, STOCK)
    return Shop(tmp_path / "office.db")


def test_seven_tools(shop: Shop) -> None:
    names = "list_orders order_status check_stock place_order cancel_order refund_order restock".split()
    assert list(shop.tools) == names
    assert [tool.name for tool in shop.tools.values() if tool.destructive] == ["cancel_order", "refund_order"]


def test_what_they_answer(shop: Shop) -> None:
    orders = ["1203: 2 lamp, open", "1204: 1 green chair, refunded"]
    assert shop("list_orders", customer="ana  baker") == {"orders": orders}
    assert shop("list_orders", customer="Zoe") == {"orders": []}
    found = {"order": 205, "item": "lamp", "quantity": 1, "customer": "Bob", "status": "shipped"}
    assert shop("order_status", order=205) == found
    assert shop("check_stock", item="Green  Chair") == {"item": "green chair", "stock": 0, "price": 49}
    assert shop("check_stock", item="lamp") == {"item": "lamp", "stock": 5, "price": 12.5}
    assert read_orders(shop.database) == {"orders": ORDERS, "stock": STOCK}


def test_an_order_and_its_end(shop: Shop) -> None:
    assert shop("place_order", item="Lamp", quantity=4, customer="Zoe") == {
        "order": 1205,
        "item": "lamp",
        "quantity": 4,
    }
    assert shop.stock("lamp") == 1
    with pytest.raises(ToolFailure, match="only 1 lamp in stock"):
        shop("place_order", item="lamp", quantity=2, customer="Zoe")
    assert shop("cancel_order", order=1205) == {"cancelled": 1205}
    assert shop.stock("lamp") == 5
    with pytest.raises(ToolFailure, match="order 1205 is cancelled, not open"):
        shop("cancel_order", order=1205)
    with pytest.raises(ToolFailure, match="order 205 is shipped, not open"):
        shop("cancel_order", order=205)
    assert shop("refund_order", order=1205) == {"refunded": 1205}
    with pytest.raises(ToolFailure, match="order 1205 is already refunded"):
        shop("refund_order", order=1205)
    assert shop("order_status", order=1205)["status"] == "refunded"
    assert shop.stock("lamp") == 5
    assert shop("restock", item="lamp", quantity=7) == {"item": "lamp", "stock": 12}


def test_the_first_order(tmp_path: Path) -> None:
    make_orders(tmp_path / "o.db", [], STOCK)
    assert Shop(tmp_path / "o.db")("place_order", item="lamp", quantity=1, customer="A")["order"] == 1001


@pytest.mark.parametrize(
    ("name", "arguments", "wrong", "right"),
    [
        ("check_stock", {"item": "lmap"}, "lmap", "lamp"),
        ("restock", {"item": "gren chair", "quantity": 1}, "gren chair", "green chair"),
        ("place_order", {"item": "laamp", "quantity": 1, "customer": "Bob"}, "laamp", "lamp"),
        ("list_orders", {"customer": "Ana Bker"}, "Ana Bker", "Ana Baker"),
        ("list_orders", {"customer": "baker"}, "baker", "Ana Baker"),
        ("restock", {"item": "green", "quantity": 1}, "green", "green chair"),
    ],
)
def test_a_slip_of_the_pen_is_named(shop: Shop, name: str, arguments: dict[str, Any], wrong: str, right: str) -> None:
    before = read_orders(shop.database)
    with pytest.raises(ToolFailure) as error:
        shop(name, **arguments)
    hint = SUGGESTION.fullmatch(error.value.what)
    assert hint is not None
    assert hint["what"].endswith(wrong)
    assert hint["right"] == right
    assert read_orders(shop.database) == before


@pytest.mark.parametrize("number", [0, -1, 7, 10**9 + 1, 2**63, 10**40])
async def test_orders_that_are_not_there(shop: Shop, number: int) -> None:
    for name in ("order_status", "cancel_order", "refund_order"):
        result = await shop.tools[name].call({"order": number})
        assert not result.ok
        assert "order" in (result.error or "")
    assert read_orders(shop.database) == {"orders": ORDERS, "stock": STOCK}


async def test_bad_arguments_change_nothing(shop: Shop) -> None:
    order = {"item": "lamp", "quantity": 1, "customer": "Zoe"}
    for wrong in (
        {"quantity": 0},
        {"quantity": -2},
        {"quantity": 1.5},
        {"quantity": 10**30},
        {"quantity": "2"},
        {"customer": " "},
        {"customer": "\ud800"},
        {"customer": "x" * 501},
        {"item": ""},
        {"item": "lamp'; DROP TABLE orders; --"},
        {"item": "%"},
        {"item": "\0"},
        {"item": "\ud800"},
    ):
        assert not (await shop.tools["place_order"].call({**order, **wrong})).ok, wrong
    for quantity in (0, -1, 10**9):
        assert not (await shop.tools["restock"].call({"item": "lamp", "quantity": quantity})).ok
    assert read_orders(shop.database) == {"orders": ORDERS, "stock": STOCK}


def test_a_long_list_is_cut(shop: Shop) -> None:
    make_orders(shop.database, [{**ORDERS[0], "order": number} for number in range(100, 130)], STOCK)
    found = shop("list_orders", customer="bob")
    assert len(found["orders"]) == 10
    assert found["orders"][-1].startswith("129:")
    assert found["earlier"] == 20


def test_many_at_once_never_oversell(shop: Shop) -> None:
    placed: list[int] = []

    def order() -> None:
        with suppress(ToolFailure):
            placed.append(shop("place_order", item="lamp", quantity=1, customer="Zoe")["order"])

    threads = [threading.Thread(target=order) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(placed) == [1205, 1206, 1207, 1208, 1209]
    assert shop.stock("lamp") == 0


@pytest.mark.parametrize(
    "state",
    [
        {"orders": [{**ORDERS[0], "status": "lost"}]},
        {"orders": [{**ORDERS[0], "order": 0}]},
        {"orders": [{**ORDERS[0], "order": True}]},
        {"orders": [{**ORDERS[0], "quantity": 1.5}]},
        {"orders": [{**ORDERS[0], "customer": ""}]},
        {"orders": [{**ORDERS[0], "more": 1}]},
        {"orders": [ORDERS[0], ORDERS[0]]},
        {"orders": ["lamp"]},
        {"stock": [{"item": "lamp", "stock": -1, "price": 1}]},
        {"stock": [{"item": "lamp", "stock": 1, "price": "1"}]},
        {"stock": [{"item": "lamp", "stock": 1, "price": float("nan")}]},
        {"stock": [{"item": "lamp", "stock": 1}]},
        {"stock": [STOCK[0], {**STOCK[0], "item": "GREEN chair"}]},
    ],
)
def test_states_that_are_none(tmp_path: Path, state: dict[str, Any]) -> None:
    seed(tmp_path, {"orders": ORDERS, "stock": STOCK})
    with pytest.raises(BadInput, match=r"[a-z]"):
        seed(tmp_path, state)
    now = snapshot(tmp_path)
    assert (now["orders"], now["stock"]) == (ORDERS, STOCK)
    seed(tmp_path, {})
    now = snapshot(tmp_path)
    assert (now["orders"], now["stock"]) == ([], [])


steps = st.tuples(st.sampled_from(("place", "cancel", "refund", "restock")), st.integers(1, 8))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=12))
def test_the_books_balance(tmp_path: Path, taken: list[tuple[str, int]]) -> None:
    database = tmp_path / "o.db"
    make_orders(database, [], [{"item": "lamp", "stock": 10, "price": 1}])
    shop, status, quantities, stock, number = Shop(database), {}, {}, 10, 1001
    for step, n in taken:
        order = 1000 + n
        if step == "place" and n <= stock:
            assert shop("place_order", item="lamp", quantity=n, customer="Bob")["order"] == number
            status[number], quantities[number], stock, number = "open", n, stock - n, number + 1
        elif step == "restock":
            shop("restock", item="lamp", quantity=n)
            stock += n
        elif step == "cancel" and status.get(order) == "open":
            shop("cancel_order", order=order)
            status[order], stock = "cancelled", stock + quantities[order]
        elif step == "refund" and status.get(order, "refunded") != "refunded":
            shop("refund_order", order=order)
            status[order] = "refunded"
        else:
            arguments = {"item": "lamp", "quantity": n, "customer": "Bob"} if step == "place" else {"order": order}
            with pytest.raises(ToolFailure):
                shop(f"{step}_order", **arguments)
        assert shop.stock("lamp") == stock
    assert {one["order"]: one["status"] for one in read_orders(database)["orders"]} == status
