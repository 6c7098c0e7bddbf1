"""One run under control: every answer of the model is given, everything else is real."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from decimal import Decimal
from typing import Any

import pytest
from trimtab.agent import Agent, Journal, Limits, RoutingPolicy
from trimtab.agent.steps import Step
from trimtab.agent.testing import ReplayEngine, call, calls
from trimtab.errors import BadInput, EngineRefused, EngineUnavailable, LimitExceeded, NotFound, TrimtabError
from trimtab.models.chat import Message, Reply, ToolCall, Usage
from trimtab.models.price import Price
from trimtab.tools import tool


@tool
def add(a: int, b: int) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@tool
def fail() -> None:
    """Fail."""
    raise RuntimeError("the roof is leaking")


FAMILY = RoutingPolicy({"sums": ("add", "fail")})


def agent(script: Any, *, tools: Any = (add,), large: Any = None, **options: Any) -> Any:
    engine = script if isinstance(script, ReplayEngine) else ReplayEngine(script)
    options.setdefault("policy", FAMILY)
    return Agent(tools, engine=engine, large=large, journal=Journal(":memory:"), **options)


def kinds(result: Any) -> list[str]:
    return [step.tool or step.route.engine for step in result.steps]


async def test_an_answer_without_calls_ends_the_run() -> None:
    result = await agent(["Good morning."]).arun("hello")
    assert result.answer == "Good morning."
    assert result.stopped is None
    assert len(result.steps) == 1


async def test_results_go_back_as_tool_messages_and_the_conversation_has_no_system_message() -> None:
    engine: Any = ReplayEngine([call("add", a=2, b=3), "5"])
    result = await agent(engine).arun("two and three")
    assert result.answer == "5"
    first, second = engine.requests
    assert [m.role for m in first.messages] == ["user"]
    assert first.tools == (add.spec(),)
    assert [m.role for m in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[2].content == '{"sum": 5}'
    assert second.messages[2].tool_call_id == second.messages[1].tool_calls[0].id
    assert result.steps[1].arguments == {"a": 2, "b": 3}
    assert result.steps[1].ok


async def test_instructions_become_the_system_message() -> None:
    engine: Any = ReplayEngine(["ok"])
    await agent(engine, instructions="Be brief.").arun("hello")
    assert [(m.role, m.content) for m in engine.requests[0].messages] == [("system", "Be brief."), ("user", "hello")]


async def test_plain_functions_are_tools() -> None:
    def shout(text: str) -> str:
        """Say it loudly."""
        return text.upper()

    result = await agent([call("shout", text="hey"), "HEY"], tools=[shout]).arun("shout hey")
    assert result.steps[1].result == '"HEY"'


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("add", '{"a": 1, "b"', "JSON"),
        ("add", "false", "object"),
        ("add", '{"a": 1}', "b"),
        ("add", '{"a": "one", "b": 2}', "a"),
        ("add", '{"a": 1, "b": 2, "c": 3}', "c"),
        ("subtract", '{"a": 1, "b": 2}', "unknown tool 'subtract'"),
    ],
)
async def test_an_invalid_call_is_shown_its_error_and_repaired(name: str, arguments: str, says: str) -> None:
    engine: Any = ReplayEngine([calls((name, arguments)), call("add", a=1, b=2), "3"])
    result = await agent(engine).arun("one and two")
    assert result.answer == "3"
    shown = engine.requests[1].messages[-1]
    assert shown.role == "tool"
    assert shown.content.startswith('{"error": ')
    assert says in shown.content
    assert says in result.steps[0].error
    # Engines read arguments as JSON objects: a broken text is never sent again, but the trajectory keeps it.
    assert engine.requests[1].messages[-2].tool_calls[0].arguments in ("{}", arguments)
    assert result.steps[0].calls[0].arguments == arguments
    assert [step.ok for step in result.steps if step.kind == "tool"] == [False, True]


async def test_a_call_left_in_the_text_is_an_invalid_call_not_an_answer() -> None:
    broken = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": </tool_call>'
    result = await agent([broken, call("add", a=1, b=2), "3"]).arun("one and two")
    assert result.answer == "3"
    assert result.steps[1].tool == "add"
    assert not result.steps[1].ok


async def test_without_tools_the_mark_of_a_call_is_text() -> None:
    said = "Hermes models write <tool_call> before a call."
    assert (await agent([said], tools=()).arun("explain Hermes")).answer == said


@pytest.mark.parametrize("depth", [90, 150, 900, 20_000])
async def test_arguments_however_deep_do_not_end_a_run(depth: int) -> None:
    @tool
    def look(data: dict[str, Any]) -> str:
        """Look at it."""
        return "seen"

    text = f'{{"data": {{"a": {"[" * depth}{"]" * depth}}}}}'
    result = await agent([calls(("look", text)), "done"], tools=[look]).arun("go")
    assert result.answer == "done"
    assert result.steps[1].ok is (depth < 100)
    assert result.steps[0].calls[0].arguments == text
    assert json.loads(json.dumps(result.to_json()))["steps"][1]["call_id"] == "call_0"


async def test_valid_calls_beside_an_invalid_one_run() -> None:
    engine: Any = ReplayEngine([calls(("add", {"a": 1, "b": 1}), ("nope", {})), "2"])
    result = await agent(engine).arun("go")
    assert [m.content[:8] for m in engine.requests[1].messages[2:]] == ['{"sum": ', '{"error"']
    assert result.answer == "2"


async def test_still_invalid_after_one_repair_goes_to_the_large_engine_which_sees_no_broken_attempt() -> None:
    large: Any = ReplayEngine([call("add", a=1, b=2)], model="big")
    small: Any = ReplayEngine([calls(("add", "{")), calls(("add", "{{")), "3"], profiles=["sums"])
    result = await agent(small, large=large).arun("one and two")
    assert result.answer == "3"
    assert kinds(result) == ["small", "add", "small", "large", "add", "small"]
    assert "still invalid after one repair" in result.steps[3].route.reason
    assert result.steps[3].model == "big"
    assert [m.role for m in large.requests[0].messages] == ["user"]
    assert [m.role for m in small.requests[2].messages] == ["user", "assistant", "tool"]


async def test_still_invalid_without_large_engine_stops_and_loses_nothing() -> None:
    result = await agent([calls(("add", "{")), calls(("add", "{"))]).arun("one and two")
    assert result.answer == ""
    assert result.stopped.kind == "invalid"
    assert "no large engine" in result.stopped.reason
    assert kinds(result) == ["small", "add", "small"]
    with pytest.raises(TrimtabError, match="still invalid"):
        result.raise_for_stop()


async def test_the_large_engine_may_repair_its_own_call_once() -> None:
    small: Any = ReplayEngine([calls(("add", "{")), calls(("add", "{")), "3"], profiles=["sums"])
    large: Any = ReplayEngine([calls(("add", "[")), call("add", a=1, b=2)])
    result = await agent(small, large=large).arun("one and two")
    assert result.answer == "3"
    assert kinds(result) == ["small", "add", "small", "large", "add", "large", "add", "small"]


async def test_an_empty_answer_goes_to_the_large_engine() -> None:
    result = await agent(
        ReplayEngine([Message("assistant", "  ")], profiles=["sums"]), large=ReplayEngine(["42"])
    ).arun("what is it?")
    assert result.answer == "42"
    assert "empty" in result.steps[1].route.reason
    assert result.steps[0].error == "the answer was empty"


async def test_two_empty_answers_stop() -> None:
    result = await agent(ReplayEngine([""], profiles=["sums"]), large=ReplayEngine([""])).arun("what is it?")
    assert result.stopped.kind == "empty"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_half_an_answer_goes_to_the_large_engine_else_it_stops(reason: str) -> None:
    half = Reply(Message("assistant", "The refund is 1"), reason, Usage(5, 3), 0.1)
    result = await agent(ReplayEngine([half], profiles=["sums"]), large=ReplayEngine(["120"])).arun("refund?")
    assert (result.answer, kinds(result)) == ("120", ["small", "large"])
    assert [step.finish_reason for step in result.steps] == [reason, "stop"]
    alone = await agent([half]).arun("refund?")
    assert (alone.answer, alone.stopped.kind, alone.steps[0].text) == ("", "cut", "The refund is 1")
    assert ("after 3 tokens: Sampling(max_tokens=...)" in alone.stopped.reason) is (reason == "length")
    both = agent(ReplayEngine([half], profiles=["sums"]), large=ReplayEngine([half]))
    assert (await both.arun("refund?")).stopped.kind == "cut"
    assert Step.from_json({k: v for k, v in alone.steps[0].to_json().items() if k != "finish_reason"}).text


async def test_a_loop_goes_to_the_large_engine_once_and_then_stops() -> None:
    small: Any = ReplayEngine(lambda request: call("add", a=1, b=1), profiles=["sums"])
    large: Any = ReplayEngine(lambda request: call("add", b=1, a=1))
    result = await agent(small, large=large).arun("one and one")
    assert result.stopped.kind == "loop"
    assert "add" in result.stopped.reason
    assert len(large.requests) == 1
    assert kinds(result) == ["small", "add"] * 3 + ["large", "add"]


async def test_a_loop_that_the_large_engine_ends_comes_to_an_answer() -> None:
    small: Any = ReplayEngine(lambda request: call("add", a=1, b=1), profiles=["sums"])
    result = await agent(small, large=ReplayEngine(["2"])).arun("one and one")
    assert result.answer == "2"
    assert "three times" in result.steps[-1].route.reason


async def test_a_loop_without_large_engine_stops() -> None:
    result = await agent(ReplayEngine(lambda request: call("fail")), tools=[fail]).arun("go")
    assert result.stopped.kind == "loop"
    assert kinds(result) == ["small", "fail"] * 3


async def test_the_same_call_with_new_results_is_no_loop() -> None:
    count = iter(range(100))

    def tick() -> int:
        """Count."""
        return next(count)

    result = await agent([*[call("tick")] * 6, "six"], tools=[tick]).arun("count to six")
    assert result.answer == "six"


async def test_a_raising_tool_is_shown_to_the_model() -> None:
    engine: Any = ReplayEngine([call("fail"), "It failed."])
    result = await agent(engine, tools=[fail]).arun("go")
    assert "the roof is leaking" in engine.requests[1].messages[-1].content
    assert result.steps[1].error is not None
    assert result.answer == "It failed."


async def test_a_huge_result_is_cut() -> None:
    def dump() -> str:
        """Give ten megabytes."""
        return "x" * 10_000_000

    engine: Any = ReplayEngine([call("dump"), "much"])
    result = await agent(engine, tools=[dump]).arun("go")
    assert len(engine.requests[1].messages[-1].content) < 100_000
    assert result.answer == "much"


async def test_calls_of_one_message_run_side_by_side_and_answer_in_order() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(name: str) -> str:
        """Wait for the other one."""
        both.wait()
        time.sleep(0.2 if name == "a" else 0)
        return name

    engine: Any = ReplayEngine([calls(("meet", {"name": "a"}), ("meet", {"name": "b"})), "met"])
    result = await agent(engine, tools=[meet]).arun("meet")
    assert [m.content for m in engine.requests[1].messages[2:]] == ['"a"', '"b"']
    assert all(step.ok for step in result.steps if step.kind == "tool")
    assert [step.arguments["name"] for step in result.steps if step.kind == "tool"] == ["b", "a"]


async def test_calls_that_change_something_run_in_order() -> None:
    kept: Any = []

    @tool(changes=True)
    async def keep(n: int, seconds: float) -> None:
        """Keep a number, after a while."""
        await asyncio.sleep(seconds)
        kept.append(n)

    script: Any = [calls(*(("keep", {"n": n, "seconds": (3 - n) / 50}) for n in range(3))), "done"]
    await agent(script, tools=[keep]).arun("go")
    assert kept == [0, 1, 2]


async def test_a_destructive_call_keeps_its_place() -> None:
    log: Any = []

    async def slow(n: int) -> None:
        """Write a number down, slowly."""
        await asyncio.sleep(0.05)
        log.append(n)

    @tool(destructive=True)
    async def wipe() -> None:
        """Forget everything."""
        log.append("wipe")

    script: Any = [calls(("slow", {"n": 1}), ("slow", {"n": 2}), ("wipe", {}), ("slow", {"n": 3})), "done"]
    await agent(script, tools=[slow, wipe]).arun("go")
    assert set(log[:2]) == {1, 2}
    assert log[2:] == ["wipe", 3]


async def test_call_ids_are_made_unique() -> None:
    engine: Any = ReplayEngine(
        [call("add", a=1, b=1), calls(("add", {"a": 2, "b": 2}), ("add", {"a": 3, "b": 3})), "ok"]
    )
    await agent(engine).arun("go")
    ids = [c.id for m in engine.requests[2].messages for c in m.tool_calls]
    assert len(set(ids)) == 3
    assert [m.tool_call_id for m in engine.requests[2].messages if m.role == "tool"] == ids


async def test_own_ids_are_free_ones() -> None:
    sent = [
        ToolCall(one, "add", f'{{"a": {n}, "b": 0}}') for n, one in enumerate(("call_0_1", "call_0_1", "", "call_0_2"))
    ]
    engine: Any = ReplayEngine([Message("assistant", None, tuple(sent)), "ok"])
    await agent(engine).arun("go")
    shown = engine.requests[1].messages
    ids = [c.id for m in shown for c in m.tool_calls]
    assert len(set(ids)) == 4
    results = {m.tool_call_id: m.content for m in shown if m.role == "tool"}
    assert [results[one] for one in ids] == [f'{{"sum": {n}}}' for n in range(4)]


HALF = "\ud83d"


async def test_half_a_character_of_an_engine_poisons_no_run() -> None:
    sent = [ToolCall(f"a{HALF}", "add", '{"a": 1, "b": 2}'), ToolCall("b", f"add{HALF}", "{}")]
    sent.append(ToolCall("c", "say", f'{{"text": "{HALF}"}}'))
    said: Any = []

    @tool(changes=True)
    def say(text: str) -> str:
        """Say it."""
        said.append(text)
        return text

    script: Any = [Message("assistant", f"hi {HALF}", tuple(sent)), call("say", text="x"), f"done {HALF} \U0001f600"]
    engine: Any = ReplayEngine(script)
    one = agent(engine, tools=[add, say])
    result = await one.arun("go")
    assert result.answer == "done \ufffd \U0001f600"
    assert sorted(bool(step.ok) for step in result.steps if step.kind == "tool") == [False, False, True, True]
    assert said == ["x"]  # a tool does not act on a text that nobody wrote
    json.dumps([result.to_json(), [m.to_openai() for m in engine.requests[-1].messages]], ensure_ascii=False).encode()


async def test_half_a_character_in_a_task_is_refused() -> None:
    one = agent(["x"])
    with pytest.raises(BadInput, match="half of a Unicode character at place 4"):
        await one.arun(f"caf{HALF}")
    with pytest.raises(BadInput, match="half of a Unicode character"):
        await one.graph().ainvoke({"task": HALF})
    assert one.journal.runs() == []


# --- limits ---


@pytest.mark.parametrize(
    ("limits", "kind", "limit"),
    [
        (Limits(steps=3), "steps", 3),
        (Limits(tool_calls=1), "tool_calls", 1),
        (Limits(tokens=25), "tokens", 25),
        (Limits(seconds=0.3), "seconds", 0.3),
    ],
)
async def test_limits_stop_a_run_and_keep_what_was_done(limits: Limits, kind: str, limit: float) -> None:
    numbers = iter(range(1000))

    async def script(request: Any) -> Any:
        await asyncio.sleep(0.1)
        return call("add", a=next(numbers), b=0)

    engine: Any = ReplayEngine(script, usage=Usage(9, 2))
    result = await agent(engine, limits=limits).arun("count")
    assert result.stopped.kind == kind
    assert result.stopped.limit == limit
    assert result.stopped.value >= limit or kind in ("steps", "tool_calls")
    assert result.steps
    with pytest.raises(LimitExceeded) as raised:
        result.raise_for_stop()
    assert (raised.value.kind, raised.value.limit) == (kind, limit)


async def test_a_hanging_engine_and_a_hanging_tool_end_with_the_time() -> None:
    async def hang(request: Any) -> Any:
        await asyncio.sleep(60)

    began = time.monotonic()
    result = await agent(ReplayEngine(hang), limits=Limits(seconds=0.2)).arun("go")
    assert result.stopped.kind == "seconds"

    async def sleep() -> None:
        """Sleep."""
        await asyncio.sleep(60)

    result = await agent([call("sleep")], tools=[sleep], limits=Limits(seconds=0.2)).arun("go")
    assert result.stopped.kind == "seconds"
    assert time.monotonic() - began < 10


async def test_tokens_that_nobody_counted_are_bounded_by_bytes() -> None:
    numbers = iter(range(1000))
    engine: Any = ReplayEngine(lambda request: call("add", a=next(numbers), b=0))
    result = await agent(engine, limits=Limits(tokens=1500)).arun("count")
    assert result.stopped.kind == "tokens"
    assert result.usage == Usage(None, None, None)


async def test_a_stopped_run_goes_on_with_a_higher_limit() -> None:
    journal = Journal(":memory:")
    engine: Any = ReplayEngine([call("add", a=1, b=1), "2"])
    policy = RoutingPolicy()
    short: Any = Agent([add], engine=engine, journal=journal, policy=policy, limits=Limits(steps=2))
    stopped: Any = await short.arun("one and one")
    assert stopped.stopped.kind == "steps"
    result = await Agent([add], engine=engine, journal=journal, policy=policy).arun(resume=stopped.run_id)
    assert result.answer == "2"
    assert result.stopped is None
    assert result.steps[:2] == stopped.steps


# --- routes ---


async def test_the_family_of_the_tools_gives_the_profile() -> None:
    engine: Any = ReplayEngine(["ok"], profiles=["sums"])
    result = await agent(engine, policy=FAMILY).arun("one and one")
    route = result.steps[0].route
    assert (route.profile, route.engine, route.tools) == ("sums", "small", ("add",))
    assert engine.requests[0].profile == "sums"
    assert result.receipts[0].profile == "sums"


async def test_a_profile_by_name_is_taken_and_never_handed_on() -> None:
    small: Any = ReplayEngine(["", "x"], profiles=["other"])
    large: Any = ReplayEngine(["never"])
    result = await agent(small, large=large, policy=FAMILY, profile="other").arun("one and one")
    assert result.steps[0].route.reason == "profile other was asked for"
    assert result.stopped.kind == "empty"
    assert "asked for" in result.stopped.reason
    assert not large.requests


async def test_an_unknown_profile_is_an_error_before_any_tool_acts() -> None:
    with pytest.raises(NotFound, match="nope"):
        await agent(["x"], profile="nope").arun("hello")


async def test_a_label_narrows_the_tools_and_other_goes_to_the_large_engine() -> None:
    tools = [add, fail]
    policy = RoutingPolicy({"sums": ("add",), "ruin": ("fail",)}, lambda text: ("sums", 0.9))
    engine: Any = ReplayEngine(["ok"], profiles=["sums", "ruin"])
    result = await agent(engine, tools=tools, policy=policy).arun("one and one")
    assert result.steps[0].route.confidence == 0.9
    assert engine.requests[0].tools == (add.spec(),)
    unsure = RoutingPolicy(policy.families, lambda text: ("sums", 0.5))
    large: Any = ReplayEngine(["big"])
    result = await agent(engine, tools=tools, large=large, policy=unsure).arun("one and one")
    assert result.answer == "big"
    assert large.requests[0].tools == (add.spec(), fail.spec())
    assert "0.50 < 0.60" in result.steps[0].route.reason


# --- money ---


async def test_cost_and_usage_add_up_and_unknown_stays_unknown() -> None:
    prices = {"replay": Price(input=Decimal("0.01"), output=Decimal("0.1"))}
    script: Any = [call("add", a=1, b=1), "2"]
    priced = await agent(ReplayEngine(script, usage=Usage(10, 2, 0)), prices=prices).arun("go")
    assert priced.usage == Usage(20, 4, 0)
    assert priced.cost.usd == Decimal("0.6")
    assert priced.to_json()["cost"] == priced.cost.as_dict()
    unpriced = await agent(ReplayEngine(script, usage=Usage(10, 2)), prices={}).arun("go")
    assert unpriced.cost is None
    half = Reply(Message("assistant", "2"), "stop", Usage(), 0.1)
    unknown = await agent(ReplayEngine([script[0], half], usage=Usage(10, 2)), prices=prices).arun("go")
    assert unknown.usage == Usage(None, None, None)
    assert unknown.cost is None


async def test_a_call_without_an_answer_is_of_unknown_cost_and_a_refused_one_of_none() -> None:
    prices = {"replay": Price(input=Decimal("0.01"), output=Decimal("0.1"))}

    async def script(request: Any) -> Any:
        if len(request.messages) > 1:
            await asyncio.sleep(60)
        return call("add", a=1, b=1)

    late = agent(ReplayEngine(script, usage=Usage(10, 2, 0)), prices=prices, limits=Limits(seconds=0.3))
    result = await late.arun("go")
    assert result.stopped.kind == "seconds"
    assert (result.usage, result.cost) == (Usage(), None)
    assert "no answer" in result.steps[-1].error
    assert late.result(result.run_id) == result
    for error, usage in ((EngineUnavailable("gone"), Usage()), (EngineRefused("too long"), Usage(10, 2, 0))):
        one = agent(ReplayEngine([call("add", a=1, b=1), error], usage=Usage(10, 2, 0)), prices=prices)
        with pytest.raises(type(error)):
            await one.arun("go")
        so_far = one.result(one.journal.runs()[0].run_id)
        assert (so_far.usage, so_far.cost is None) == (usage, usage == Usage())


async def test_an_answer_that_cannot_be_routed_is_asked_for_nowhere() -> None:
    """An engine that does not open was not asked: nothing is unknown."""
    broken: Any = Agent([add], engine="transformers", model="no-such-model", large=None, journal=Journal(":memory:"))
    with pytest.raises(NotFound):
        await broken.graph().ainvoke({"task": "go"})
    so_far = broken.result(broken.journal.runs()[0].run_id)
    assert (so_far.usage, so_far.cost.usd) == (Usage(0, 0, 0), 0)


# --- the ways to run ---


async def test_stream_yields_every_step_as_it_ends_and_the_result_last() -> None:
    events = [event async for event in agent([call("add", a=1, b=1), "2"]).stream("go")]
    assert [event.kind for event in events] == ["start", "step", "step", "step", "end"]
    assert [event.step.index for event in events[1:4]] == [0, 1, 2]
    assert events[-1].result.steps == tuple(event.step for event in events[1:4])


def test_run_works_without_and_within_a_running_loop() -> None:
    one = agent(["a", "b"])
    assert one.run("x").answer == "a"

    async def inside() -> Any:
        return await asyncio.to_thread(one.run, "y")

    assert asyncio.run(inside()).answer == "b"


def test_a_forked_child_runs_agents_of_its_own() -> None:
    code = """
