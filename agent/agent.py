"""The agent: tools, a profile and an engine, and a task at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ..errors import BadInput
from ..models.chat import Message, Sampling
from ..models.engine import Engine
from . import loop, portal
from .engines import STAND_IN, EngineRoom, EngineSpec, engine_spec, large_spec
from .events import RunState
from .journal import Journal
from .limits import Limits
from .policy import Policy, default_policy
from .steps import Event, Result

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from ..models.price import Price
    from ..tools import Tool


class Agent:
    """Runs tasks with tools on a small model, each step under a profile, hard steps on a large one.

        with Agent(tools=[weather], engine="vllm") as agent:
            print(agent.run("Will it rain in Oslo?").answer)

    Inside `with` (or `async with`) engines stay open from one run to the next. Without, each run opens and closes its
    own.

    Args:
        tools: `Tool` objects or plain typed functions.
        profile: `name`, `name@version` or `name@sha256:...` for every step; None lets the policy choose.
        engine: `vllm`, `transformers`, a URL, or an `Engine`, which stays yours to close.
        model: the model to serve, or at a URL the id to ask for; None is the embedded one, or the URL's only one.
        large: where hard steps go: as `engine`, or None for nowhere. By default the embedded stand-in on the same kind
            of engine; beside a URL or an `Engine` there is none.
        large_model: as `model`, for the large engine.
        limits: bounds of one run.
        policy: routes each model step; None is `default_policy()`.
        journal: where runs are recorded; None is `journal.db` under `home()`.
        instructions: a system message; none by default, the embedded models are trained without.
        sampling: None takes the profile's decoding defaults, else greedy.
        prices: USD prices by model id; None are the packaged ones.
        progress: told what engines do while they come up.
        note: JSON fields kept in the journal with every run.

    Raises:
        BadInput: two tools of one name, a function that makes no tool, an Engine object together with `model`.
    """

    def __init__(
        self,
        tools: Iterable[Tool | Callable[..., Any]] | Mapping[str, Tool] = (),
        profile: str | None = None,
        engine: str | Engine = "vllm",
        *,
        model: str | None = None,
        large: str | Engine | None = STAND_IN,
        large_model: str | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        journal: Journal | Path | None = None,
        instructions: str | None = None,
        sampling: Sampling | None = None,
        prices: Mapping[str, Price] | None = None,
        progress: Callable[[str], None] | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        self._given_policy, self._given_journal, self._given_prices = policy, journal, prices
        small = engine_spec(engine, model)
        self._specs = small, large_spec(large, large_model, small), progress
        self._rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, EngineRoom] = WeakKeyDictionary()
        self._users: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()
        named = _toolset(tools)
        about = {
            "profile": profile,
            "engine": _spec_json(small),
            "large": _spec_json(self._specs[1]),
            "tools": list(named),
            **(note or {}),
        }
        self._rt = loop.Runtime(
            tools=named,
            policy=lambda: self._policy,
            limits=limits or Limits(),
            room=self._room,
            journal=lambda: self.journal,
            prices=lambda: self._prices,
            profile=profile,
            instructions=instructions,
            sampling=sampling,
            about=about,
        )

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools, in the order given."""
        return tuple(self._rt.tools.values())

    @cached_property
    def journal(self) -> Journal:
        """The record of this agent's runs. Raises TrimtabError where it cannot be written."""
        given = self._given_journal
        return given if isinstance(given, Journal) else Journal(given)

    def run(self, task: str | None = None, *, resume: str | None = None) -> Result:
        """Run a task and wait for it. See `arun`; also raises BadInput when called from the agent's own event loop."""
        return portal.call(self.arun(task, resume=resume))

    async def arun(self, task: str | None = None, *, resume: str | None = None) -> Result:
        """Run a task, or go on with a run that was killed or stopped.

        Args:
            task: what to do; with `resume` it may be left out.
            resume: the id of the run to go on with. Tool calls that had ended are not repeated. One that was cut off is
                made again, unless its tool changes something: then the model is told that the outcome is unknown. A run
                that had come to its answer gives the recorded result.

        Returns:
            The result. Where a limit, a loop or invalid calls ended the run, `stopped` says so and everything up to
            there is in it.

        Raises:
            NotFound: no such run, profile or model.
            BadInput: a resumed run has another task or other tools, or is going on elsewhere.
            EngineError: an engine could not answer. The run stays in the journal and can be resumed.
            TrimtabError: the journal cannot be written; nothing was done that is not in it.
        """
        result = None
        async for event in self.stream(task, resume=resume):
            result = event.result
        assert result is not None
        return result

    async def stream(self, task: str | None = None, *, resume: str | None = None) -> AsyncIterator[Event]:
        """As `arun`, yielding each step as it ends, and the result last."""
        run = self._checked(task, resume)
        if run is not None and run.ended:
            yield Event("start", run.run_id)
            yield Event("end", run.run_id, result=self.result(run.run_id))
            return
        async with self._session() as room:
            # A run that no engine can take up is not worth a line in the journal.
            await room.get("small")
            run_id = run.run_id if run else await loop.begin(self._rt, task or "", [Message("user", task)])
            with self.journal.hold(run_id):
                yield Event("start", run_id)
                async for event in self._graph.astream({"trimtab_run": run_id}, stream_mode="custom"):
                    yield cast("Event", event)
                yield Event("end", run_id, result=self.result(run_id))

    def result(self, run_id: str) -> Result:
        """What a recorded run came to so far. Raises NotFound."""
        return loop.result(self._rt, self.journal.state(run_id))

    def graph(self, checkpointer: Any = None) -> CompiledStateGraph[Any, Any, Any, Any]:
        """The agent as a compiled LangGraph graph, to be run by itself or added to another graph as a node.

        Takes `messages` (or `task`), gives `messages`, `answer` and `result`. Engines open at the first step and stay
        open until `close` or `aclose`.
        """
        from .graph import build

        return build(self._rt, checkpointer)

    async def aclose(self) -> None:
        """Close the engines opened in this event loop."""
        room = self._rooms.pop(asyncio.get_running_loop(), None)
        if room is not None:
            await room.aclose()

    def close(self) -> None:
        """Close the engines opened by `run` and by `graph().invoke`."""
        portal.call(self.aclose())

    async def __aenter__(self) -> Agent:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    def __enter__(self) -> Agent:
        portal.call(self.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal.call(self._leave())

    def _checked(self, task: str | None, resume: str | None) -> RunState | None:
        """The recorded run to go on with, None for a new one; the journal is open after this."""
        journal = self.journal
        if resume is None:
            if task is None or not task.strip():
                raise BadInput("there is no task", fix="Say in words what is to be done")
            loop.check_text(task)
            return None
        run = journal.state(resume)
        if task is not None and task != run.task:
            raise BadInput(f"run {resume!r} has another task: {run.task!r}", fix="Leave the task out to go on with it")
        return run

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[EngineRoom]:
        self._enter()
        try:
            yield self._room()
        finally:
            await self._leave()

    def _enter(self) -> None:
        here = asyncio.get_running_loop()
        self._users[here] = self._users.get(here, 0) + 1

    async def _leave(self) -> None:
        here = asyncio.get_running_loop()
        self._users[here] -= 1
        if self._users[here] == 0:
            await self.aclose()

    def _room(self) -> EngineRoom:
        here = asyncio.get_running_loop()
        if here not in self._rooms:
            self._rooms[here] = EngineRoom(*self._specs)
        return self._rooms[here]

    @cached_property
    def _graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        return self.graph()

    @cached_property
    def _policy(self) -> Policy:
        return self._given_policy or default_policy()

    @cached_property
    def _prices(self) -> Mapping[str, Price]:
        from ..models.price import load_prices

        return load_prices() if self._given_prices is None else self._given_prices


def _toolset(tools: Iterable[Tool | Callable[..., Any]] | Mapping[str, Tool]) -> dict[str, Tool]:
    from ..tools import Tool, Toolset, tool

    given = tools.values() if isinstance(tools, Mapping) else tools
    return dict(Toolset([one if isinstance(one, Tool) else tool(one) for one in given]))


def _spec_json(spec: EngineSpec | Engine | None) -> dict[str, str | None] | None:
    if spec is None:
        return None
    if isinstance(spec, EngineSpec):
        return {"kind": spec.kind, "model": spec.model}
    return {"kind": "object", "model": spec.model}
