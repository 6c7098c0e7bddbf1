"""Orders and the stock they are taken from, in the office database."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import BadInput, ToolFailure
from ..tool import Tool, tool
from .database import connected, key, meant, not_found, text
from .numbers import finite, tidy

STATUSES = ("open", "shipped", "cancelled", "refunded")
MOST = 1_000_000_000  # of an item, and the highest order number
MOST_SHOWN = 10  # orders in one list
FIRST = 1001  # the first order's number where there is none


def order_tools(database: Path) -> list[Tool]:
    """The seven tools of orders and stock, on `database`."""

    def list_orders(customer: str) -> dict[str, Any]:
        """List a customer's orders."""
        wanted = key(customer, "customer")
        with connected(database) as db:
            query = "SELECT number, quantity, item, status FROM orders WHERE customer_key = ? ORDER BY number"
            rows = db.execute(query, (wanted,)).fetchall()
            known = [] if rows else [row[0] for row in db.execute("SELECT DISTINCT customer FROM orders")]
        if meant(customer, known) is not None:
            raise not_found("no orders of", customer, known)
        orders = [f"{number}: {quantity} {item}, {status}" for number, quantity, item, status in rows]
        shown: dict[str, Any] = {"orders": orders[-MOST_SHOWN:]}
        return {**shown, "earlier": len(orders) - MOST_SHOWN} if len(orders) > MOST_SHOWN else shown

    def order_status(order: int) -> dict[str, Any]:
        """Look up an order."""
        with connected(database) as db:
            return _order(db, order)

    def check_stock(item: str) -> dict[str, Any]:
        """Look up an item's stock and price."""
        with connected(database) as db:
            name, stock, price = _item(db, item)
        return {"item": name, "stock": stock, "price": tidy(price)}

    def place_order(item: str, quantity: int, customer: str) -> dict[str, Any]:
        """Order an item for a customer."""
        buyer = (text(customer), key(customer, "customer"))
        _amount(quantity)
        with connected(database, write=True) as db:
            name, stock, _ = _item(db, item)
            if quantity > stock:
                raise ToolFailure(f"only {stock} {name} in stock")
            number = db.execute("SELECT coalesce(max(number) + 1, ?) FROM orders", (FIRST,)).fetchone()[0]
            row = (number, *buyer, name, quantity)
            db.execute("UPDATE stock SET stock = stock - ? WHERE key = ?", (quantity, key(name, "item")))
            db.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?, 'open')", row)
        return {"order": number, "item": name, "quantity": quantity}

    def cancel_order(order: int) -> dict[str, Any]:
        """Cancel an open order."""
        with connected(database, write=True) as db:
            found = _order(db, order)
            if found["status"] != "open":
                raise ToolFailure(f"order {order} is {found['status']}, not open")
            db.execute("UPDATE orders SET status = 'cancelled' WHERE number = ?", (order,))
            back = (found["quantity"], key(found["item"], "item"))
            db.execute("UPDATE stock SET stock = stock + ? WHERE key = ?", back)
        return {"cancelled": order}

    def refund_order(order: int) -> dict[str, Any]:
        """Give the money for an order back."""
        with connected(database, write=True) as db:
            if _order(db, order)["status"] == "refunded":
                raise ToolFailure(f"order {order} is already refunded")
            db.execute("UPDATE orders SET status = 'refunded' WHERE number = ?", (order,))
        return {"refunded": order}

    def restock(item: str, quantity: int) -> dict[str, Any]:
        """Add to an item's stock."""
        _amount(quantity)
        with connected(database, write=True) as db:
            name, stock, _ = _item(db, item)
            if stock + quantity > MOST:
                raise ToolFailure(f"there is no room for {quantity} more")
            db.execute("UPDATE stock SET stock = stock + ? WHERE key = ?", (quantity, key(name, "item")))
        return {"item": name, "stock": stock + quantity}

    return [
        tool(list_orders),
        tool(order_status),
        tool(check_stock),
        tool(changes=True)(place_order),
        tool(destructive=True)(cancel_order),
        tool(destructive=True)(refund_order),
        tool(changes=True)(restock),
    ]


