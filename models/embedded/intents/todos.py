"""The to-do list: what is asked of it, and what is right to do."""

from __future__ import annotations

import random
from typing import Any

from ..words import email, person, phone, word
from .common import Facts, Intent, Recorder, Run, Slots, failed, nothing, with_error


def item(rng: random.Random) -> str:
    """Something to do, or to buy."""
    forms = (
        "{w}",
        "{w}",
        "buy {w}",
        "call {p}",
        "fix the {w}",
        "pay the {w} bill",
        "{w} {w2}",
        "write to {p}",
        "return the {w}",
    )
    return rng.choice(forms).format(p=person(rng), w=word(rng), w2=word(rng))


def added_todo(thing: str) -> Facts:
    """The facts of an item that was added."""
    return Facts(
        f"Added {thing}",
        f"{thing} is on your to-do list",
        f"{thing} hinzugefügt",
        f"{thing} steht auf der Liste",
        (thing,),
    )


def add_todo(s: Slots, r: Recorder) -> Facts:
    """Add the slot `item`."""
    return with_error(r.one("add_todo", item=s["item"]), lambda x: added_todo(x["added"]))


def _item(rng: random.Random) -> Slots:
    return {"item": item(rng)}


def _two_items(rng: random.Random) -> Slots:
    first, second = item(rng), item(rng)
    while second.casefold() == first.casefold():
        second = item(rng)
    return {"item": first, "item2": second}


def _contact(rng: random.Random) -> Slots:
    name = person(rng)
    return {"name": name, "email": email(rng, name), "phone": phone(rng)}


def _empty() -> Facts:
    none = nothing("open items", "items", "tasks", "to-dos", "todos", also=("is empty", "nothing on", "nothing to do"))
    return Facts("0 open items", "Your list has 0 open items", "0 offene Punkte", "Es gibt 0 offene Punkte", (none,))


