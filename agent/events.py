"""A run as the sum of its events. The journal stores the events; everything else about a run is worked out from them.

    start        the task, the conversation so far, what the agent was made of
    ask          a model is about to be asked: the route, and the model's id
    model        it answered: its step, the message, and what is wrong with each of its tool calls
    unanswered   it was asked, and nobody knows what it did: a step of which no tokens are known
    refused      it was asked and refused, so it did nothing
    call         a tool is about to act
    result       it acted, or could not: its step and the message for the model
    interrupted  a call that was started by a process which died before the result
    resume       a process goes on with the run
    stop         why there is no answer; the run may still be continued

A model event whose message has no calls carries the answer and ends the run. Older journals have no `ask`.

Each says what the run had spent by then. Events are JSON dictionaries. `replay(events)` is pure, so a run that was
killed anywhere is continued from exactly where its last written event left it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..models.chat import Message, ToolCall
from .limits import Spent
from .steps import Step, Stop, Where

Json = dict[str, Any]
LOOP = 3


@dataclass(frozen=True)
class Pending:
    """A call of the last model message that the model has no result for yet.

    Attributes:
        error: what is wrong with the call, or None if it may run.
        started: a tool began to act on it.
        interrupted: the process died while it acted.
        message: the result for the model, once there is one.
    """

    call: ToolCall
    error: str | None = None
    started: bool = False
    interrupted: bool = False
    message: Message | None = None


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        about: what the agent was made of: profile, engine, large, tools and the like.
        messages: the conversation as the next model call sees it.
        given: how many of them were there before the run.
        asked: a model call, as its step, whose answer is not there yet.
        pending: calls waiting for results.
        invalid_by: whose invalid call the next model step repairs, or None.
        loop: the call that was repeated `LOOP` times with the same result, or None.
        loop_escalated: the large engine was already asked because of a loop.
    """

    run_id: str
    task: str
    about: Json
    messages: tuple[Message, ...]
    given: int
    steps: tuple[Step, ...] = ()
    asked: Step | None = None
    pending: tuple[Pending, ...] = ()
    invalid_by: Where | None = None
    invalid_ids: frozenset[str] = frozenset()
    repeats: Mapping[str, int] = field(default_factory=dict)
    loop: str | None = None
    loop_escalated: bool = False
    spent: Spent = field(default_factory=Spent)
    answer: str = ""
    stopped: Stop | None = None
    ended: bool = False
    seq: int = 0

    def clean(self) -> tuple[Message, ...]:
        """The conversation without invalid calls and their errors: what the large engine is shown.

        Another model's broken attempts would only teach it to make the same mistake.
        """
        return without_calls(self.messages, self.invalid_ids)


def replay(run_id: str, events: Iterable[Json]) -> RunState | None:
    """The state after the events, None if there are none."""
    state: RunState | None = None
    for event in events:
        state = start(run_id, event) if state is None else apply(state, event)
    return state


def start(run_id: str, event: Json) -> RunState:
    """The state after the first event."""
    messages = tuple(Message.from_openai(message) for message in event["messages"])
    return RunState(run_id, event["task"], event["about"], messages, len(messages), seq=1)


def apply(state: RunState, event: Json) -> RunState:
    """The state after one more event."""
    spent = Spent(**event["spent"]) if "spent" in event else state.spent
    state = replace(state, seq=state.seq + 1, spent=spent, stopped=None)
    return _APPLY[event["kind"]](state, event)


def _ask(state: RunState, event: Json) -> RunState:
    return replace(state, asked=Step.from_json(event["asked"]))


def _unanswered(state: RunState, event: Json) -> RunState:
    return replace(state, asked=None, steps=(*state.steps, Step.from_json(event["step"])))


def _refused(state: RunState, event: Json) -> RunState:
    return replace(state, asked=None)


