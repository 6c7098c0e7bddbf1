"""The two kinds of step of a run: one model call, and the tool calls of one message, journal first."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import BadInput, EngineRefused, LimitExceeded, NotFound, TrimtabError
from ..models.chat import ChatRequest, Message, Reply, Sampling, ToolCall, Usage
from ..models.engines.constrain import holdable
from ..tools.schema import too_deep
from .engines import EngineRoom
from .events import Pending, RunState, start_event, stop_event
from .journal import Journal, Recorder
from .limits import Budget, Limits
from .policy import Flow, Halt, Outcome, Policy, Situation
from .steps import Event, Result, Route, Step, Stop, total_usage

if TYPE_CHECKING:
    from ..models.engine import Engine
    from ..models.price import Money, Prices
    from ..tools import Tool

T = TypeVar("T")
Emit = Callable[[Event], None]
INTERRUPTED = "interrupted, outcome unknown"
UNANSWERED = "the process that asked ended"
BROKEN_CALL = "<tool_call>"
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,200})"')


@dataclass(frozen=True)
class Runtime:
    """What the steps of an agent's runs need. `room` and `journal` give this moment's engines and record."""

    tools: Mapping[str, Tool]
    policy: Callable[[], Policy]
    limits: Limits
    room: Callable[[], EngineRoom]
    journal: Callable[[], Journal]
    prices: Callable[[], Prices]
    profile: str | None = None
    instructions: str | None = None
    sampling: Sampling | None = None
    about: dict[str, Any] = field(default_factory=dict)


async def begin(rt: Runtime, task: str, messages: Sequence[Message]) -> str:
    """Write a new run to the journal and return its id. `messages` is the conversation, the task its last message.

    Raises:
        BadInput: half of a Unicode character in the task or in a message: no file and no engine takes it.
    """
    for text in (task, rt.instructions, *(message.content for message in messages)):
        check_text(text or "")
    first = () if rt.instructions is None else (Message("system", rt.instructions),)
    return await rt.journal().begin(start_event(task, (*first, *messages), rt.about))


def check_text(text: str) -> None:
    """Raises BadInput for half of a Unicode character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"a text holds half of a Unicode character at place {error.start + 1}",
            where="task",
            fix="Give it in UTF-8",
        ) from None


async def go_on(rt: Runtime, state: RunState) -> RunState:
    """Write down that a run is continued. Where another process does the same at this moment, only one gets through.

    Raises:
        BadInput: a tool of the run is not among the agent's.
    """
    missing = [name for name in state.about.get("tools", ()) if name not in rt.tools]
    if missing:
        raise BadInput(
            f"the run was begun with tools this agent lacks: {', '.join(missing)}", where=f"run {state.run_id}"
        )
    rec = Recorder(rt.journal(), state, Budget(rt.limits, state.spent))
    await rec.add({"kind": "resume"})
    return rec.state


def next_node(state: RunState) -> Literal["model", "tools", "end"]:
    """What a run does next."""
    if state.ended or state.stopped is not None:
        return "end"
    return "tools" if state.pending else "model"


async def model_step(rt: Runtime, run_id: str, emit: Emit) -> RunState:
    """Route, ask, check; ask again where the policy says so; write it all down."""
    return await _bounded(rt, run_id, emit, _ask_until_taken)


async def tool_step(rt: Runtime, run_id: str, emit: Emit) -> RunState:
    """Bring every pending call to a result: calls run side by side, those that change something alone, in place."""
    return await _bounded(rt, run_id, emit, _settle_calls)


Work = Callable[[Runtime, Recorder, Emit], Awaitable[None]]


async def _bounded(rt: Runtime, run_id: str, emit: Emit, work: Work) -> RunState:
    journal = rt.journal()
    state = await asyncio.to_thread(journal.state, run_id)
    with Budget(rt.limits, state.spent) as budget:
        rec = Recorder(journal, state, budget)
        try:
            await work(rt, rec, emit)
        except LimitExceeded as error:
            if error.kind is None:
                raise
            kind: Any = error.kind
            await rec.add(stop_event(Stop(kind, error.what, error.value, error.limit)))
    return rec.state


# --- model steps ---


