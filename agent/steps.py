"""The words of a run: routes, steps, events and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import EngineError, LimitExceeded
from ..models.chat import Receipt, ToolCall, Usage

if TYPE_CHECKING:
    from ..models.price import Money

Where = Literal["small", "large"]
FIELDS = {
    "model": ("route", "model", "text", "calls", "finish_reason", "usage", "receipt"),
    "tool": ("tool", "call_id", "arguments", "result", "ok"),
}
"""What a step of each kind has of its own."""


@dataclass(frozen=True)
class Route:
    """The decision for one model step.

    Attributes:
        profile: the profile the engine is asked for; None is the bare base model.
        engine: the agent's own engine (`small`) or the one it hands hard steps to (`large`).
        reason: why, in words for the user.
        confidence: the router's probability, or None where no classifier was asked.
        tools: names of the tools offered; the large engine is offered all of them.
    """

    profile: str | None
    engine: Where
    reason: str
    confidence: float | None = None
    tools: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Route:
        """The reverse of `dataclasses.asdict`."""
        return cls(**{**data, "tools": tuple(data["tools"])})


@dataclass(frozen=True)
class Step:
    """One model call or one tool call.

    Attributes:
        index: place in the trajectory, from 0.
        seconds: wall time.
        error: for a model step, why its reply was not taken as it is, or that there was none; for a tool step, the
            error the model was shown.
        route, model, text, calls, finish_reason, usage, receipt: of a model step; `model` is the base model's id,
            `finish_reason` the engine's word for why it ended.
        tool, call_id, arguments, result, ok: of a tool step; `arguments` is text where it was not a JSON object,
            `result` is the JSON text the model was shown.
    """

    index: int
    kind: Literal["model", "tool"]
    seconds: float
    error: str | None = None
    route: Route | None = None
    model: str | None = None
    text: str | None = None
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    receipt: Receipt | None = None
    tool: str | None = None
    call_id: str | None = None
    arguments: dict[str, Any] | str | None = None
    result: str | None = None
    ok: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready fields, those of the step's kind only."""
        data = {name: getattr(self, name) for name in ("index", "kind", "seconds", "error", *FIELDS[self.kind])}
        # Arguments are JSON already, and however deep a model made them: `asdict` would walk through them.
        for name in {"route", "usage", "receipt"} & data.keys():
            data[name] = None if data[name] is None else asdict(data[name])
        if self.kind == "model":
            data["calls"] = [asdict(call) for call in self.calls]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        """The reverse of `to_json`."""
        fields = dict(data)
        if fields["kind"] == "model":
            fields["route"] = Route.from_json(fields["route"]) if fields["route"] else None
            fields["calls"] = tuple(ToolCall(**call) for call in fields["calls"])
            fields["usage"] = Usage(**fields["usage"]) if fields["usage"] else None
            fields["receipt"] = receipt_from_json(fields["receipt"])
        return cls(**fields)


@dataclass(frozen=True)
class Stop:
    """Why a run ended without an answer.

    Attributes:
        kind: the limit that was reached, or what the model kept doing.
        reason: one sentence for the user.
        value, limit: for a limit, what was used and what was allowed.
    """

    kind: Literal["steps", "tokens", "seconds", "tool_calls", "loop", "invalid", "empty", "cut", "other"]
    reason: str
    value: float | None = None
    limit: float | None = None

    def error(self) -> LimitExceeded | EngineError:
        """The stop as an error of the tree."""
        if self.kind in ("steps", "tokens", "seconds", "tool_calls"):
            return LimitExceeded(self.reason, kind=self.kind, value=self.value, limit=self.limit)
        return EngineError(self.reason)


@dataclass(frozen=True)
class Result:
    """What a run came to. A stopped run carries everything up to the stop.

    Attributes:
        answer: the final text; empty when `stopped` says why there is none.
        steps: the trajectory.
        usage: tokens of all model steps together; a field is None when any step's is unknown.
        cost: of all model steps together; None when any of them has no known price.
        receipts: of the model steps that came with one, in order.
    """

    run_id: str
    task: str
    answer: str
    steps: tuple[Step, ...]
    usage: Usage
    cost: Money | None
    receipts: tuple[Receipt, ...]
    stopped: Stop | None = None

    def raise_for_stop(self) -> Result:
        """The result itself, if the run came to an answer.

        Raises:
            LimitExceeded: a limit was reached.
            EngineError: the models could not do it: invalid calls, a loop, an empty answer or half of one.
        """
        if self.stopped is not None:
            raise self.stopped.error()
        return self

    def to_json(self) -> dict[str, Any]:
        """The document `trimtab run --json` prints."""
        return {
            "run_id": self.run_id,
            "task": self.task,
            "answer": self.answer,
            "steps": [step.to_json() for step in self.steps],
            "usage": asdict(self.usage),
            "cost": None if self.cost is None else self.cost.as_dict(),
            "receipts": [{**asdict(receipt), "layers": list(receipt.layers)} for receipt in self.receipts],
            "stopped": None if self.stopped is None else asdict(self.stopped),
        }


@dataclass(frozen=True)
class Event:
    """What `Agent.stream` yields: `start`, then a `step` for every finished step, then `end` with the result."""

    kind: Literal["start", "step", "end"]
    run_id: str
    step: Step | None = None
    result: Result | None = None


def receipt_from_json(data: Mapping[str, Any] | None) -> Receipt | None:
    """A receipt from its JSON form; None stays None."""
    return None if data is None else Receipt(**{**data, "layers": tuple(data["layers"])})


def total_usage(steps: tuple[Step, ...]) -> Usage:
    """The sum over model steps, field by field; a field that any of them does not know is None."""
    usages = [step.usage or Usage() for step in steps if step.kind == "model"]

    def total(name: str) -> int | None:
        values = [getattr(usage, name) for usage in usages]
        return None if None in values else sum(values)

    return Usage(total("prompt_tokens"), total("completion_tokens"), total("cached_tokens"))
