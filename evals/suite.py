"""Suites: sets of tasks, each with the state it starts from and what must hold after it.

    name: small
    description: Held-out phrasings of all eight families
    tasks:
    - id: calc-001
      family: calc
      ask: How far is 26.2 miles in kilometres?
      today: 2026-05-12
      tools: [convert_units, calculate]     # null or left out: every built-in tool
      state: {todos: [milk]}                # the world before, as for `state.seed`; what is left out is empty
      expect:
        answer: ["42.1648"]                 # each must occur in the answer; of a list, [none, no mails], one
        state: {todos: [milk, bread]}       # keys given must equal the world after; all others must be untouched
        calls: [{name: convert_units, arguments: {value: 26.2, from_unit: miles, to_unit: kilometres}}]

`calls` is one reference path. It never decides success; it only tells a wrong tool from wrong arguments afterwards.
The same tasks, one JSON object a line, make a `.jsonl` suite named after its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import BadInput, NotFound, ToolFailure
from ..yaml_text import load_yaml

PACKAGED = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Expect:
    """What must hold after a task.

    Attributes:
        answer: what must all occur in the answer: a string, or one of several (see `score.missing_from_answer`).
        state: keys of the state that must equal these values; keys not given must equal the state before.
        calls: a reference path as (tool, arguments), or None. An empty one says that none is needed.
    """

    answer: tuple[str | tuple[str, ...], ...] = ()
    state: Mapping[str, Any] | None = None
    calls: tuple[tuple[str, Mapping[str, Any]], ...] | None = None


@dataclass(frozen=True)
class Task:
    """What is asked, in which world, with which tools. `tools` None means every built-in tool."""

    id: str
    family: str
    ask: str
    today: date
    state: Mapping[str, Any]
    tools: tuple[str, ...] | None
    expect: Expect


@dataclass(frozen=True)
class Suite:
    """A named set of tasks. `sha256` is of their canonical content: two suites with one hash are the same test."""

    name: str
    tasks: tuple[Task, ...]
    sha256: str
    description: str | None = None

    def first(self, limit: int | None) -> Suite:
        """At most `limit` tasks, the families taking turns, so that a short run still covers them all.

        Raises:
            BadInput: `limit` is below 1.
        """
        if limit is None or limit >= len(self.tasks):
            return self
        if limit < 1:
            raise BadInput(f"a limit of {limit} leaves no task", where="--limit", fix="Give 1 or more.")
        families: dict[str, list[Task]] = {}
        for task in self.tasks:
            families.setdefault(task.family, []).append(task)
        longest = max(map(len, families.values()))
        turns = [queue[i] for i in range(longest) for queue in families.values() if i < len(queue)]
        kept = {task.id for task in turns[:limit]}
        return replace(self, tasks=tuple(t for t in self.tasks if t.id in kept))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _kept(value: str) -> str:
    """A text as the office database keeps it, so that what is expected can be found there."""
    from ..tools.builtin.database import key, text

    try:
        key(value, "text")
    except ToolFailure as error:
        raise ValueError(error.what) from None
    return text(value)


_Text = Annotated[StrictStr, AfterValidator(_kept)]
_Address = Annotated[StrictStr, AfterValidator(str.strip)]


class _Event(_Strict):
    title: _Text
    date: StrictStr
    time: StrictStr = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads an unquoted 2026-05-12 as a date; its text is not in doubt.
        return value.isoformat() if isinstance(value, date) else value

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f'{value!r:.40} is no date: write it as "2026-05-12"') from None

    @field_validator("time", mode="before")
    @classmethod
    def _no_sexagesimal(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError('YAML reads an unquoted time as a number: write it in quotes, such as "13:00"')
        return value


class _Contact(_Strict):
    name: _Text
    email: StrictStr
    phone: StrictStr | None = None


class _Received(_Strict):
    sender: _Address = Field(alias="from")
    subject: _Text
    body: StrictStr

    @model_validator(mode="after")
    def _is_a_mail(self) -> _Received:
        _mail(self.sender, self.subject, self.body)
        return self


class _Sent(_Strict):
    to: _Address
    subject: _Text
    body: StrictStr

    @model_validator(mode="after")
    def _is_a_mail(self) -> _Sent:
        _mail(self.to, self.subject, self.body)
        return self


def _mail(*parts: str) -> None:
    from ..tools.builtin.mail import check_mail

    try:
        check_mail(*parts)
    except ToolFailure as error:
        raise ValueError(error.what) from None


class _Order(_Strict):
    order: StrictInt
    customer: _Text
    item: _Text
    quantity: StrictInt
    status: StrictStr


class _Stock(_Strict):
    item: _Text
    stock: StrictInt
    price: StrictInt | StrictFloat


class _Table(_Strict):
    columns: list[StrictStr]
    rows: list[list[Any]]

    @field_validator("rows")
    @classmethod
    def _plain_cells(cls, value: list[list[Any]]) -> list[list[Any]]:
        for cell in (cell for row in value for cell in row):
            if isinstance(cell, bool) or not isinstance(cell, str | int | float | None):
                raise ValueError(f"{cell!s:.60} is no text, number or null: write it in quotes")
        return value


class _State(_Strict):
    events: list[_Event] | None = None
    contacts: list[_Contact] | None = None
    todos: list[_Text] | None = None
    done: list[_Text] | None = None
    files: dict[str, StrictStr] | None = None
    tables: dict[str, _Table] | None = None
    orders: list[_Order] | None = None
    stock: list[_Stock] | None = None
    inbox: list[_Received] | None = None
    sent: list[_Sent] | None = None

    @field_validator("files")
    @classmethod
    def _can_be_written(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        from ..tools.builtin.files import inside

        folders = {str(parent) for name in value or () for parent in PurePosixPath(name).parents}
        for name in value or ():
            try:
                inside(PACKAGED, name)
            except ToolFailure as error:
                raise ValueError(error.what) from None
            if str(PurePosixPath(name)) in folders:
                raise ValueError(f"{name} is a file and a folder")
        return value

    def given(self) -> dict[str, Any]:
        """The keys the suite gives; their items are whole (a contact without phone has None), as in a snapshot."""
        return {key: value for key, value in self.model_dump(by_alias=True).items() if value is not None}


class _Call(_Strict):
    name: StrictStr
    arguments: dict[str, Any] = {}

    @field_validator("arguments")
    @classmethod
    def _is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error}): write it in quotes") from None
        return value


def _needle(value: Any) -> Any:
    """What an answer must hold: a text, or a list of texts. A blank one is in every answer, and checks nothing."""
    if value == []:
        raise ValueError("an empty list cannot occur: name a text")
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            raise ValueError(f'{text!r:.40} is no text: write it in quotes: "{text!s:.40}"')
        if not text.strip():
            raise ValueError("a blank text is in every answer: name one, or leave it out")
    return value


class _Expect(_Strict):
    answer: list[Annotated[str | list[str], PlainValidator(_needle)]] = []
    state: _State | None = None
    calls: list[_Call] | None = None


class _Task(_Strict):
    id: StrictStr = Field(min_length=1)
    family: StrictStr = "other"
    ask: StrictStr = Field(min_length=1)
    today: date
    state: _State = _State()
    tools: list[StrictStr] | None = None
    expect: _Expect

    @field_validator("expect")
    @classmethod
    def _checks_something(cls, value: _Expect) -> _Expect:
        if not value.answer and value.state is None:
            raise ValueError("nothing is checked: give an answer, a state or both")
        return value

    def task(self) -> Task:
        calls = None if self.expect.calls is None else tuple((c.name, c.arguments) for c in self.expect.calls)
        state = None if self.expect.state is None else self.expect.state.given()
        answer = tuple(tuple(one) if isinstance(one, list) else one for one in self.expect.answer)
        expect = Expect(answer, state, calls)
        tools = None if self.tools is None else tuple(self.tools)
        return Task(self.id, self.family, self.ask, self.today, self.state.given(), tools, expect)


class _Suite(_Strict):
    name: StrictStr = Field(min_length=1)
    description: StrictStr | None = None
    tasks: list[_Task] = Field(min_length=1)


def known_suites() -> list[str]:
    """Names of the packaged suites."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def find_suite(name_or_path: str | Path) -> Suite:
    """A packaged suite by name, or any suite by the path of its `.yaml` or `.jsonl` file.

    Raises:
        NotFound: neither a packaged name nor a file; the message lists the names.
        BadInput: the file is malformed; the message names file, task and field.
    """
    text = str(name_or_path)
    if text in known_suites():
        return load_suite(PACKAGED / f"{text}.yaml")
    path = Path(text)
    if path.is_file():
        return load_suite(path)
    known = ", ".join(known_suites()) or "none in this installation"
    raise NotFound(
        f"unknown suite {text!r}", fix=f"Packaged suites: {known}; or give the path of a .yaml or .jsonl file."
    )


