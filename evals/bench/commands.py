"""`trimtab bench train`, `steering`, `turns` and `soak`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import above_zero, need_png, positive
from ...steering.vllm.launch import DTYPES
from ..options import count, count_or_none, threads

if TYPE_CHECKING:
    from .bars import Bar
    from .soak_tally import Soaked
    from .turns import Turns

SWAPPED_UNDER = 10_000
"""Answers under load while profiles are swapped."""


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
    train.add_argument("--family", default="calc", help="whose conversations (default: %(default)s)")
    train.add_argument("--recipe", type=Path, metavar="FILE", help="default: the adapters' own")
    train.add_argument("--steps", type=count, default=8, metavar="N", help="steps a round (default: 8)")
    _shared(train)
    _in_rounds(train, 5)
    train.set_defaults(handler=_train)
    steering = parts.add_parser(
        "steering",
        help="what steering and adapters cost in vLLM, against stock vLLM",
        description="Generate with stock vLLM, with Trimtab's plugin and its profiles, with adapters, and with Hugging "
        "Face hooks, each in an engine of its own, in turns, and compare tokens per second.",
    )
    steering.add_argument(
        "--adapters", nargs="*", type=Path, metavar="FOLDER", help="PEFT folders to mix (default: four that ship)"
    )
    steering.add_argument("--in-flight", type=count, default=64, metavar="N", help="requests at once (default: 64)")
    steering.add_argument("--prompt", type=positive, default=32, metavar="N", help="tokens of a prompt (default: 32)")
    steering.add_argument("--tokens", type=positive, default=128, metavar="N", help="tokens generated (default: 128)")
    steering.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="number format of every side (default: %(default)s); answers under load are always in float32",
    )
    steering.add_argument("--rows", metavar="A,B", help="only these rows, such as steering.idle,steering.vs_hooks")
    steering.add_argument(
        "--requests",
        type=count_or_none,
        metavar="N",
        help="answers under load while profiles are swapped; 0 leaves this part out (default: 10000, with --rows 0)",
    )
    _shared(steering)
    _in_rounds(steering, 9)
    steering.set_defaults(handler=_steering)
    turns = parts.add_parser(
        "turns",
        help="what steered conversations of several turns compute again, and why",
        description="Hold conversations with the base model, with a profile on all tokens and with one on generated "
        "tokens, on one server; say how much of each prompt had to be computed, what a turn took, and what reusing the "
        "states of steered answers would have done to the next ones.",
    )
    turns.add_argument("--turns", type=positive, default=8, metavar="N", help="of a conversation (default: 8)")
    turns.add_argument("--prompt", type=positive, default=64, metavar="N", help="tokens said in a turn (default: 64)")
    turns.add_argument("--tokens", type=positive, default=64, metavar="N", help="tokens answered (default: 64)")
    turns.add_argument("--conversations", type=count, default=6, metavar="N", help="of each side (default: 6)")
    turns.add_argument("--plot", type=Path, metavar="FILE", help="a .png file")
    _shared(turns)
    turns.set_defaults(handler=_turns)
    soak = parts.add_parser(
        "soak",
        help="a server under load while profiles come and go and the server is killed: is any answer wrong?",
        description="Random requests, loads, unloads, new versions, hang-ups and kills; every answer is held to its "
        "receipt, and afterwards to Hugging Face, PEFT and hooks. Exit code 1 when any was wrong or lost, or when none "
        "came.",
    )
    _shared(soak)
    soak.add_argument("--minutes", type=above_zero, default=10.0, metavar="M", help="how long (default: 10)")
    soak.add_argument("--clients", type=count, default=24, metavar="N", help="requests at once (default: 24)")
    soak.add_argument(
        "--kills", type=count_or_none, default=2, metavar="N", help="times the server is killed (default: 2)"
    )
    soak.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    soak.set_defaults(handler=_soak)
    return parts


def _shared(parser: argparse.ArgumentParser) -> None:
    """What every benchmark has."""
    parser.add_argument("--model", metavar="M", default="trimtab-nano", help="name or folder (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")


def _in_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    """What those have that let several sides take turns."""
    parser.add_argument("--rounds", type=count, default=rounds, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a .png file")


def _train(args: argparse.Namespace) -> int:
    import os

    from ...errors import NotFound
    from ...home import write_atomic
    from ...models.card import find_model
    from ...models.embedded import HERE, MODELS, PROFILES, SMALL
    from ...models.train.commands import RECIPES
    from ...models.train.recipe import load_recipe
    from ...tools.builtin import FAMILIES
    from .bars import card_bars, provenances, size_bars
    from .trl import need_trl

    need_png(args.plot, "--plot")
    if args.family not in FAMILIES:
        raise NotFound(f"no family {args.family!r}", where="--family", fix=f"Known: {', '.join(FAMILIES)}")
    need_trl()
    recipe = load_recipe(args.recipe or RECIPES / "adapter.yaml")
    card = find_model(args.model)

    import torch

    from .picture import train_png
    from .train import measure

    used = args.threads or os.cpu_count() or 1
    torch.set_num_threads(used)
    found = measure(card, recipe, args.family, steps=args.steps, rounds=args.rounds, threads=used)
    usual = load_recipe(RECIPES / "adapter.yaml").model_dump(include={"steps", "batch", "length"})
    bars = [found.bar(), *card_bars(provenances(PROFILES), FAMILIES, usual), *size_bars(MODELS / SMALL, HERE)]
    document = found.to_json(bars)
    if args.json:
        print(json.dumps(document, indent=2), flush=True)
    else:
        _print_training(document, found.setting.name)
        _print_bars(bars)
    if args.plot is not None:
        write_atomic(args.plot, train_png(found, bars))
    return 0


def _print_training(document: dict[str, Any], setting: str) -> None:
    ratio = document["ratio"]
    spread = "" if ratio["sd"] is None else f" ± {ratio['sd']:.2f}"
    for side in ("trimtab", "trl"):
        speed = document[side]
        print(
            f"{side:<8} {speed['conversation_tokens_per_second']:>9,.0f} conversation tokens/s "
            f"({speed['tokens_per_second_as_read']:,.0f} as read)"
        )
    print(f"ratio    {ratio['median']:.2f}{spread} over {ratio['n']} rounds; TRL at its best here: {setting}")


def _steering(args: argparse.Namespace) -> int:
    import os
    import tempfile

    from ...errors import BadInput
    from ...home import write_atomic
    from ...models.card import find_model
    from ...models.embedded import PROFILES, SMALL
    from ...models.engines.vllm import require_vllm
    from ...steering.adapter import read_adapter
    from .picture import steering_png
    from .steering import measure

    need_png(args.plot, "--plot")
    require_vllm()
    card = find_model(args.model)
    only = [name.strip() for name in (args.rows or "").split(",") if name.strip()]
    if args.rows is not None and not only:
        raise BadInput("no row is named", where="--rows", fix="Leave it out for all of them")
    adapters = args.adapters
    for folder in adapters or ():
        read_adapter(folder)
    if adapters is None:
        shipped = [PROFILES / f"{family}@1" / "adapter" for family in ("calc", "dates", "mail", "todos")]
        adapters = shipped if card.name == SMALL else []
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch:
        found = measure(
            card,
            adapters,
            Path(scratch),
            rounds=args.rounds,
            in_flight=args.in_flight,
            prompt=args.prompt,
            tokens=args.tokens,
            threads=args.threads or os.cpu_count() or 1,
            dtype=args.dtype,
            only=only,
        )
    bars = found.bars()
    requests = args.requests if args.requests is not None else (0 if only else SWAPPED_UNDER)
    soaked = _soaked(args.model, requests=requests) if requests > 0 else None
    if soaked is not None:
        bars += soaked.bars()
    document = found.to_json(bars)
    if soaked is not None:
        document["swaps"] = soaked.to_json()
    if args.json:
        print(json.dumps(document, indent=2), flush=True)
    else:
        for name, rate in document["tokens_per_second"].items():
            print(f"{name:<24} {rate:>9,.0f} tokens/s")
        _print_bars(bars)
    if args.plot is not None:
        write_atomic(args.plot, steering_png(found, bars))
    return 0


def _turns(args: argparse.Namespace) -> int:
    import asyncio
    import tempfile

    from ...errors import BadInput
    from ...home import write_atomic
    from ...models.card import find_model
    from ...models.engines.vllm import require_vllm
    from .picture import turns_png
    from .turns import measure

    need_png(args.plot, "--plot")
    require_vllm()
    card = find_model(args.model)
    needed = args.turns * (args.prompt + args.tokens)
    if card.context is not None and needed > card.context:
        raise BadInput(
            f"{args.turns} turns take {needed} tokens, {card.name} reads {card.context}",
            where="--turns",
            fix="Ask for fewer or shorter ones",
        )
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch:
        found = asyncio.run(
            measure(
                card,
                Path(scratch),
                turns=args.turns,
                prompt=args.prompt,
                new=args.tokens,
                conversations=args.conversations,
            )
        )
    if args.json:
        print(json.dumps(found.to_json(), indent=2), flush=True)
    else:
        _print_turns(found, args.turns)
    if args.plot is not None:
        write_atomic(args.plot, turns_png(found))
    return 0


def _print_turns(found: Turns, turns: int) -> None:
    print(f"{'turn':<34}" + "".join(f"{n + 1:>8}" for n in range(turns)))
    for side in found.sides:
        print(f"{side + ', prompt tokens computed':<34}" + _cells(found.computed(side), ".0f"))
    for side in list(found.sides)[1:]:
        print(f"{side + ', seconds of the base':<34}" + _cells(found.seconds(side), ".2f"))
    print(f"reused states would have moved the last answers by up to {found.reused:.2g} nats")
    _print_bars(found.bars())


def _cells(values: Sequence[float | None], form: str) -> str:
    return "".join(f"{'unknown' if value is None else format(value, form):>8}" for value in values)


def _soaked(model: str, **how: Any) -> Soaked:
    import asyncio
    import tempfile

    from ...models.card import find_model
    from ...models.embedded import default_store
    from ...steering.store import ProfileStore
    from .soak import soak

    with tempfile.TemporaryDirectory(prefix="trimtab-soak-") as folder:
        scratch = Path(folder)
        store = ProfileStore(scratch, *default_store().roots[1:])
        return asyncio.run(soak(find_model(model), store, scratch, **how))


def _soak(args: argparse.Namespace) -> int:
    from ...models.engines.vllm import require_vllm

    require_vllm()
    found = _soaked(args.model, minutes=args.minutes, clients=args.clients, kills=args.kills, seed=args.seed)
    bars = found.bars()
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.tally.counts.items()))
        print(f"{found.seconds:.0f} s: {counts}")
        far = "" if found.difference is None else f", at most {found.difference:.2g} nats from the reference"
        print(f"{found.replayed} distinct answers replayed{far}")
        for text in [*found.tally.wrong, *found.tally.lost][:20]:
            print(f"  {text}")
        _print_bars(bars)
    return 0 if found.good else 1


def _print_bars(bars: Sequence[Bar]) -> None:
    for bar in bars:
        value = "unknown" if bar.value is None else f"{bar.value:.4g}"
        sign = ">=" if bar.at == "least" else "<="
        print(f"{'met' if bar.met else 'NOT met':<8} {bar.name} {value} {sign} {bar.bar:g}")