async def _ask_until_taken(rt: Runtime, rec: Recorder, emit: Emit) -> None:
    budget, room = rec.budget, rt.room()
    # Nobody else acts on this run now: a process that asked before this one is gone, and with it the answer.
    await _unanswered(rec, None, 0.0, emit)
    state = rec.state
    # Whoever pins a profile needs no list of them: the engine itself refuses an unknown one.
    profiles = (
        frozenset[str]() if rt.profile is not None else await _in_time(budget, room.profiles(fresh=not state.steps))
    )
    situation = Situation(
        task=state.task,
        tools=tuple(rt.tools),
        profiles=profiles,
        has_large=room.has_large,
        pinned=rt.profile,
        invalid_by=state.invalid_by,
        loop=state.loop,
        loop_escalated=state.loop_escalated,
    )
    flow = rt.policy().flow(situation)
    route, halt = _advance(flow, None)
    while route is not None:
        budget.check(steps=1)
        engine = await _in_time(budget, room.get(route.engine))
        asked = Step(index=0, kind="model", seconds=0.0, route=route, model=engine.model)
        await rec.add({"kind": "ask", "asked": asked.to_json()})
        began = time.monotonic()
        try:
            attempt = await _in_time(budget, _ask(rt, state, route, engine))
        except TrimtabError as error:
            await _unanswered(rec, error, time.monotonic() - began, emit)
            raise
        budget.charge(steps=1, tokens=attempt.tokens)
        taken_route, (route, halt) = route, _advance(flow, attempt.outcome)
        await _record_attempt(rec, attempt, taken_route, route is None and halt is None, emit)
    if halt is not None:
        await rec.add(stop_event(Stop(halt.kind, halt.reason)))


async def _unanswered(rec: Recorder, error: TrimtabError | None, seconds: float, emit: Emit) -> None:
    """Write down that a model was asked in vain. What it generated, and is to be paid for, is not known."""
    if rec.state.asked is None:
        return
    if isinstance(error, EngineRefused | NotFound | BadInput):
        await rec.add({"kind": "refused"})
        return
    said = f"there was no answer ({UNANSWERED if error is None else error.what})"
    step = replace(rec.state.asked, seconds=seconds, error=said)
    await _add(rec, {"kind": "unanswered", "step": step.to_json()}, emit)


def _advance(flow: Flow, outcome: Outcome | None) -> tuple[Route | None, Halt | None]:
    try:
        return (next(flow) if outcome is None else flow.send(outcome)), None
    except StopIteration as end:
        return None, end.value


@dataclass(frozen=True)
class Attempt:
    """One model call and what is to be thought of it. `errors` has one entry for each call of `message`."""

    reply: Reply
    model: str
    message: Message
    calls: tuple[ToolCall, ...]
    errors: tuple[str | None, ...]
    outcome: Outcome
    tokens: int
    seconds: float


async def _ask(rt: Runtime, state: RunState, route: Route, engine: Engine) -> Attempt:
    tools = {name: tool for name, tool in rt.tools.items() if name in route.tools}
    messages = state.clean() if route.engine == "large" else state.messages
    specs = tuple(tool.spec() for tool in tools.values())
    # A call that was invalid once is written again under the tools' grammar, where the engine can hold it to that.
    held = state.invalid_by is not None and engine.name == "vllm" and holdable(specs)
    began = time.monotonic()
    reply = await engine.chat(ChatRequest(messages, specs, route.profile, rt.sampling, held))
    seconds = time.monotonic() - began
    # Whatever the engine is, no text of it may keep the journal, or the next request, from being written.
    reply = replace(reply, message=Message.from_openai(reply.message.to_openai()))
    # Without tools a call's mark is text like any other.
    calls = _own_ids(_written_calls(reply.message) if tools else reply.message.tool_calls, state)
    errors = tuple(_error(call, tools) for call in calls)
    wrong = [f"{call.name}: {error}" for call, error in zip(calls, errors, strict=True) if error is not None]
    if wrong:
        outcome = Outcome("invalid", f"invalid call ({'; '.join(wrong)})")
    elif not calls and reply.finish_reason in ("length", "content_filter"):
        outcome = Outcome("cut", _cut(reply))
    elif calls or (reply.message.content or "").strip():
        outcome = Outcome("good")
    else:
        outcome = Outcome("empty", "the answer was empty")
    # A chat template, and vLLM, read arguments as JSON: a broken text would make every later request fail.
    safe = tuple(c if _object(c.arguments) is not None else replace(c, arguments="{}") for c in calls)
    content = reply.message.content if reply.message.tool_calls or not calls else None
    message = Message("assistant", content, safe)
    tokens = _tokens(reply.usage, messages, specs, reply.message)
    return Attempt(reply, engine.model, message, calls, errors, outcome, tokens, seconds)