def _model(state: RunState, event: Json) -> RunState:
    step = Step.from_json(event["step"])
    state = replace(state, asked=None, steps=(*state.steps, step))
    assert step.route is not None
    if state.loop is not None and step.route.engine == "large":
        state = replace(state, loop=None, loop_escalated=True)
    if not event["accepted"]:
        return state
    message = Message.from_openai(event["message"])
    errors: list[str | None] = event["errors"]
    pending = tuple(Pending(call, error) for call, error in zip(message.tool_calls, errors, strict=True))
    before = state.clean() if step.route.engine == "large" else state.messages
    return replace(
        state,
        messages=(*before, message),
        pending=pending,
        invalid_by=step.route.engine if any(errors) else None,
        invalid_ids=state.invalid_ids | {p.call.id for p in pending if p.error is not None},
        ended=not pending,
        answer="" if pending else message.content or "",
    )


def _call(state: RunState, event: Json) -> RunState:
    return _set(state, event["call_id"], started=True, interrupted=False)


def _result(state: RunState, event: Json) -> RunState:
    step = Step.from_json(event["step"])
    assert step.call_id is not None
    state = _set(state, step.call_id, message=Message.from_openai(event["message"]))
    state = replace(state, steps=(*state.steps, step))
    if any(p.message is None for p in state.pending):
        return state
    # All results are in: the model sees them in the order of its calls, whichever came first.
    messages = (*state.messages, *(p.message for p in state.pending if p.message is not None))
    repeats = dict(state.repeats)
    loop = state.loop
    # The same call twice in one message counts once: the model has not seen the first result yet.
    for name, key in {_key(p): p.call.name for p in state.pending if p.error is None}.items():
        repeats[name] = repeats.get(name, 0) + 1
        if repeats[name] >= LOOP:
            loop = key
    return replace(state, messages=messages, pending=(), repeats=repeats, loop=loop)


def _interrupted(state: RunState, event: Json) -> RunState:
    step = Step.from_json(event["step"])
    assert step.call_id is not None
    state = _set(state, step.call_id, started=False, interrupted=True)
    return replace(state, steps=(*state.steps, step))


def _stop(state: RunState, event: Json) -> RunState:
    return replace(state, stopped=Stop(**event["stop"]))


def _resume(state: RunState, event: Json) -> RunState:
    return state


_APPLY = {
    "resume": _resume,
    "ask": _ask,
    "unanswered": _unanswered,
    "refused": _refused,
    "model": _model,
    "call": _call,
    "result": _result,
    "interrupted": _interrupted,
    "stop": _stop,
}


def _set(state: RunState, call_id: str, **changes: Any) -> RunState:
    pending = tuple(replace(p, **changes) if p.call.id == call_id else p for p in state.pending)
    return replace(state, pending=pending)


def _key(pending: Pending) -> str:
    """The same for the same call with the same result, however its JSON is spelled."""
    assert pending.message is not None
    try:
        arguments = json.dumps(json.loads(pending.call.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = pending.call.arguments
    return json.dumps([pending.call.name, arguments, pending.message.content])


def without_calls(messages: tuple[Message, ...], ids: frozenset[str]) -> tuple[Message, ...]:
    """The conversation without the calls of these ids and without their results."""
    kept = []
    for message in messages:
        if message.tool_call_id in ids and message.role == "tool":
            continue
        if message.tool_calls:
            calls = tuple(call for call in message.tool_calls if call.id not in ids)
            if not calls and not message.content:
                continue
            if not calls and any(call.id in ids for call in message.tool_calls):
                # Text beside nothing but invalid calls belongs to the failed attempt.
                continue
            message = replace(message, tool_calls=calls)
        kept.append(message)
    return tuple(kept)


def start_event(task: str, messages: Iterable[Message], about: Json) -> Json:
    """The first event of a run."""
    return {"kind": "start", "task": task, "messages": [m.to_openai() for m in messages], "about": about}


def stop_event(stop: Stop) -> Json:
    """A run ends here without an answer. It may be continued: further events may follow."""
    return {"kind": "stop", "stop": asdict(stop)}
