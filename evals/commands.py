"""`trimtab eval`, `trimtab compare` and `trimtab demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import count

CONCURRENCY = 4
"""Tasks at once, where nothing else is asked for."""


def add_commands(subparsers: Any) -> None:
    """Add this floor's commands to the command line."""
    demo = subparsers.add_parser(
        "demo",
        help="the three uses on this machine, in about two minutes",
        description="An agent on real tasks, a steering swap on a running server, and small compared with large. "
        "Needs no GPU, no key and no download.",
    )
    demo.add_argument("--engine", choices=("vllm", "transformers"), default="vllm", help="where the models run")
    demo.add_argument("--report", type=Path, metavar="DIR", default=Path("reports/demo"), help="default: %(default)s")
    demo.add_argument("--quick", action="store_true", help="compare on 8 tasks instead of the whole suite")
    demo.set_defaults(handler=_demo)

    evaluate = subparsers.add_parser(
        "eval", help="run a suite of tasks and report success, latency, tokens and money", description="Run a suite."
    )
    evaluate.add_argument("suite", metavar="SUITE", help="a packaged suite, or the path of a .yaml or .jsonl file")
    evaluate.add_argument(
        "--model", metavar="M", default="trimtab-nano",
        help="an embedded model, `stand-in`, a folder, or URL#id of an OpenAI-compatible server (default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument(
        "--profile", metavar="P", help="a profile; `auto`: the router chooses; default: the bare model"
    )
    _shared(evaluate)
    evaluate.add_argument("--trials", type=count, default=1, metavar="N", help="runs of every task (default: 1)")
    evaluate.add_argument("--resume", type=Path, metavar="FILE", help="continue the evaluation recorded in FILE")
    evaluate.add_argument(
        "--split", choices=("test", "train"),
        help="with SUITE `families`: measure everything the model and its adapters are held to, on tasks drawn from "
        "this side of the corpus; --limit is then for each family, and each kind of request",
    )  # fmt: skip
    evaluate.add_argument("--families", metavar="A,B", help="with --split: only these families")
    evaluate.add_argument("--plot", type=Path, metavar="FILE", help="with --split: a PNG of each value against its bar")
    evaluate.set_defaults(handler=_eval)

    compare = subparsers.add_parser(
        "compare",
        help="a small model against a large one on the same tasks",
        description="Run both arms on the same tasks and say whether small is good enough, and what each costs.",
    )
    compare.add_argument("suite", metavar="SUITE", help="a packaged suite, or the path of a .yaml or .jsonl file")
    compare.add_argument(
        "--small", metavar="P", default="auto",
        help="the small arm's profile; `auto`: the router chooses; `none`: the bare model (default: %(default)s)",
    )  # fmt: skip
    compare.add_argument("--small-model", metavar="M", default="trimtab-nano", help="default: %(default)s")
    compare.add_argument(
        "--large", metavar="M", default="stand-in",
        help="`stand-in`, a folder, or URL#id of an OpenAI-compatible server (default: %(default)s)",
    )  # fmt: skip
    compare.add_argument(
        "--escalate", action="store_true", help="let the small arm's router hand hard steps to the large model"
    )
    compare.add_argument(
        "--margin",
        type=float,
        default=0.05,
        help="success that small may lose, stated beforehand (default: 0.05 = 5 points)",
    )
    compare.add_argument("--report", type=Path, metavar="DIR", help="write JSON, Markdown and a chart there")
    _shared(compare)
    compare.set_defaults(handler=_compare)

    from .verify_command import add_command

    add_command(subparsers)


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="vllm", help="vllm, transformers, or an http(s) URL (default: %(default)s)")
    parser.add_argument("--limit", type=count, metavar="N", help="at most N tasks, the families taking turns")
    parser.add_argument(
        "--concurrency", type=count, metavar="N", help=f"tasks at once (default: {CONCURRENCY}; 24 with --split)"
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", help="a price file; every model must then have a price")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo
    from .signals import run_orderly

    return run_orderly(demo(engine=args.engine, folder=args.report, quick=args.quick))


def _eval(args: argparse.Namespace) -> int:
    from .signals import run_orderly

    if args.split is not None:
        from .families import evaluate_families

        return run_orderly(evaluate_families(args))
    from ..errors import BadInput
    from .evaluate import evaluate

    for option, given in (("--families", args.families), ("--plot", args.plot)):
        if given is not None:
            raise BadInput("goes with --split only", where=option, fix="Leave it out, or add `--split test`.")
    args.concurrency = args.concurrency or CONCURRENCY
    return run_orderly(evaluate(args))


def _compare(args: argparse.Namespace) -> int:
    from .evaluate import compare_arms
    from .signals import run_orderly

    args.concurrency = args.concurrency or CONCURRENCY
    return run_orderly(compare_arms(args))