async def _record_attempt(rec: Recorder, attempt: Attempt, route: Route, accepted: bool, emit: Emit) -> None:
    step = Step(
        index=0,
        kind="model",
        seconds=attempt.seconds,
        error=attempt.outcome.detail or None,
        route=route,
        model=attempt.model,
        text=attempt.reply.message.content,
        calls=attempt.calls,
        finish_reason=attempt.reply.finish_reason,
        usage=attempt.reply.usage,
        receipt=attempt.reply.receipt,
    )
    event = {
        "kind": "model",
        "step": step.to_json(),
        "message": attempt.message.to_openai(),
        "errors": list(attempt.errors),
        "accepted": accepted,
    }
    await _add(rec, event, emit)


def _written_calls(message: Message) -> tuple[ToolCall, ...]:
    """The calls of a message. A call that the engine could not read stays in the text: a broken call, not an answer."""
    text = message.content or ""
    if message.tool_calls or BROKEN_CALL not in text:
        return message.tool_calls
    broken = text[text.index(BROKEN_CALL) + len(BROKEN_CALL) :].partition("</tool_call>")[0].strip()
    name = _NAME.search(broken)
    return (ToolCall("", name.group(1) if name else "?", broken),)


def _own_ids(calls: tuple[ToolCall, ...], state: RunState) -> tuple[ToolCall, ...]:
    """Calls under ids that no other call of the run has; engines leave them empty or start over at every answer."""
    taken = {call.id for message in state.messages for call in message.tool_calls} | state.invalid_ids | {""}
    out = []
    for i, call in enumerate(calls):
        # An own id may be taken too: by the engine, or by an earlier run of the conversation.
        own = (f"call_{len(state.steps)}_{n}" for n in itertools.count(i))
        free = next(one for one in itertools.chain((call.id,), own) if one not in taken)
        taken.add(free)
        out.append(replace(call, id=free))
    return tuple(out)


def _cut(reply: Reply) -> str:
    """What is to be said of an answer that did not come to its end."""
    if reply.finish_reason == "content_filter":
        return "the answer was cut off by the engine's content filter"
    count = reply.usage.completion_tokens
    after = "" if count is None else f" after {count} tokens"
    return (
        f"the answer was cut off{after}: Sampling(max_tokens=...), or max_tokens in the profile's decoding, "
        "allows more, as far as the model's context goes"
    )


def _error(call: ToolCall, tools: Mapping[str, Tool]) -> str | None:
    """What is wrong with a call, in words a model can act on; None if it may run."""
    if call.name not in tools:
        return f"unknown tool '{call.name}'; the tools are {', '.join(tools) or 'none'}"
    try:
        tools[call.name].validate(call.arguments)
    except (BadInput, NotFound) as error:
        return error.what
    return None


