"""`trimtab bench train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ...models.arguments import positive


def add_commands(subparsers: Any) -> Any:
    """Add `bench` to the command line; returns where further benchmarks can be added."""
    bench = subparsers.add_parser("bench", help="measure speed against what else does the same")
    parts = bench.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    train = parts.add_parser(
        "train",
        help="adapter training against TRL, and sizes and churn of what ships",
        description="Train the same adapter with Trimtab and with TRL's SFTTrainer in turns, and compare how many "
        "conversations' tokens each learns from per second. Needs TRL: pip install 'trimtab[bench]'.",
    )
    train.add_argument("--model", metavar="M", default="trimtab-nano", help="name or folder (default: %(default)s)")
    train.add_argument("--family", default="calc", help="whose conversations (default: %(default)s)")
    train.add_argument("--recipe", type=Path, metavar="FILE", help="default: the adapters' own")
    train.add_argument("--steps", type=positive, default=8, metavar="N", help="steps a round (default: 8)")
    train.add_argument("--rounds", type=positive, default=5, metavar="N", help="rounds (default: 5)")
    train.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    train.add_argument("--plot", type=Path, metavar="FILE", help="a .png file")
    train.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    train.set_defaults(handler=_train)
    return parts


def _train(args: argparse.Namespace) -> int:
    import os

    from ...errors import BadInput, NotFound
    from ...home import write_atomic
    from ...models.card import find_model
    from ...models.embedded import HERE, MODELS, PROFILES, SMALL
    from ...models.train.commands import RECIPES
    from ...models.train.recipe import load_recipe
    from ...tools.builtin import FAMILIES
    from .bars import card_bars, provenances, size_bars
    from .trl import need_trl

    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise BadInput("the picture is drawn as PNG", where=f"--plot {args.plot}", fix="Name a .png file")
    if args.family not in FAMILIES:
        raise NotFound(f"no family {args.family!r}", where="--family", fix=f"Known: {', '.join(FAMILIES)}")
    need_trl()
    recipe = load_recipe(args.recipe or RECIPES / "adapter.yaml")
    card = find_model(args.model)

    import torch

    from .picture import train_png
    from .train import measure

    threads = args.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    found = measure(card, recipe, args.family, steps=args.steps, rounds=args.rounds, threads=threads)
    bars = [found.bar(), *card_bars(provenances(PROFILES), FAMILIES), *size_bars(MODELS / SMALL, HERE)]
    if args.plot is not None:
        write_atomic(args.plot, train_png(found, bars))
    document = found.to_json(bars)
    if args.json:
        print(json.dumps(document, indent=2))
        return 0
    ratio = document["ratio"]
    spread = "" if ratio["sd"] is None else f" ± {ratio['sd']:.2f}"
    for side in ("trimtab", "trl"):
        speed = document[side]
        print(
            f"{side:<8} {speed['conversation_tokens_per_second']:>9,.0f} conversation tokens/s "
            f"({speed['tokens_per_second_as_read']:,.0f} as read)"
        )
    print(
        f"ratio    {ratio['median']:.2f}{spread} over {ratio['n']} rounds; TRL at its best here: {found.setting.name}"
    )
    for bar in bars:
        value = "unknown" if bar.value is None else f"{bar.value:.4g}"
        sign = ">=" if bar.at == "least" else "<="
        print(f"{'met' if bar.met else 'NOT met':<8} {bar.name} {value} {sign} {bar.bar:g}")
    return 0
