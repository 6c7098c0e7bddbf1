"""The families' evaluation for people: tables on the terminal, and a chart of each value against its bar."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .families_bars import Bar, Share
from .report import COLOURS

if TYPE_CHECKING:
    from .families import Found
    from .families_tasks import Tally


def percent(value: float | None) -> str:
    """A share as text, to a tenth of a point: bars are as fine as 99.5 %."""
    return "unknown" if value is None else f"{100 * value:.1f} %"


def held_to(bar: Bar) -> str:
    """What a bar asks for."""
    if isinstance(bar.bar, tuple):
        return f"{100 * bar.bar[0]:.0f} to {100 * bar.bar[1]:.0f} %"
    return f"at least {100 * bar.bar:g} %"


def interval(share: Share | None) -> str:
    """A share's counts and 95 % interval."""
    if share is None or (ends := share.interval) is None:
        return ""
    return f"{share.k} of {share.n} ({100 * ends.low:.0f} to {100 * ends.high:.0f})"


def print_tables(found: Found, title: str) -> None:
    """The bars, then the tasks by family."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = Console(width=None if console.is_terminal else 120)
    bars = Table(title=title, title_justify="left")
    for column in ("", "value", "95 % interval", "bar", "met"):
        bars.add_column(column)
    for bar in found.bars:
        bars.add_row(bar.name, percent(bar.value), interval(bar.share), held_to(bar), "yes" if bar.met else "NO")
    console.print(bars)
    tasks = Table(title="Tasks solved", title_justify="left")
    for column in ("family", "adapter", "by kind", "what failed", "bare"):
        tasks.add_column(column, overflow="fold")
    for family, tally in found.adapters.items():
        tasks.add_row(family, *_cells(tally), _solved(found.bare[family]))
    console.print(tasks)
    console.print(f"Unseen tools without constraint: {percent(found.free[0].value)} exact")
    console.print(f"{sum(bar.met for bar in found.bars)} of {len(found.bars)} bars are met")


def _cells(tally: Tally | None) -> tuple[str, str, str]:
    if tally is None:
        return "no profile", "", ""
    kinds = ", ".join(f"{kind} {share.k}/{share.n}" for kind, share in tally.kinds.items())
    return _solved(tally), kinds, ", ".join(f"{code} {n}" for code, n in tally.codes.items()) or "nothing"


def _solved(tally: Tally | None) -> str:
    return "unknown" if tally is None else f"{percent(tally.share.value)}, {interval(tally.share)}"


def chart(bars: Sequence[Bar], title: str) -> bytes:
    """Each value, with its interval, against its bar, as PNG bytes; one row a bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 1.4 + 0.27 * len(bars)), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, bar in enumerate(bars):
        _row(axes, place, bar)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(min(0, *(100 * (bar.value or 0) for bar in bars)), 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("%")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    legend = [
        Patch(color=COLOURS[0], label="met"),
        Patch(color=COLOURS[1], label="not met"),
        Line2D([], [], color="black", linewidth=2, label="bar"),
        Line2D([], [], color="0.35", linewidth=1, label="95 % interval"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    met = sum(bar.met for bar in bars)
    figure.suptitle(f"{title}: {met} of {len(bars)} bars met", fontsize=11)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _row(axes: Any, place: int, bar: Bar) -> None:
    if isinstance(bar.bar, tuple):
        low, high = (100 * end for end in bar.bar)
        axes.barh(place, high - low, left=low, height=0.86, color="0.88")
    ends = bar.bar if isinstance(bar.bar, tuple) else (bar.bar,)
    axes.barh(place, 100 * (bar.value or 0), height=0.56, color=COLOURS[0 if bar.met else 1])
    for end in ends:
        axes.plot([100 * end, 100 * end], [place - 0.43, place + 0.43], color="black", linewidth=2)
    spread = bar.share.interval if bar.share is not None else None
    if spread is not None:
        axes.plot([100 * spread.low, 100 * spread.high], [place, place], color="0.35", linewidth=1)
    axes.text(101.5, place, percent(bar.value), va="center", fontsize=8)
