"""`@tool` and `Tool.call`: schemas, checked arguments, and tools that misbehave in every way."""

from __future__ import annotations

import asyncio
import enum
import json
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel
from trimtab.errors import BadInput, NotFound
from trimtab.tools import Tool, ToolFailure, Toolset, tool


class Place(BaseModel):
    city: str
    floor: int = 0


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


@dataclass
class Point:
    x: int
    day: date


@tool
def book(
    guest: str,
    nights: int,
    price: float,
    place: Place,
    kind: Literal["single", "double"] = "single",
    tags: list[str] | None = None,
    breakfast: bool = True,
) -> dict[str, Any]:
    """Book a room
    in a hotel.

    Longer words that no model needs.

    Args:
        guest: Who
            will sleep there.
        nights (int): How many.

    Returns:
        nights: not a parameter.
    """
    return {"guest": guest, "nights": nights, "price": price, "city": place.city, "tags": tags}


@tool
def echo(value: str) -> str:
    """Say it again."""
    return value


def test_the_schema_says_what_hints_and_docstring_say() -> None:
    assert book.spec() == {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Book a room in a hotel",
            "parameters": {
                "type": "object",
                "properties": {
                    "guest": {"type": "string", "description": "Who will sleep there."},
                    "nights": {"type": "integer", "description": "How many."},
                    "price": {"type": "number"},
                    "place": {"$ref": "#/$defs/Place"},
                    "kind": {"type": "string", "enum": ["single", "double"], "default": "single"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "breakfast": {"type": "boolean", "default": True},
                },
                "required": ["guest", "nights", "price", "place"],
                "additionalProperties": False,
                "$defs": {
                    "Place": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "floor": {"type": "integer", "default": 0}},
                        "required": ["city"],
                        "additionalProperties": False,
                    }
                },
            },
        },
    }


def test_a_property_named_title_stays() -> None:
    @tool
    def rename(title: str, schema: str, model_config: str, self_: int = 1) -> None:
        """Rename it."""

    assert list(rename.parameters["properties"]) == ["title", "schema", "model_config", "self_"]
    assert rename.validate({"title": "a", "schema": "b", "model_config": "c"})["title"] == "a"


def test_equal_looking_defaults_are_kept_apart() -> None:
    def one(x: int = 1) -> None:
        """One."""

    def true(x: int = True) -> None:
        """True."""

    assert tool(one).parameters["properties"]["x"]["default"] is not True
    assert tool(true).parameters["properties"]["x"]["default"] is True


def test_options_and_calling_from_python() -> None:
    @tool(name="shout-it", destructive=True, timeout=3, limit=999)
    def shout(text: str) -> str:
        """Shout."""
        return text.upper()

    assert (shout.name, shout.destructive, shout.timeout, shout.limit) == ("shout-it", True, 3, 999)
    assert shout.changes
    assert shout("a") == shout(text="a") == shout.function(text="a") == "A"


def no_hint(x):  # type: ignore[no-untyped-def]
    """Say."""


def star(*x: int) -> None:
    """Say."""


def stars(**x: int) -> None:
    """Say."""


def positional(x: int, /) -> None:
    """Say."""


def silent(x: int) -> None: ...


def strange(x: threading.Lock) -> None:
    """Say."""


