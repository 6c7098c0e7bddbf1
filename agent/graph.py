"""The only module that knows LangGraph: a run as a graph of two nodes that go round until there is an answer.

    begin -> model -> tools -> model -> ... -> finish

The journal holds the run; the graph carries only the run's id. So a checkpointer around the graph (a parent graph's,
say) may replay a node at any time: the node reads from the journal what was done already and does not do it again.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_openai_messages,
)
from langchain_core.runnables import RunnableLambda
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph

from ..errors import BadInput, NotFound
from ..models.chat import Message
from . import loop, portal
from .events import RunState
from .steps import Event


class Given(TypedDict, total=False):
    """What the graph takes: a conversation whose last message is the user's, or a task in words."""

    messages: Annotated[list[AnyMessage], add_messages]
    task: str
    trimtab_run: str


class Made(TypedDict, total=False):
    """What it gives back: the conversation with the task and the run's messages added, the answer, and the whole result
    as JSON."""

    messages: Annotated[list[AnyMessage], add_messages]
    answer: str
    result: dict[str, Any]


class State(Made, total=False):
    """What passes between the nodes: `trimtab_run` is the run's id in the journal, `at` the node to go to."""

    task: str
    trimtab_run: str
    at: str


Node = Callable[[State, loop.Emit], Awaitable[dict[str, Any]]]
Compiled = CompiledStateGraph[Any, Any, Any, Any]


def build(rt: loop.Runtime, checkpointer: Any = None) -> Compiled:
    """The graph of an agent. It runs under `ainvoke` and `invoke`, alone or as a node of another graph."""

    async def begin(state: State, emit: loop.Emit) -> dict[str, Any]:
        known, messages = _open_run(rt, state.get("trimtab_run")), _messages(state)
        said = _said(state)
        if known is not None and not _moved_on(known, messages):
            fresh = known.seq == 1
            if known.task in [m.content for m in messages[:-1] if m.role == "user"]:
                said = {"task": ""}  # asked again after an error: it is in the thread already
            return {**said, "at": loop.next_node(known if fresh else await loop.go_on(rt, known))}
        task = next((m.content for m in reversed(messages) if m.role == "user" and m.content), None)
        if task is None:
            raise BadInput("no user message and no task", where="agent graph: messages", fix="Give one of them")
        return {**said, "trimtab_run": await loop.begin(rt, task, messages), "at": "model"}

    async def model(state: State, emit: loop.Emit) -> dict[str, Any]:
        return {"at": loop.next_node(await loop.model_step(rt, state["trimtab_run"], emit))}

    async def tools(state: State, emit: loop.Emit) -> dict[str, Any]:
        return {"at": loop.next_node(await loop.tool_step(rt, state["trimtab_run"], emit))}

    async def finish(state: State, emit: loop.Emit) -> dict[str, Any]:
        run = rt.journal().state(state["trimtab_run"])
        result = loop.result(rt, run)
        return {"messages": _made(run), "answer": result.answer, "result": result.to_json()}

    def way(state: State) -> str:
        return {"end": "finish"}.get(state["at"], state["at"])

    graph = StateGraph(State, input_schema=Given, output_schema=Made)
    for name, node in {"begin": begin, "model": model, "tools": tools, "finish": finish}.items():
        graph.add_node(name, _runnable(node))
    graph.add_edge(START, "begin")
    for name in ("begin", "model", "tools"):
        graph.add_conditional_edges(name, way, ["model", "tools", "finish"])
    graph.add_edge("finish", END)
    compiled = graph.compile(checkpointer=checkpointer, name="trimtab")
    # The agent's own limits bound the run; LangGraph's count of node visits must not cut it off before.
    return compiled.with_config(recursion_limit=2 * (rt.limits.steps or 100_000) + 10)


def _runnable(node: Node) -> RunnableLambda[State, dict[str, Any]]:
    async def later(state: State) -> dict[str, Any]:
        return await node(state, _emit())

    def now(state: State) -> dict[str, Any]:
        return portal.call(node(state, _emit()))  # type: ignore[arg-type]

    return RunnableLambda(now, afunc=later)


def _emit() -> loop.Emit:
    writer = get_stream_writer()

    def emit(event: Event) -> None:
        writer(event)

    return emit


def _open_run(rt: loop.Runtime, run_id: str | None) -> RunState | None:
    """The run to go on with: one that is known and not ended. After a thread's earlier run a new one begins."""
    if run_id is None:
        return None
    try:
        run = rt.journal().state(run_id)
    except NotFound:
        return None
    return None if run.ended else run


def _moved_on(run: RunState, messages: Sequence[Message]) -> bool:
    """Whether a thread has had another message of the user's since its run was stopped by a limit."""
    began = [m.content for m in run.messages[: run.given] if m.role == "user"]
    asked = [m.content for m in messages if m.role == "user"]
    return run.stopped is not None and bool(asked) and (len(asked), asked[-1:]) != (len(began), began[-1:])


def _messages(state: State) -> tuple[Message, ...]:
    given = convert_to_openai_messages(list(state.get("messages") or []))
    out = []
    for message in given if isinstance(given, list) else [given]:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
        out.append(Message.from_openai({**message, "content": content}))
    if state.get("task"):
        out.append(Message("user", state["task"]))
    return tuple(out)


def _said(state: State) -> dict[str, Any]:
    """A task as the turn of the user that it is, and cleared, or a thread would do it again at each call."""
    return {"messages": [HumanMessage(state["task"])], "task": ""} if state.get("task") else {}


def _made(run: RunState) -> list[BaseMessage]:
    """The messages a run added, as LangChain's; where it stopped, a last one says why."""
    out = [_langchain(message) for message in run.messages[run.given :]]
    if run.stopped is not None:
        out.append(
            AIMessage(f"(stopped: {run.stopped.reason})", response_metadata={"trimtab_stopped": run.stopped.kind})
        )
    return out


def _langchain(message: Message) -> BaseMessage:
    if message.role == "tool":
        return ToolMessage(message.content or "", tool_call_id=message.tool_call_id)
    if message.role == "system":
        return SystemMessage(message.content or "")
    calls = [{"id": c.id, "name": c.name, "args": json.loads(c.arguments)} for c in message.tool_calls]
    return AIMessage(message.content or "", tool_calls=calls)