def _tokens(usage: Usage, messages: Sequence[Message], specs: Sequence[Mapping[str, Any]], answer: Message) -> int:
    """Tokens of a call; where the engine does not count them, the bytes of its text, which are never fewer."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None:
        prompt = len(json.dumps([[m.to_openai() for m in messages], list(specs)], ensure_ascii=False).encode())
    if completion is None:
        completion = len(json.dumps(answer.to_openai(), ensure_ascii=False).encode())
    return prompt + completion


# --- tool steps ---


async def _settle_calls(rt: Runtime, rec: Recorder, emit: Emit) -> None:
    # Nobody else acts on this run now, so a call begun without a result was cut off in a process that is gone.
    for pending in [p for p in rec.state.pending if p.started and p.message is None]:
        step = _tool_step(pending.call, 0.0, error=INTERRUPTED)
        await _add(rec, {"kind": "interrupted", "step": step.to_json()}, emit)
    group: list[Pending] = []
    for pending in [p for p in rec.state.pending if p.message is None]:
        tool = rt.tools.get(pending.call.name)
        error = pending.error
        if tool is None and error is None:
            error = f"unknown tool '{pending.call.name}'"
        if tool is not None and tool.changes and pending.interrupted:
            error = INTERRUPTED
        if error is not None:
            rec.budget.charge(steps=1)
            await _refuse(rec, pending.call, error, emit)
        elif tool is not None and tool.changes:
            # What came before it in the message must have happened, what comes after must find it done.
            await _act(rt, rec, emit, group)
            await _act(rt, rec, emit, [pending])
            group = []
        else:
            group.append(pending)
    await _act(rt, rec, emit, group)


async def _act(rt: Runtime, rec: Recorder, emit: Emit, group: Sequence[Pending]) -> None:
    """Run calls side by side. All of them end, and are written down, before an error of one is raised."""
    running = []
    spent: LimitExceeded | None = None
    for pending in group:
        try:
            rec.budget.check(steps=1, tool_calls=1)
        except LimitExceeded as error:
            spent = error
            break
        rec.budget.charge(steps=1, tool_calls=1)
        running.append(_call(rt.tools[pending.call.name], pending.call, rec, emit))
    ended = await asyncio.gather(*running, return_exceptions=True)
    for one in (*ended, spent):
        if isinstance(one, BaseException):
            raise one


async def _call(tool: Tool, call: ToolCall, rec: Recorder, emit: Emit) -> None:
    await rec.add({"kind": "call", "call_id": call.id})
    began = time.monotonic()
    result = await _in_time(rec.budget, tool.call(call.arguments))
    step = _tool_step(call, time.monotonic() - began, error=result.error, result=result.content, ok=result.ok)
    message = Message("tool", result.content, tool_call_id=call.id)
    await _add(rec, {"kind": "result", "step": step.to_json(), "message": message.to_openai()}, emit)


async def _refuse(rec: Recorder, call: ToolCall, error: str, emit: Emit) -> None:
    error = error.encode(errors="backslashreplace").decode()  # it may repeat half a character
    content = json.dumps({"error": error}, ensure_ascii=False)
    step = _tool_step(call, 0.0, error=error, result=content)
    message = Message("tool", content, tool_call_id=call.id)
    await _add(rec, {"kind": "result", "step": step.to_json(), "message": message.to_openai()}, emit)


def _tool_step(
    call: ToolCall, seconds: float, *, error: str | None = None, result: str | None = None, ok: bool = False
) -> Step:
    return Step(
        index=0,
        kind="tool",
        seconds=seconds,
        error=error,
        tool=call.name,
        call_id=call.id,
        arguments=_arguments(call.arguments),
        result=result,
        ok=ok,
    )


# --- both ---


async def _add(rec: Recorder, event: dict[str, Any], emit: Emit) -> None:
    step = await rec.add(event)
    emit(Event("step", rec.state.run_id, step))


async def _in_time(budget: Budget, work: Awaitable[T]) -> T:
    """Await something no longer than the budget's seconds last."""
    try:
        async with asyncio.timeout(budget.seconds_left()) as clock:
            return await work
    except TimeoutError:
        if not clock.expired():
            raise
        raise budget.time_is_up() from None


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object of a text; None where it is none, or so deep that walking through it would fail."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not too_deep(found) else None


def _arguments(text: str) -> dict[str, Any] | str:
    """A call's arguments; their text where that is no object, or has half of a character, which no file takes."""
    found = _object(text)
    if found is None:
        return text
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return text
    return found


def result(rt: Runtime, state: RunState) -> Result:
    """What a run came to. While a model is asked, what it uses is not known yet."""
    steps = state.steps if state.asked is None else (*state.steps, state.asked)
    return Result(
        run_id=state.run_id,
        task=state.task,
        answer=state.answer,
        steps=state.steps,
        usage=total_usage(steps),
        cost=_cost(steps, rt.prices()),
        receipts=tuple(step.receipt for step in state.steps if step.receipt is not None),
        stopped=state.stopped,
    )


def _cost(steps: Sequence[Step], prices: Prices) -> Money | None:
    from decimal import Decimal

    from ..models.price import Money, cost

    total = Money(Decimal(0))
    for step in steps:
        if step.kind == "model":
            if step.usage is None:  # no answer came, and how long the engine went on is not known either
                return None
            money = cost(step.usage, step.seconds, step.model or "", prices)
            if money is None:
                return None
            total += money
    return total