def load_suite(path: Path) -> Suite:
    """Read and check one suite file.

    Raises:
        BadInput: unreadable, malformed, or a task that does not hold together; names file, task and field.
    """
    return make_suite(_read(path), path)


def make_suite(data: Any, path: Path | str) -> Suite:
    """A suite from data in the form of a suite file; `path` is what errors call it.

    Raises:
        BadInput: malformed, or a task that does not hold together; names path, task and field.
    """
    try:
        suite = _Suite.model_validate(data)
    except ValidationError as error:
        raise _explain(path, data, error) from None
    seen: set[str] = set()
    for task in suite.tasks:
        if task.id in seen:
            raise BadInput("two tasks have this id", where=f"{path}: task {task.id!r}: id", fix="Give each its own.")
        seen.add(task.id)
    tasks = tuple(t.task() for t in suite.tasks)
    check_tasks(tasks, str(path))
    # What is left out stays out, so that a new kind of state does not change the hash of a suite without it.
    content = suite.model_dump(mode="json", by_alias=True, exclude={"description", "name"}, exclude_none=True)
    for row in content["tasks"]:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput("a text holds half of a Unicode character", where=f"{path}: task {row['id']!r}") from None
    canonical = json.dumps(content, sort_keys=True)
    return Suite(suite.name, tasks, hashlib.sha256(canonical.encode()).hexdigest(), suite.description)