import os
from trimtab.agent import Agent, Journal
from trimtab.agent.testing import ReplayEngine
def run(said):
    agent = Agent(engine=ReplayEngine([said]), journal=Journal(":memory:"))
    print(agent.run("go").answer, flush=True)
run("parent")
if os.fork() == 0:
    run("child")
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["parent", "child"], done.stderr


async def test_an_agent_is_a_tool_of_another_and_shares_its_budget() -> None:
    inner = agent([call("add", a=1, b=1), "2"])

    @tool
    async def ask(question: str) -> str:
        """Ask a colleague."""
        return str((await inner.arun(question)).answer)

    roomy = await agent([call("ask", question="1+1?"), "2"], tools=[ask]).arun("ask")
    assert roomy.answer == "2"
    inner = agent([call("add", a=1, b=1), "2"])
    tight = await agent([call("ask", question="1+1?"), "2"], tools=[ask], limits=Limits(steps=4)).arun("ask")
    assert tight.stopped.kind == "steps"


async def test_many_runs_of_one_agent_at_once_do_not_mix() -> None:
    async def script(request: Any) -> Any:
        await asyncio.sleep(0.01)
        n = int(request.messages[0].content)
        return call("add", a=n, b=n) if len(request.messages) == 1 else request.messages[-1].content

    one = agent(ReplayEngine(script))
    results = await asyncio.gather(*(one.arun(str(n)) for n in range(20)))
    assert [r.answer for r in results] == [f'{{"sum": {2 * n}}}' for n in range(20)]
    assert len({r.run_id for r in results}) == 20