def unknown_type(x: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    """Say."""


def no_such_name(x: date.nope) -> None:  # type: ignore[name-defined]
    """Say."""


def no_expression(x: int) -> None:
    """Say."""


no_expression.__annotations__["x"] = "list["


def other_name(x: Annotated[int, Field(alias="y")]) -> None:
    """Say."""


def endless(x: float = math.inf) -> None:
    """Say."""


def half(x: str = "\ud83d") -> None:
    """Say."""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_such_name, "cannot be read"),
        (no_expression, "cannot be read"),
        (other_name, "'x' has an alias"),
        (endless, "default is not JSON"),
        (half, "default is not JSON"),
        (no_hint, "'x' has no type hint"),
        (star, "has no fixed name"),
        (stars, "has no fixed name"),
        (positional, "has no fixed name"),
        (silent, "no docstring"),
        (strange, "no JSON schema"),
        (unknown_type, "cannot be read"),
        (lambda: None, "is not a tool's name"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(function: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        tool(function)
    assert "tool" in (caught.value.where or "")


@pytest.mark.parametrize(("timeout", "limit"), [(0, 1000), (-1, 1000), (float("nan"), 1000), (1, 10)])
def test_limits_must_make_sense(timeout: float, limit: int) -> None:
    with pytest.raises(BadInput):
        Tool("x", "y", {}, print, timeout=timeout, limit=limit)


GOOD = {"guest": "Ann", "nights": 2, "price": 80, "place": {"city": "Bonn"}}


def test_good_arguments_are_converted_and_nothing_is_added() -> None:
    got = book.validate(json.dumps(GOOD))
    assert got == {"guest": "Ann", "nights": 2, "price": 80.0, "place": Place(city="Bonn")}
    assert isinstance(got["price"], float)
    assert book.validate(GOOD) == got
    assert book.validate({**GOOD, "nights": 2.0, "tags": None}) == got
    assert isinstance(book.validate({**GOOD, "nights": 2.0})["nights"], int)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"nights": "2"}, "argument 'nights' must be a whole number, not \"2\""),
        ({"nights": 2.5}, "argument 'nights' must be a whole number, not 2.5"),
        ({"nights": True}, "argument 'nights' must be a whole number, not true"),
        ({"price": "80"}, "argument 'price' must be a number, not \"80\""),
        ({"guest": 7}, "argument 'guest' must be text, not 7"),
        ({"guest": None}, "argument 'guest' must be text, not null"),
        ({"kind": "triple"}, 'argument \'kind\' must be one of "single", "double", not "triple"'),
        ({"tags": "x"}, "argument 'tags' must be a list, not \"x\""),
        ({"tags": [1]}, "argument 'tags.0' must be a valid string, not 1"),
        ({"place": {}}, "missing argument 'place.city'"),
        ({"breakfast": "yes"}, "argument 'breakfast' must be true or false, not \"yes\""),
        ({"size": 3}, "unknown argument 'size': book takes guest, nights, price, place, kind, tags, breakfast"),
        ({"guest": "x" * 10**5, "nights": "n" * 10**5}, "argument 'nights' must be a whole number, not \"nnn"),
    ],
)
def test_each_wrong_argument_gives_one_clear_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as caught:
        book.validate(json.dumps({**GOOD, **change}))
    assert caught.value.what.startswith(line)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"value": "a"', "arguments are not JSON: Expecting ',' delimiter at character 14"),
        ("{'value': 'a'}", "arguments are not JSON"),
        ("[1, 2]", "arguments must be a JSON object, not [1, 2]"),
        ("false", "arguments must be a JSON object, not false"),
        ('"{}"', "arguments must be a JSON object"),
        ("", "missing argument 'value': echo takes value"),
        ("{}", "missing argument 'value': echo takes value"),
        ('{"value": NaN}', "NaN is not a JSON number"),
        ('{"value": "a", "value": "b"}', "an argument is given twice"),
        ('{"value": "\\ud800"}', "half of a Unicode character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"value": ' + "[" * 150 + "]" * 150 + "}", "nested too deeply"),
        ('{"value": ' + "9" * 5000 + "}", "arguments are not JSON"),
        ('{"value": "' + "x" * 1_000_001 + '"}', "longer than"),
        ('{"value": "a"} trailing', "Extra data"),
    ],
)
async def test_broken_arguments_are_told_and_never_raised(text: str, says: str) -> None:
    result = await echo.call(text)
    assert (result.ok, result.truncated) == (False, False)
    assert says in (result.error or "")
    assert json.loads(result.content) == {"error": result.error}


def one_line(error: BadInput) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.binary().map(str) | json_values.map(json.dumps))
def test_no_text_makes_the_parser_crash(text: str) -> None:
    for one in (book, echo):
        try:
            one.validate(text)
        except BadInput as error:
            one_line(error)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["guest", "nights", "price", "place", "kind", "other"]), json_values))
def test_no_object_makes_the_parser_crash(arguments: dict[str, Any]) -> None:
    try:
        book.validate(arguments)
    except BadInput as error:
        one_line(error)


@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_through_as_it_was(text: str) -> None:
    assert echo.validate(json.dumps({"value": text})) == {"value": text}
    assert echo.validate({"value": text}) == {"value": text}


class Extra(BaseModel):
    number: int = 1


class Order(BaseModel):
    item: str
    extra: Extra | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=False)
    number: int = 1


class Root(RootModel[list[Extra]]):
    pass


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (Order, '{"item": "x", "size": 5}', "unknown argument 'it.size'"),
        (Order, '{"item": "x", "extra": {"number": 1, "size": 5}}', "unknown argument 'it.extra.size'"),
        (Order, '{"item": "x", "extra": {"number": "1"}}', 'must be a valid integer, not "1"'),
        (Root, '[{"size": 1}]', "unknown argument 'it.0.size'"),
        (Order, '{"item": "x", "extra": {"number": 1}}', None),
        (Open, '{"number": "2", "size": 1}', None),
    ],
)
def test_models_are_as_strict_as_arguments_unless_they_say_otherwise(kind: Any, value: str, says: str | None) -> None:
    def place(it: Any) -> None:
        """Place it."""

    place.__annotations__["it"] = kind
    made = tool(place)
    closed = [part.get("additionalProperties") for part in made.parameters["$defs"].values() if "properties" in part]
    assert closed == [kind is Open] * len(closed)
    if says is None:
        assert isinstance(made.validate(f'{{"it": {value}}}')["it"], kind)
    else:
        with pytest.raises(BadInput, match=re.escape(says)):
            made.validate(f'{{"it": {value}}}')


