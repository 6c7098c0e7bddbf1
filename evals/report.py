"""A comparison as JSON, Markdown and one chart."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..home import write_atomic
from .compare import Comparison, Summary, notes, verdict

# Two of Okabe and Ito's colours: told apart by every kind of colour vision, and in grey.
COLOURS = ("#0072B2", "#E69F00")


def write_report(comparison: Comparison, folder: Path, *, title: str | None = None) -> list[Path]:
    """Write `comparison.json`, `.md` and `.png` into `folder`, each whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    paths = report_files(folder)
    write_atomic(paths[0], json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n")
    write_atomic(paths[1], markdown(comparison, title=title))
    write_atomic(paths[2], chart(comparison))
    return paths


def report_files(folder: Path) -> list[Path]:
    """The files of a report."""
    return [folder / f"comparison.{kind}" for kind in ("json", "md", "png")]


def percent(value: float | None) -> str:
    """A share as text."""
    return "unknown" if value is None else f"{100 * value:.0f} %"


def success(summary: Summary) -> str:
    """Success with its interval."""
    interval = summary.success
    if interval is None:
        return "nothing scored"
    low, high = 100 * interval.low, 100 * interval.high
    return f"{percent(interval.estimate)} ({low:.0f} to {high:.0f})"


def dollars(value: Any) -> str:
    """Money with three significant digits, written out: single tasks cost fractions of a cent."""
    if value is None:
        return "unknown"
    amount = float(value)
    digits = 2 if amount == 0 else max(2, 2 - math.floor(math.log10(abs(amount))))
    return f"${amount:.{digits}f}"


def per_success(summary: Summary) -> str:
    """Dollars per successful task. An unknown price and a price nobody can pay for success are not the same."""
    if summary.spending.dollars is not None and summary.successes == 0:
        return "no success"
    return dollars(summary.spending.dollars_per_success)


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """A number with its unit, or `unknown`."""
    return "unknown" if value is None else f"{value:.{digits}f}{unit}"


ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("model", lambda s: s.arm.model),
    ("profile", lambda s: "chosen by the router" if s.arm.routed else s.arm.profile or "none"),
    ("success (95 % interval)", success),
    ("tasks succeeded", lambda s: f"{s.successes} of {s.scored}"),
    ("infrastructure errors", lambda s: str(s.infrastructure_errors)),
    ("tokens per task", lambda s: number(s.spending.tokens_per_task, digits=0)),
    ("latency p50 / p95", lambda s: f"{number(s.spending.seconds_p50)} / {number(s.spending.seconds_p95)} s"),
    ("dollars per task", lambda s: dollars(s.spending.dollars_per_task)),
    ("dollars per successful task", per_success),
    ("joules per successful task", lambda s: number(s.spending.joules_per_success, digits=1)),
    ("failures", lambda s: ", ".join(f"{k} {v}" for k, v in s.codes.items()) or "none"),
)
"""The rows of every table of this project, in order: label and cell."""


def rows(*summaries: Summary) -> list[tuple[str, ...]]:
    """The table's body: a label, then one cell per arm."""
    shown = list(ROWS)
    if any(s.success is not None and s.success.n != s.scored for s in summaries):
        place = next(i for i, (label, _) in enumerate(shown) if label == "tasks succeeded")
        shown[place] = "runs succeeded", shown[place][1]
    if any(s.escalated is not None for s in summaries):
        shown.insert(4, ("escalated to large", lambda s: "-" if s.escalated is None else percent(s.escalated)))
    return [(label, *(cell(s) for s in summaries)) for label, cell in shown]


def table(*summaries: Summary, title: str | None = None) -> Any:
    """The table of one or two arms for a terminal, as something `rich` can print."""
    from rich.table import Table

    out = Table(title=title, title_justify="left")
    out.add_column("")
    for summary in summaries:
        out.add_column(summary.arm.label, overflow="fold")
    for row in rows(*summaries):
        out.add_row(*row)
    return out


