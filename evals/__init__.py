"""Benchmark small against large: suites, scoring, statistics, cost, comparison, reports.

from trimtab.evals import compare_evaluations, find_suite, run_suite
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import Comparison, compare_evaluations, summarise, verdict
    from .records import Arm, Evaluation, Record
    from .report import write_report
    from .run import run_suite
    from .suite import Suite, Task, find_suite, load_suite

__all__ = [
    "Arm",
    "Comparison",
    "Evaluation",
    "Record",
    "Suite",
    "Task",
    "compare_evaluations",
    "find_suite",
    "load_suite",
    "run_suite",
    "summarise",
    "verdict",
    "write_report",
]
_HOMES = {
    "compare": ("Comparison", "compare_evaluations", "summarise", "verdict"),
    "records": ("Arm", "Evaluation", "Record"),
    "report": ("write_report",),
    "run": ("run_suite",),
    "suite": ("Suite", "Task", "find_suite", "load_suite"),
}


def __getattr__(name: str) -> Any:
    # The command line passes through here on every start: nothing is imported before it is used.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