def make_orders(database: Path, orders: Sequence[Any] = (), stock: Sequence[Any] = ()) -> None:
    """Make `database` hold exactly these orders and this stock, in the form of `check_orders`.

    Raises:
        BadInput: an order or an item that is none; nothing is changed then.
        ToolFailure: the file cannot be written.
    """
    rows, items = check_orders(orders, stock)
    if not rows and not items and not database.exists():
        return
    with connected(database, write=True) as db:
        db.execute("DELETE FROM orders")
        db.execute("DELETE FROM stock")
        db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.executemany("INSERT INTO stock VALUES (?, ?, ?, ?)", items)


def read_orders(database: Path) -> dict[str, list[dict[str, Any]]]:
    """`orders` by number and `stock` by item, as `make_orders` takes them."""
    with connected(database) as db:
        orders = db.execute("SELECT number, customer, item, quantity, status FROM orders ORDER BY number").fetchall()
        stock = db.execute("SELECT item, stock, price FROM stock ORDER BY item").fetchall()
    return {
        "orders": [dict(zip(("order", "customer", "item", "quantity", "status"), row, strict=True)) for row in orders],
        "stock": [{"item": item, "stock": count, "price": tidy(price)} for item, count, price in stock],
    }


def check_orders(orders: Any, stock: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Orders and stock as they are stored.

    Args:
        orders: [{"order": 1203, "customer", "item", "quantity", "status": one of `STATUSES`}].
        stock: [{"item", "stock", "price"}].

    Raises:
        BadInput: a field that is missing, unknown or wrong, or the same order or item twice.
    """
    rows: list[tuple[Any, ...]] = []
    items: list[tuple[Any, ...]] = []
    for i, one in enumerate(orders):
        where = f"state: orders[{i}]"
        number, customer, item, quantity, status = _fields(
            one, ("order", "customer", "item", "quantity", "status"), where
        )
        if status not in STATUSES:
            raise BadInput(f"status is {status!r:.60}", where=where, fix=f"One of {', '.join(STATUSES)}.")
        counts = (_whole(number, 1, f"{where}: order"), _whole(quantity, 1, f"{where}: quantity"))
        rows.append((counts[0], *reversed(_keyed(customer, where)), _keyed(item, where)[1], counts[1], status))
    for i, one in enumerate(stock):
        where = f"state: stock[{i}]"
        item, count, price = _fields(one, ("item", "stock", "price"), where)
        if isinstance(price, bool) or not isinstance(price, int | float) or not finite(price) or not 0 <= price <= MOST:
            raise BadInput(f"price is {price!r:.60}", where=where, fix="Give a number, 0 or more.")
        items.append((*_keyed(item, where), _whole(count, 0, f"{where}: stock"), float(price)))
    for name, firsts in (("orders", [row[0] for row in rows]), ("stock", [row[0] for row in items])):
        twice = next((one for i, one in enumerate(firsts) if one in firsts[:i]), None)
        if twice is not None:
            raise BadInput(f"{twice!r} stands there twice", where=f"state: {name}")
    return rows, items


def _order(db: sqlite3.Connection, number: int) -> dict[str, Any]:
    row = None
    if 0 < number <= MOST:
        query = "SELECT number, item, quantity, customer, status FROM orders WHERE number = ?"
        row = db.execute(query, (number,)).fetchone()
    if row is None:
        raise ToolFailure(f"no order {number}" if abs(number) <= MOST else "no such order")
    return dict(zip(("order", "item", "quantity", "customer", "status"), row, strict=True))


def _item(db: sqlite3.Connection, item: str) -> tuple[str, int, float]:
    row = db.execute("SELECT item, stock, price FROM stock WHERE key = ?", (key(item, "item"),)).fetchone()
    if row is None:
        raise not_found("no item named", item, [one[0] for one in db.execute("SELECT item FROM stock ORDER BY item")])
    return row[0], row[1], row[2]


def _amount(quantity: int) -> None:
    if not 1 <= quantity <= MOST:
        raise ToolFailure(f"the quantity must be 1 to {MOST}")


def _fields(one: Any, names: tuple[str, ...], where: str) -> list[Any]:
    if not isinstance(one, Mapping) or set(one) != set(names):
        raise BadInput(f"is {one!r:.80}", where=where, fix=f"Give an object with {', '.join(names)}.")
    return [one[name] for name in names]


def _whole(value: Any, least: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise BadInput(f"is {value!r:.60}", where=where, fix=f"Give a whole number, {least} to {MOST}.")
    return value


def _keyed(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, str):
        raise BadInput(f"{value!r:.60} is not text", where=where)
    try:
        return key(value, "text"), text(value)
    except ToolFailure as error:
        raise BadInput(error.what, where=where) from None