async def test_engines_given_as_objects_are_not_closed() -> None:
    engine: Any = ReplayEngine(["a"])
    async with agent(engine) as one:
        await one.arun("x")
    assert not engine.closed


async def test_an_engine_error_is_raised_and_the_run_can_be_resumed() -> None:
    journal = Journal(":memory:")
    broken = ReplayEngine([call("add", a=1, b=1), EngineUnavailable("it went away")])
    with pytest.raises(EngineUnavailable):
        await Agent([add], engine=broken, journal=journal, policy=RoutingPolicy()).arun("go")
    run_id = journal.runs()[0].run_id
    assert journal.runs()[0].status == "open"
    engine: Any = ReplayEngine(["2"])
    result = await Agent([add], engine=engine, journal=journal, policy=RoutingPolicy()).arun(resume=run_id)
    assert result.answer == "2"
    assert [m.role for m in engine.requests[0].messages] == ["user", "assistant", "tool"]


async def test_bad_input() -> None:
    with pytest.raises(BadInput, match="no task"):
        await agent(["x"]).arun("  ")
    with pytest.raises(NotFound, match="no run"):
        await agent(["x"]).arun(resume="20260101-000000-abcdef")
    with pytest.raises(BadInput, match="two tools"):
        agent(["x"], tools=[add, add])
    with pytest.raises(BadInput, match="limit"):
        Limits(steps=-1)
    with pytest.raises(EngineRefused):
        await agent([EngineRefused("too long")]).arun("x")
    one = agent(["x"])
    done = await one.arun("x")
    with pytest.raises(BadInput, match="another task"):
        await one.arun("y", resume=done.run_id)
    assert await one.arun(resume=done.run_id) == done