def _list_todos(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        if not x["todos"]:
            return _empty()
        text = "; ".join(x["todos"])
        return Facts(text, f"Your to-do list has {text}", text, f"Auf der Liste steht {text}", tuple(x["todos"]))

    return with_error(r.one("list_todos"), facts)


def _done(thing: str) -> Facts:
    return Facts(
        f"Done: {thing}",
        f"{thing} is marked as done",
        f"Erledigt: {thing}",
        f"{thing} ist als erledigt markiert",
        (thing,),
    )


def _complete_todo(s: Slots, r: Recorder) -> Facts:
    return with_error(r.one("complete_todo", item=s["item"]), lambda x: _done(x["done"]))


def _delete_todo(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        thing = x["deleted"]
        return Facts(
            f"Deleted {thing}",
            f"{thing} is off your list",
            f"{thing} gelöscht",
            f"{thing} ist von der Liste gelöscht",
            (thing,),
        )

    return with_error(r.one("delete_todo", item=s["item"]), facts)


def _contact_to_todo(s: Slots, r: Recorder) -> Facts:
    found = r.one("find_contact", name=s["name"])
    return failed(found) if "error" in found else add_todo({"item": found["email"]}, r)


def _two_todos(s: Slots, r: Recorder) -> Facts:
    one, two = r.call(("add_todo", {"item": s["item"]}), ("add_todo", {"item": s["item2"]}))
    if "error" in one or "error" in two:
        return failed(one if "error" in one else two)
    both, beide = f"{one['added']} and {two['added']}", f"{one['added']} und {two['added']}"
    return Facts(
        f"Added {both}",
        f"{both} are on your to-do list",
        f"{beide} hinzugefügt",
        f"{beide} stehen auf der Liste",
        (one["added"], two["added"]),
    )


def _replace_todo(s: Slots, r: Recorder) -> Facts:
    gone = r.one("delete_todo", item=s["item"])
    if "error" in gone:
        return failed(gone)
    old = gone["deleted"]

    def facts(x: dict[str, Any]) -> Facts:
        new = x["added"]
        return Facts(
            f"Replaced {old} with {new}",
            f"{new} is on your list instead of {old}",
            f"{old} durch {new} ersetzt",
            f"{new} steht statt {old} auf der Liste",
            (old, new),
        )

    return with_error(r.one("add_todo", item=s["item2"]), facts)


def _finish_first(s: Slots, r: Recorder) -> Facts:
    listed = r.one("list_todos")
    if "error" in listed:
        return failed(listed)
    return _complete_todo({"item": listed["todos"][0]}, r) if listed["todos"] else _empty()


def _done_and_add(s: Slots, r: Recorder) -> Facts:
    done, added = r.call(("complete_todo", {"item": s["item"]}), ("add_todo", {"item": s["item2"]}))
    if "error" in done or "error" in added:
        return failed(done if "error" in done else added)
    old, new = done["done"], added["added"]
    return Facts(
        f"{old} done, {new} added",
        f"{old} is done and {new} is on your list",
        f"{old} erledigt, {new} hinzugefügt",
        f"{old} ist erledigt und {new} steht auf der Liste",
        (old, new),
    )


def _some_todos(rng: random.Random, s: Slots, run: Run) -> None:
    for _ in range(rng.choice((0, 1, 2, 2, 3))):
        run("add_todo", {"item": item(rng)})


def _this_todo(rng: random.Random, s: Slots, run: Run) -> None:
    _some_todos(rng, s, run)
    if rng.random() < 0.9:
        run("add_todo", {"item": s["item"]})


def _surely_this_todo(rng: random.Random, s: Slots, run: Run) -> None:
    _some_todos(rng, s, run)
    run("add_todo", {"item": s["item"]})


def _mostly_some_todos(rng: random.Random, s: Slots, run: Run) -> None:
    if rng.random() < 0.9:
        _some_todos(rng, s, run)
        run("add_todo", {"item": item(rng)})


def _this_contact(rng: random.Random, s: Slots, run: Run) -> None:
    for one in (_contact(rng), _contact(rng)):
        run("add_contact", one)
    if rng.random() < 0.9:
        known = {"name": s["name"], "email": s["email"]}
        run("add_contact", {**known, "phone": s["phone"]} if rng.random() < 0.85 else known)


def _look(s: Slots) -> tuple[str, dict[str, Any]]:
    return "list_todos", {}


def _nothing(rng: random.Random) -> Slots:
    return {}


INTENTS: dict[str, Intent] = {
    "add_todo": Intent(_item, add_todo, verify=_look),
    "list_todos": Intent(_nothing, _list_todos, _some_todos),
    "complete_todo": Intent(_item, _complete_todo, _this_todo, verify=_look, typo="item"),
    "delete_todo": Intent(
        _item,
        _delete_todo,
        _this_todo,
        confirm=("delete {item}?", "{item} löschen?"),
        verify=_look,
        typo="item",
    ),
    "contact_to_todo": Intent(_contact, _contact_to_todo, _this_contact, "chain", verify=_look, typo="name"),
    "two_todos": Intent(_two_items, _two_todos, group="chain", verify=_look),
    "replace_todo": Intent(
        _two_items,
        _replace_todo,
        _this_todo,
        "chain",
        confirm=("delete {item} and add {item2}?", "{item} löschen und {item2} hinzufügen?"),
        verify=_look,
        typo="item",
    ),
    "finish_first": Intent(_nothing, _finish_first, _mostly_some_todos, "chain", verify=_look),
    "done_and_add": Intent(_two_items, _done_and_add, _surely_this_todo, "chain", verify=_look),
    "missing.todo": Intent(
        _item,
        add_todo,
        group="missing",
        question=("What should I add to your list?", "Was soll auf die Liste?", "item"),
        verify=_look,
    ),
    "missing.complete": Intent(
        _item,
        _complete_todo,
        _this_todo,
        "missing",
        question=("Which item is done?", "Welcher Punkt ist erledigt?", "item"),
        verify=_look,
    ),
}