def test_a_constraint_is_told_in_words() -> None:
    @tool
    def pick(count: Annotated[int, Field(ge=1)], day: date, colour: Colour) -> None:
        """Pick."""

    assert pick.validate('{"count": 1, "day": "2026-05-12", "colour": "red"}') == {
        "count": 1,
        "day": date(2026, 5, 12),
        "colour": Colour.red,
    }
    with pytest.raises(BadInput, match="argument 'count' must be greater than or equal to 1, not 0"):
        pick.validate({"count": 0, "day": "2026-05-12", "colour": "red"})
    with pytest.raises(BadInput, match="argument 'day' must be a valid date"):
        pick.validate({"count": 1, "day": "soon", "colour": "red"})


def test_a_tool_made_by_hand_is_checked_at_the_outer_level() -> None:
    schema = {
        "type": "object",
        "properties": {"q": {"type": "string"}, "n": {"type": ["integer", "null"]}, "s": {"enum": ["a", "b"]}},
        "required": ["q"],
    }
    search = Tool("search", "Search", schema, lambda **given: given)
    assert search.validate('{"q": "x", "n": null, "s": "a"}') == {"q": "x", "n": None, "s": "a"}
    for wrong in ({}, {"q": 1}, {"q": "x", "n": "1"}, {"q": "x", "s": "c"}, {"q": "x", "z": 1}):
        with pytest.raises(BadInput):
            search.validate(wrong)


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ({"a": 1, "b": "ü"}, '{"a": 1, "b": "ü"}'),
        ("text", '"text"'),
        (None, "null"),
        ([1, 2.5, True], "[1, 2.5, true]"),
        (Point(1, date(2026, 5, 12)), '{"x": 1, "day": "2026-05-12"}'),
        (Place(city="Bonn"), '{"city": "Bonn", "floor": 0}'),
        ({"s": "\ud800"}, '{"s": "?"}'),
    ],
)
async def test_results_are_compact_json(value: Any, content: str) -> None:
    def give() -> Any:
        """Give."""
        return value

    result = await tool(give).call({})
    assert (result.content, result.ok, result.error, result.truncated) == (content, True, None, False)
    assert 0 <= result.seconds < 5


def _loop() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def _deep() -> Any:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize("make", [object, _loop, lambda: float("nan"), lambda: {(1, 2): 3}, lambda: print, _deep])
async def test_what_json_cannot_hold_is_an_error(make: Any) -> None:
    def give() -> Any:
        """Give."""
        return make()

    result = await tool(give).call({})
    assert not result.ok
    assert "not JSON" in (result.error or "")
    json.loads(result.content)


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Outside(BaseException):
    pass


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("no\nsuch   thing"), "ValueError: no such thing"),
        (ToolFailure("no contact named 'X'"), "no contact named 'X'"),
        (NotFound("gone", where="here", fix="Look."), "here: gone. Look."),
        (KeyError(), "KeyError"),
        (Rude(), "Rude"),
        (StopIteration("over"), "StopIteration"),
        (SystemExit(3), "SystemExit"),
        (Outside(), "Outside"),
        (asyncio.CancelledError(), "ancelled"),
        (ValueError("x" * 10**6), "ValueError: xxx"),
        (ValueError("\ud800"), "ValueError: ?"),
    ],
)
async def test_a_tool_that_raises_is_an_error_result(error: BaseException, says: str, asynchronous: bool) -> None:
    def fail() -> None:
        """Fail."""
        raise error

    async def fail_later() -> None:
        """Fail later."""
        await asyncio.sleep(0)
        raise error

    result = await tool(fail_later if asynchronous else fail).call({})
    assert not result.ok
    assert says in (result.error or "")
    assert len(result.content) < 700
    assert json.loads(result.content) == {"error": result.error}


async def test_a_tool_that_hangs_is_given_up() -> None:
    release = threading.Event()
    swallowed = asyncio.Event()

    @tool(timeout=0.1)
    def stuck() -> None:
        """Hang in a thread."""
        release.wait(30)

    @tool(timeout=0.1)
    async def asleep() -> None:
        """Hang on the loop."""
        await asyncio.sleep(30)

    @tool(timeout=0.1)
    async def stubborn() -> None:
        """Swallow one cancellation."""
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            swallowed.set()
            await asyncio.sleep(30)

    started = time.perf_counter()
    results = await asyncio.gather(stuck.call({}), asleep.call({}), stubborn.call({}))
    assert time.perf_counter() - started < 4
    assert [r.error for r in results] == [
        f"{name} took longer than 0.1 seconds and was stopped" for name in ("stuck", "asleep", "stubborn")
    ]
    assert swallowed.is_set()
    release.set()