def check_tasks(tasks: Iterable[Task], where: str) -> None:
    """Check what a task's form does not say: that its tools are there, and that its orders and tables can be.

    Raises:
        BadInput: names `where`, task and field.
    """
    from ..tools.builtin import FAMILIES
    from ..tools.builtin.orders import check_orders
    from ..tools.builtin.tables import check_tables

    known = {name for names in FAMILIES.values() for name in names}
    for task in tasks:
        place = f"{where}: task {task.id!r}"
        for name in task.tools or ():
            if name not in known:
                raise BadInput(
                    f"unknown tool {name!r}", where=f"{place}: tools", fix=f"Known tools: {', '.join(sorted(known))}."
                )
        for field, state in (("", task.state), ("expect: ", task.expect.state or {})):
            try:
                check_orders(state.get("orders") or (), state.get("stock") or ())
                check_tables(state.get("tables") or {})
            except BadInput as error:
                raise BadInput(error.what, where=f"{place}: {field}{error.where}", fix=error.fix) from None


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound("there is no such suite file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"not readable as text ({error})", where=str(path)) from None
    if path.suffix == ".jsonl":
        return {"name": path.stem, "tasks": _lines(path, text)}

    return load_yaml(text, str(path))


def _lines(path: Path, text: str) -> list[Any]:
    tasks = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                tasks.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise BadInput(f"not JSON: {error}", where=f"{path}: line {number}") from None
    return tasks


def _explain(path: Path | str, data: Any, error: ValidationError) -> BadInput:
    # A misspelt field is also a missing one: name the spelling.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = list(first["loc"])
    where = str(path)
    if place[:1] == ["tasks"] and len(place) > 1:
        index = int(place[1])
        task = data["tasks"][index] if isinstance(data["tasks"], list) else None
        name = task.get("id") if isinstance(task, dict) else None
        where += f": task {name!r}" if name else f": task number {index + 1}"
        place = place[2:]
    if place:
        where += ": " + ".".join(map(str, place))
    message = first["msg"].removeprefix("Value error, ")
    fix = None
    if first["type"] == "extra_forbidden":
        message, fix = "unknown field", "Remove it, or mend its spelling."
    elif first["type"] == "string_type" and isinstance(first["input"], int | float):
        fix = f'Write it in quotes: "{first["input"]}".'
    more = error.error_count() - 1
    return BadInput(f"{message}{f' (and {more} more)' if more else ''}", where=where, fix=fix)
