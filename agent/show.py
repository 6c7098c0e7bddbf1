"""A run for people: one step as something `rich` can print."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..errors import printable
from ..models.chat import Receipt, Usage
from .steps import Result, Step

LONGEST = 2000


def render_step(step: Step) -> RenderableType:
    """One step: route and reason, call, result, answer, tokens, milliseconds, receipt."""
    return _model(step) if step.kind == "model" else _tool(step)


def render_end(result: Result) -> RenderableType:
    """How a run ended: answer or reason, tokens, cost."""
    steps = f"{len(result.steps)} steps"
    cost = "cost unknown" if result.cost is None else str(result.cost)
    line = Text(f"{steps} · {_tokens(result.usage)} · {cost} · run {result.run_id}", style="dim")
    if result.stopped is not None:
        return Group(Text(f"■ stopped: {short(result.stopped.reason)}", style="bold red"), line)
    if not result.answer:
        return Group(Text("■ not at its end: cut off, or still going on", style="bold yellow"), line)
    return Group(Text.assemble(("■ ", "bold green"), (short(result.answer), "bold")), line)


def _model(step: Step) -> RenderableType:
    route = step.route
    lines: list[Text] = []
    if route is not None:
        who = short(f"{route.profile or 'base'} on {step.model} ({route.engine})")
        sure = "" if route.confidence is None else f", p={route.confidence:.2f}"
        lines.append(
            Text.assemble(
                (f"{step.index:>2} ", "dim"), ("route  ", "cyan"), who, (f"  {short(route.reason)}{sure}", "dim")
            )
        )
    for call in step.calls:
        lines.append(_line("call", f"{short(call.name)} {short(call.arguments)}", "yellow"))
    if not step.calls and step.text:
        lines.append(_line("answer", short(step.text), "green"))
    if step.error is not None:
        lines.append(_line("not so", short(step.error), "red"))
    facts = [_tokens(step.usage or Usage()), f"{step.seconds * 1000:.0f} ms", *_receipt(step.receipt)]
    lines.append(_line("", short(" · ".join(facts)), "dim"))
    return Group(*lines)


def _tool(step: Step) -> RenderableType:
    arguments = step.arguments if isinstance(step.arguments, str) else json.dumps(step.arguments, ensure_ascii=False)
    head = Text.assemble(
        (f"{step.index:>2} ", "dim"), ("tool   ", "magenta"), f"{short(step.tool or '')} {short(arguments)}"
    )
    head.append(f"  {step.seconds * 1000:.0f} ms", "dim")
    if step.result is None:
        return Group(head, _line("cut off", short(step.error or ""), "red"))
    return Group(head, _line("result", short(step.result), "red" if step.error else "magenta"))


def _line(label: str, text: str, style: str) -> Text:
    return Text.assemble("   ", (f"{label:<7}", style), (text, style if style in ("dim", "red") else ""))


def _tokens(usage: Usage) -> str:
    def number(value: Any) -> str:
        return "?" if value is None else str(value)

    return f"{number(usage.prompt_tokens)} + {number(usage.completion_tokens)} tokens"


def _receipt(receipt: Receipt | None) -> list[str]:
    if receipt is None:
        return ["no receipt"]
    parts = [f"receipt {receipt.engine}/{receipt.model}"]
    if receipt.profile is not None:
        parts.append(f"{receipt.profile} {(receipt.profile_sha256 or '')[:8]}".rstrip())
    if receipt.adapter_sha256 is not None:
        parts.append(f"adapter {receipt.adapter_sha256[:8]}")
    if receipt.layers:
        layers = ",".join(str(layer) for layer in receipt.layers)
        parts.append(f"steered layers {layers}, {receipt.tokens_steered} tokens")
    return parts


def short(text: str) -> str:
    """Text of a model, a tool or a server as one line that a terminal can bear."""
    one_line = printable(" ".join(text.split()))
    return one_line if len(one_line) <= LONGEST else f"{one_line[:LONGEST]}… ({len(one_line)} characters)"