async def test_of_a_change_that_hangs_nobody_knows_whether_it_happened() -> None:
    release = threading.Event()

    @tool(changes=True, timeout=0.1)
    def pay() -> None:
        """Pay."""
        release.wait(30)

    @tool(destructive=True, timeout=0.1)
    async def wipe() -> None:
        """Wipe."""
        await asyncio.sleep(30)

    for result in (await pay.call({}), await wipe.call({})):
        assert "took longer than 0.1 seconds: nobody knows whether it happened" in result.content
        assert "stopped" not in result.content
    release.set()


async def test_a_change_whose_result_cannot_be_shown_was_done() -> None:
    @tool(changes=True)
    def order() -> object:
        """Order."""
        return object()

    result = await order.call({})
    assert not result.ok
    assert "order was done, do not repeat it; but the result is not JSON" in result.content


def test_a_tool_that_raises_ctrl_c_ends_neither_loop_nor_process() -> None:
    code = """
from trimtab.tools import tool
from trimtab.agent import Agent, Journal, RoutingPolicy
from trimtab.agent.testing import ReplayEngine, call
@tool
async def bad() -> str:
    "Be bad."
    raise KeyboardInterrupt
agent = Agent([bad], engine=ReplayEngine([call("bad"), "done"]), journal=Journal(":memory:"), policy=RoutingPolicy())
result = agent.run("go")
print(result.answer, result.steps[1].error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done the tool raised KeyboardInterrupt\n", done.stderr


async def test_cancelling_the_caller_cancels_the_tool() -> None:
    events: list[str] = []

    @tool
    async def slow() -> None:
        """Wait."""
        try:
            await asyncio.sleep(30)
        finally:
            events.append("cleaned")

    release = threading.Event()

    @tool
    def threaded() -> None:
        """Wait in a thread."""
        release.wait(30)

    for one in (slow, threaded):
        task = asyncio.create_task(one.call({}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0)
    assert events == ["cleaned"]
    release.set()


@pytest.mark.parametrize("text", ["x" * 10_000_000, '"\\' * 5_000_000, "ü🙂" * 2_000_000])
async def test_ten_megabytes_are_cut_and_say_so(text: str) -> None:
    @tool
    def huge() -> dict[str, str]:
        """Give far too much."""
        return {"content": text}

    result = await huge.call({})
    assert (result.ok, result.truncated) == (True, True)
    assert 4_000 < len(result.content.encode()) <= 16_000
    told = json.loads(result.content)
    assert set(told) == {"truncated", "note"}
    assert json.dumps({"content": text}, ensure_ascii=False).startswith(told["truncated"])
    assert "16000 are allowed" in told["note"]


async def test_calls_run_side_by_side_and_threads_do_not_run_out() -> None:
    barrier = threading.Barrier(60)

    @tool
    def meet(n: int) -> int:
        """Wait for all the others."""
        barrier.wait(10)
        return n

    results = await asyncio.gather(*(meet.call({"n": n}) for n in range(60)))
    assert [r.content for r in results] == [str(n) for n in range(60)]


async def test_a_forgotten_await_is_told() -> None:
    async def later() -> int:
        return 1

    @tool
    def forgot() -> Any:
        """Forget to await."""
        return later()

    assert "async def" in ((await forgot.call({})).error or "")


def test_a_hung_tool_does_not_keep_the_process_alive() -> None:
    program = """
import asyncio, time
from trimtab.tools import tool
@tool(timeout=0.1)
def stuck() -> None:
    "Hang."
    time.sleep(60)
print(asyncio.run(stuck.call({})).ok)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15, check=True)
    assert done.stdout == "False\n"


def test_importing_the_tools_is_cheap() -> None:
    program = (
        "import sys, trimtab.tools, trimtab.tools.builtin; "
        "print([m for m in ('pydantic', 'pint', 'dateutil', 'simpleeval', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15, check=True)
    assert done.stdout == "[]\n"


def test_a_toolset_is_a_mapping_that_names_what_it_knows() -> None:
    tools = Toolset([book, echo])
    assert list(tools) == ["book", "echo"]
    assert (len(tools), tools["echo"], tools.get("book"), "echo" in tools, "no" in tools) == (
        2,
        echo,
        book,
        True,
        False,
    )
    assert tools.specs() == [book.spec(), echo.spec()]
    assert list(tools.only(["echo"])) == ["echo"]
    for look in (tools.get, tools.__getitem__):
        with pytest.raises(NotFound, match=r"no tool named 'ech'\. Known tools: book, echo"):
            look("ech")
    with pytest.raises(BadInput, match="two tools are named 'echo'"):
        Toolset([echo, echo])
    with pytest.raises(BadInput, match="is not a tool"):
        Toolset([print])  # type: ignore[list-item]
