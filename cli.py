"""The `trimtab` command: finds the sub-command, runs it, and says clearly what went wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import __version__
from .errors import TrimtabError, printable

if TYPE_CHECKING:
    from .models.card import ModelCard
    from .steering.store import ProfileStore


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Only light modules are imported here; each command imports what it needs when it runs."""
    from .agent import commands as agent
    from .evals import commands as evals
    from .evals.bench import commands as bench
    from .models import commands as models
    from .models.train import commands as train
    from .steering import commands as steering

    parser = argparse.ArgumentParser(
        prog="trimtab",
        description="Agents on small, steered, proven language models.",
        epilog="Start with `trimtab demo`. `trimtab COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"trimtab {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for part in (evals, agent, models, steering, bench):
        part.add_commands(subparsers)
    agent.add_train_commands(train.add_commands(subparsers))
    # What the steering commands need to know of the floor above them.
    parser.set_defaults(find_base=_find_base, default_store=_default_store, find_server=_find_server)
    return parser


def _find_base(name: str) -> ModelCard:
    from .models.card import find_model

    return find_model(name)


def _default_store() -> ProfileStore:
    from .models.embedded import default_store

    return default_store()


def _find_server() -> str:
    """The URL of the server to talk to: `TRIMTAB_URL`, else the one that runs on this machine."""
    from .models.registry import find_server

    return os.environ.get("TRIMTAB_URL") or find_server()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.handler(args) or 0)
    except TrimtabError as error:
        if args.debug:
            raise
        if getattr(args, "json", False):
            print(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
        print(f"trimtab: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trimtab: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (such as `head`) has gone: nothing more to say, and nothing to complain about at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"trimtab: {where}{error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
