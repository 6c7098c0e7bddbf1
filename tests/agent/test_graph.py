"""The agent's graph as others use it: by itself and as a node of a graph of theirs."""

from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from trimtab.agent import Agent, Journal, Limits, RoutingPolicy
from trimtab.agent.testing import ReplayEngine, call
from trimtab.errors import BadInput, EngineUnavailable
from trimtab.models.chat import Message, ToolCall
from trimtab.tools import tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def agent(script: Any, **options: Any) -> Any:
    engine = script if isinstance(script, ReplayEngine) else ReplayEngine(script)
    return Agent([add], engine=engine, journal=Journal(":memory:"), policy=RoutingPolicy(), **options)


def parent(node: Any, state: Any = MessagesState) -> Any:
    graph = StateGraph(state)
    graph.add_node("agent", node)
    graph.add_edge(START, "agent")
    graph.add_edge("agent", END)
    return graph


async def test_by_itself() -> None:
    out = await agent([call("add", a=1, b=2), "3"]).graph().ainvoke({"task": "one and two"})
    assert out["answer"] == "3"
    assert out["result"]["steps"][1]["result"] == "3"
    assert [type(m) for m in out["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]


@pytest.mark.parametrize("synchronous", [False, True])
async def test_as_a_node_of_a_chat_graph(synchronous: bool) -> None:
    engine: Any = ReplayEngine([call("add", a=1, b=2), "3", "again"])
    graph = parent(agent(engine).graph()).compile()
    given = {"messages": [("system", "Be brief."), ("user", "hi"), ("ai", "hello"), ("user", "one and two")]}
    out = graph.invoke(given) if synchronous else await graph.ainvoke(given)
    assert [m.type for m in out["messages"]] == ["system", "human", "ai", "human", "ai", "tool", "ai"]
    assert out["messages"][-1].content == "3"
    assert out["messages"][4].tool_calls[0]["args"] == {"a": 1, "b": 2}
    assert [m.role for m in engine.requests[0].messages] == ["system", "user", "assistant", "user"]
    out["messages"].append(HumanMessage("and again"))
    assert (await graph.ainvoke(out))["messages"][-1].content == "again"
    assert len(engine.requests[2].messages) == 8


async def test_as_a_node_of_a_graph_with_its_own_state() -> None:
    class Mine(TypedDict, total=False):
        task: str
        answer: str
        loud: str

    graph = parent(agent([call("add", a=1, b=2), "three"]).graph(), Mine)
    graph.add_node("shout", lambda state: {"loud": state["answer"].upper()})
    graph.add_edge("agent", "shout")
    out = await graph.compile().ainvoke({"task": "one and two"})
    assert out["loud"] == "THREE"


async def test_a_parents_checkpointer_repeats_nothing_that_was_done() -> None:
    acts = []

    @tool
    def act() -> str:
        """Act."""
        acts.append(1)
        return "done"

    script: Any = [call("act"), EngineUnavailable("gone"), "ok"]
    one = Agent([act], engine=ReplayEngine(script), journal=Journal(":memory:"), policy=RoutingPolicy())
    graph = parent(one.graph()).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(EngineUnavailable):
        await graph.ainvoke({"messages": [("user", "go")]}, config)
    out = await graph.ainvoke(None, config)
    assert out["messages"][-1].content == "ok"
    assert acts == [1]
    assert len(one.journal.runs()) == 1


async def test_a_thread_of_the_graph_itself_begins_a_new_run_for_each_message() -> None:
    one = agent(["a", "b"])
    graph = one.graph(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    await graph.ainvoke({"messages": [("user", "first")]}, config)
    out = await graph.ainvoke({"messages": [("user", "second")]}, config)
    assert [m.content for m in out["messages"]] == ["first", "a", "second", "b"]
    assert len(one.journal.runs()) == 2


async def test_a_task_is_the_users_turn_in_a_thread_and_is_done_once() -> None:
    engine: Any = ReplayEngine(["a", "b", "c"])
    graph = agent(engine).graph(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    await graph.ainvoke({"task": "first"}, config)
    out = await graph.ainvoke({"messages": [("user", "second")]}, config)
    assert out["answer"] == "b"
    await graph.ainvoke({"task": "third"}, config)
    assert [m.content for m in engine.requests[1].messages] == ["first", "a", "second"]
    assert [m.content for m in engine.requests[2].messages] == ["first", "a", "second", "b", "third"]


async def test_a_task_given_again_after_an_error_is_one_turn() -> None:
    graph = agent([EngineUnavailable("gone"), "a"]).graph(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(EngineUnavailable):
        await graph.ainvoke({"task": "first"}, config)
    out = await graph.ainvoke({"task": "first"}, config)
    assert [m.content for m in out["messages"]] == ["first", "a"]


async def test_calls_of_an_earlier_run_of_the_thread_keep_their_ids_to_themselves() -> None:
    first = Message("assistant", None, (ToolCall("", "add", '{"a": 1, "b": 1}'),))
    broken = Message("assistant", None, (ToolCall("", "add", '{"a": 1}'),))
    small: Any = ReplayEngine([first, "2", broken, broken], profiles=["sums"])
    large: Any = ReplayEngine(["big"])
    policy = RoutingPolicy({"sums": ("add",)})
    one = Agent([add], engine=small, large=large, journal=Journal(":memory:"), policy=policy)
    graph = one.graph(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    await graph.ainvoke({"messages": [("user", "first")]}, config)
    await graph.ainvoke({"messages": [("user", "second")]}, config)
    # What is kept from the large engine is the broken call of this run, not the good one of the run before.
    shown = large.requests[0].messages
    assert [m.role for m in shown] == ["user", "assistant", "tool", "assistant", "user"]
    assert shown[1].tool_calls[0].id == shown[2].tool_call_id


async def test_a_message_after_a_stopped_run_begins_a_new_one() -> None:
    one = agent([call("add", a=1, b=1), call("add", a=2, b=2), "b"], limits=Limits(steps=1))
    graph = one.graph(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    out = await graph.ainvoke({"messages": [("user", "first")]}, config)
    assert "the limit of 1 steps" in out["messages"][-1].content
    await graph.ainvoke(None, config)
    await graph.ainvoke({"messages": []}, config)  # nothing was said, so the run goes on
    assert len(one.journal.runs()) == 1
    await graph.ainvoke({"messages": [("user", "second")]}, config)
    assert [run.task for run in one.journal.runs()] == ["second", "first"]


async def test_a_stopped_run_says_so_in_its_last_message() -> None:
    graph = agent([call("add", a=1, b=1)], limits=Limits(steps=1)).graph()
    out = await graph.ainvoke({"task": "go"})
    assert "the limit of 1 steps is reached" in out["messages"][-1].content
    assert out["result"]["stopped"]["kind"] == "steps"


async def test_long_runs_are_bounded_by_the_limits_alone() -> None:
    numbers = iter(range(1000))
    script = ReplayEngine(lambda request: call("add", a=next(numbers), b=1) if len(request.messages) < 80 else "end")
    assert (await agent(script, limits=Limits(steps=100, tool_calls=None)).arun("count")).answer == "end"


async def test_nothing_to_do() -> None:
    with pytest.raises(BadInput, match="no user message"):
        await agent(["x"]).graph().ainvoke({"messages": []})