def markdown(comparison: Comparison, *, title: str | None = None) -> str:
    """The comparison as a Markdown page with the chart beside it."""
    small, large = comparison.small, comparison.large
    lines = [f"# {title or f'{small.arm.label} against {large.arm.label}'}", ""]
    lines += [f"Suite `{comparison.suite}` (sha256 `{comparison.suite_sha256[:12]}`).", "", verdict(comparison), ""]
    lines += [f"| | {small.arm.label} | {large.arm.label} |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows(small, large)]
    lines += ["", "![success, price and latency](comparison.png)", "", "## By family", ""]
    lines += [f"| family | {small.arm.label} | {large.arm.label} |", "| --- | --- | --- |"]
    for family in sorted({*small.families, *large.families}):
        cells = [_share(summary, family) for summary in (small, large)]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", "## What the numbers rest on", "", *(f"- {note}" for note in notes(comparison)), ""]
    return "\n".join(lines)


def _share(summary: Summary, family: str) -> str:
    k, n = summary.families.get(family, (0, 0))
    return f"{k} of {n}"


def chart(comparison: Comparison) -> bytes:
    """The chart as PNG bytes: success with intervals, dollars per successful task, latency; one row per arm."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = (comparison.small, comparison.large)
    prices = [s.spending.dollars_per_success for s in arms]
    # Small models cost fractions of a cent: count in the unit that gives readable numbers.
    unit = 1000 if max((float(p) for p in prices if p is not None), default=1.0) >= 1e-3 else 1_000_000
    figure = Figure(figsize=(11, 3.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for place, (summary, colour) in enumerate(zip(arms, COLOURS, strict=True)):
        interval = summary.success
        if interval is None:
            _label(left, 0, place, "nothing scored")
        else:
            x, low, high = 100 * interval.estimate, 100 * interval.low, 100 * interval.high
            spread = [[x - low], [high - x]]
            left.errorbar(
                x, place, xerr=spread, fmt="o", color=colour, capsize=5, markersize=8, linewidth=2, clip_on=False
            )
            _label(left, min(max(x, 20), 80), place, success(summary), side="center")
        price = prices[place]
        middle.barh(place, 0 if price is None else float(price) * unit, height=0.34, color=colour)
        _label(middle, 0, place, per_success(summary) if price is None else f"${float(price) * unit:.3g}")
        p50, p95 = summary.spending.seconds_p50, summary.spending.seconds_p95
        right.barh(place, p50 or 0, height=0.34, color=colour)
        if p50 is not None and p95 is not None:
            right.plot([p50, p95], [place, place], color="0.25", linewidth=1.5, marker="|", markevery=[1])
        _label(right, 0, place, f"{number(p50)} s, p95 {number(p95)} s" if p50 is not None else "unknown")
    left.set_xlim(0, 100)
    left.set_yticks([0, 1], ["\n".join(textwrap.wrap(s.arm.label, 18)) for s in arms])
    left.set_ylim(1.4, -0.6)  # the small arm on top
    many = f"{unit:,}".replace(",", " ")
    for axes, name in (
        (left, "success, % (95 % interval)"),
        (middle, f"dollars per {many} successful tasks"),
        (right, "seconds per task, median (line to p95)"),
    ):
        axes.set_xlabel(name)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not left:
            axes.set_xlim(0, axes.get_xlim()[1])
            axes.tick_params(axis="y", length=0)
    n = comparison.paired.difference.n if comparison.paired else 0
    figure.suptitle(f"Suite {comparison.suite}: the same {n} tasks, paired", fontsize=11)
    caption = "Prices of self-hosted models are assumptions (see the table)."
    if any(s.arm.stand_in for s in arms):
        caption = "The large model is a stand-in of this project's own making. " + caption
    figure.supxlabel(caption, fontsize=8, color="0.35")
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr,call-arg]
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _label(axes: Any, x: float, place: int, text: str, *, side: str = "left") -> None:
    # Above the mark, where neither another label nor a mark can be.
    axes.text(x, place - 0.24, text, ha=side, va="bottom", fontsize=9)
