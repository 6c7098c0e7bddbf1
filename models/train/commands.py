"""`trimtab train base|adapter|place|router|data`: every trained file of the project is made by one of these."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import above_zero, need_place, need_png, positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..card import ModelCard
    from .adapter import Start
    from .loop import Point

RECIPES = Path(__file__).parent / "recipes"
WAITS = 0.2
"""Share of a run without data from which the progress tells it; `repeat` in the recipe then helps."""


def add_commands(subparsers: Any) -> Any:
    """Add `train` and its parts to the command line; returns where further parts can be added."""
    train = subparsers.add_parser("train", help="train base models, adapters and the router")
    parts = train.add_subparsers(title="what to train", metavar="WHAT", required=True)

    base = parts.add_parser("base", help="train an embedded base model from scratch")
    base.add_argument("name", help="trimtab-nano or trimtab-large")
    base.add_argument("--recipe", type=Path, help="a recipe file; the model's own by default")
    base.add_argument("--go-on-from", help="a trained model, by name or folder, to train for one more cycle")
    base.add_argument(
        "--grow-from",
        metavar="M",
        help="a trained model to start from, with more layers; trimtab-nano for trimtab-large",
    )
    base.add_argument(
        "--tokenizer", help="a model, by name or folder, whose tokenizer to take; trained anew by default"
    )
    base.add_argument("--out", type=Path, help="where to write the model; its place in the package by default")
    base.add_argument("--minutes", type=above_zero, metavar="M", help="train so long, instead of the recipe's steps")
    _common(base)
    _processes(base)
    base.set_defaults(handler=run_base)

    adapter = parts.add_parser("adapter", help="train a LoRA adapter and save it as a profile")
    adapter.add_argument("name", help="the profile's name")
    _source(adapter)
    adapter.add_argument("--base", default="trimtab-nano", help="base model: name or folder (default %(default)s)")
    adapter.add_argument("--recipe", type=Path, help="a recipe file; by default adapter.yaml or adapter_more.yaml")
    adapter.add_argument(
        "--go-on-from",
        metavar="PROFILE",
        help="train this profile's adapter further; under its own name, as its next version",
    )
    adapter.add_argument("--steps", type=int, help="optimizer steps, instead of the recipe's")
    adapter.add_argument("--seed", type=int, help="seed, instead of the recipe's")
    adapter.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="train from so many seeds, keep the first, and say how much they differ (default: 1)",
    )
    adapter.add_argument("--out", type=Path, help="write the bare adapter into this folder instead of a profile")
    adapter.add_argument("--store", type=Path, help="profile store to save into (default: your own)")
    adapter.add_argument("--version", help="the profile's version (default: 1, or with --go-on-from NAME the next)")
    adapter.add_argument("--replace", action="store_true", help="replace the profile of that name and version")
    _common(adapter)
    adapter.set_defaults(handler=run_adapter)

    scores = parts.add_parser(
        "score",
        help="compare adapters on conversations that they were not trained on",
        description="The held-out loss of the base and of profiles' adapters, in all and in the calls alone.",
    )
    scores.add_argument("profiles", nargs="*", metavar="PROFILE", help="profiles with an adapter and nothing else")
    _source(scores)
    scores.add_argument("--base", default="trimtab-nano", help="base model: name or folder (default %(default)s)")
    scores.add_argument(
        "--conversations", type=positive, default=300, metavar="N", help="with --family: how many (default: 300)"
    )
    scores.add_argument("--store", type=Path, help="profile store to look in (default: your own and the shipped one)")
    _device(scores)
    scores.add_argument("--json", action="store_true", help="print one JSON document")
    scores.set_defaults(handler=run_score)

    place = parts.add_parser(
        "place",
        help="find which modules an adapter is best put on",
        description="Train short adapters on different modules, each at its own best learning rate, and compare them "
        "on held-out conversations.",
    )
    _source(place)
    place.add_argument("--base", default="trimtab-nano", help="base model: name or folder (default %(default)s)")
    place.add_argument("--recipe", type=Path, default=RECIPES / "adapter.yaml", help="a recipe file")
    place.add_argument("--steps", type=positive, default=60, metavar="N", help="optimizer steps a run (default: 60)")
    place.add_argument(
        "--rates", type=float, nargs="+", metavar="LR", help="learning rates to try, 4 or more (default: 4)"
    )
    place.add_argument("--plot", type=Path, metavar="FILE", help="a .png file: loss against learning rate")
    place.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="placements trained at the same time (default: 1)"
    )
    _device(place)
    place.add_argument("--json", action="store_true", help="print one JSON document")
    place.set_defaults(handler=run_place)

    sizes = parts.add_parser(
        "sizes",
        help="find how large a base is best for the time there is",
        description="Train base models of several shapes for the same time and compare their held-out loss.",
    )
    sizes.add_argument("--minutes", type=above_zero, default=4.0, metavar="M", help="of training a shape (default: 4)")
    sizes.add_argument(
        "--shapes", nargs="+", metavar="LxH", help="layers x width, such as 6x256 (default: four of them)"
    )
    sizes.add_argument("--recipe", type=Path, help="a recipe file; that of trimtab-nano by default")
    sizes.add_argument("--work", type=Path, help="folder for the tokenizer")
    sizes.add_argument("--plot", type=Path, metavar="FILE", help="a .png file: loss against seconds")
    _device(sizes)
    _processes(sizes)
    sizes.add_argument("--json", action="store_true", help="print one JSON document")
    sizes.set_defaults(handler=run_sizes)

    data = parts.add_parser("data", help="write the contrast pairs and the suites that are made from the corpus")
    data.add_argument("--pairs", type=Path, help="folder for contrast pairs (default: their place in the package)")
    data.add_argument("--suites", type=Path, help="folder for suites (default: their place in the package)")
    data.add_argument("--replace", action="store_true", help="replace files that are there with other content")
    data.set_defaults(handler=run_data)
    return parts


def _source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--family", help="a task family of the corpus, such as calc or orders")
    source.add_argument("--data", type=Path, help="conversations in OpenAI's form: a .jsonl file or a folder of them")
    parser.add_argument("--style", help="with --family: one style for all, such as `detailed,casual`")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, help="folder for checkpoints; an interrupted run goes on from there")
    parser.add_argument("--curve", type=Path, help="a .png file for the training curve, drawn anew as the run goes on")
    _device(parser)
    parser.add_argument("--json", action="store_true", help="print the card as JSON")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where torch sees one)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all cores)")


def _processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="processes that make the data (default: on a GPU, all cores but two; else none beside the training)",
    )


def _made_by(args: argparse.Namespace, device: str) -> int:
    """How many processes make the data."""
    import os

    if args.processes is not None:
        return int(args.processes)
    return 0 if device == "cpu" else max(1, (os.cpu_count() or 1) - 2)


def _machine(args: argparse.Namespace) -> str:
    """Set the threads; returns the device to train on.

    Raises:
        BadInput: torch sees no such device.
    """
    import os

    import torch
    from transformers.utils.logging import disable_progress_bar

    from ...errors import BadInput
    from .loop import usual_device

    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    disable_progress_bar()  # the commands report their own progress
    device = args.device or usual_device()
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise BadInput("no such kind of device", where=f"--device {device}", fix="Give cpu, cuda or cuda:N")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise BadInput(f"torch cannot use it: {reason}", where=f"--device {device}", fix="cpu always works") from None
    return str(device)


def _store(args: argparse.Namespace) -> Any:
    from ...steering.store import ProfileStore

    return args.default_store() if args.store is None else ProfileStore(args.store)


def _reporter(args: argparse.Namespace) -> Callable[[list[Point], float], None]:
    """Prints the curve to stderr as it grows, and draws it where a picture is asked for."""
    need_png(args.curve, "--curve", "curve")

    def report(curve: list[Point], left: float) -> None:
        point = curve[-1]
        seconds = max(point.seconds, 1e-9)
        waits = f"  {point.waited / seconds:.0%} of the time without data" if point.waited > WAITS * seconds else ""
        print(
            f"step {point.step:>6}  loss {point.loss:.4f}  {point.tokens / seconds:,.0f} tokens/s"
            f"  {left / 60:.1f} min left{waits}",
            file=sys.stderr,
            flush=True,
        )
        if args.curve is not None:
            from ...home import write_atomic
            from .picture import curve_png

            write_atomic(args.curve, curve_png(curve, args.name))

    return report


def _print_card(card: dict[str, Any], where: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(card, indent=2))
    else:
        print(f"{where}: {card['parameters']:,} parameters, {card['seconds']} s, loss {card['final_loss']}")
        if "scores" in card:
            print(_scores_line(card["scores"]))


def _scores_line(scores: dict[str, Any]) -> str:
    """Held-out scores in words; what is not known is left out."""
    unscored = scores.get("unscored") or []
    if scores["held_loss"] is None:
        return f"could not be scored: {unscored[0]['why']}" if unscored else "nothing was held out to score on"
    if "seeds" not in scores:
        return f"held-out loss {scores['held_loss']:.4f} on {scores['held_out']['documents']} conversations"
    line = f"held-out loss {scores['held_loss']:.4f} on {scores['held_out']['documents']} conversations"
    if scores["held_loss_sd"] is not None:
        line += f"; {len(scores['seeds'])} seeds: {scores['held_loss_mean']:.4f} ± {scores['held_loss_sd']:.4f}"
    if scores["first_calls"] is not None:
        line += f"; first calls exact {scores['first_calls']:.1%}"
    if scores["churn"] is not None:
        line += f"; churn {scores['churn']:.1%}"
    known, asked = scores["first_answers_known"], scores["held_out"]["documents"]
    if known is not None and known < asked:
        line += f"; {asked - known} of {asked} first answers are not known"
    return line + "".join(f"; seed {one['seed']} could not be scored: {one['why']}" for one in unscored)


def run_base(args: argparse.Namespace) -> int:
    """`trimtab train base`."""
    from ...errors import NotFound
    from ...home import home
    from ..card import find_model
    from ..embedded import LARGE, MODELS, SMALL
    from .base import train_base
    from .recipe import load_recipe

    recipes = {SMALL: RECIPES / "nano.yaml", LARGE: RECIPES / "large.yaml"}
    usual = RECIPES / "nano_more.yaml" if args.go_on_from else recipes.get(args.name)
    if usual is None or args.name not in recipes:
        raise NotFound(f"no recipe for a base model {args.name!r}", fix=f"Known: {', '.join(recipes)}")
    grow_from = args.grow_from or (SMALL if args.name == LARGE and not args.go_on_from else None)
    out = args.out or MODELS / args.name
    work = args.work or home() / "training" / args.name
    report = _reporter(args)
    need_place(out, "--out", folder=True)
    need_place(work, "--work", folder=True)
    device = _machine(args)
    card = train_base(
        args.name,
        load_recipe(args.recipe or usual),
        out,
        work,
        grow_from=find_model(grow_from).path if grow_from else None,
        go_on_from=find_model(args.go_on_from).path if args.go_on_from else None,
        tokenizer_from=find_model(args.tokenizer).path if args.tokenizer else None,
        minutes=args.minutes,
        device=device,
        processes=_made_by(args, device),
        report=report,
    )
    _print_card(card, out, args.json)
    return 0


def run_adapter(args: argparse.Namespace) -> int:
    """`trimtab train adapter`."""
    from contextlib import ExitStack

    from ..card import find_model
    from .adapter import train_adapter
    from .profile import adapter_profile, passing_folder, profile_place
    from .recipe import load_recipe
    from .sources import conversations

    usual = RECIPES / ("adapter_more.yaml" if args.go_on_from else "adapter.yaml")
    recipe = load_recipe(args.recipe or usual, steps=args.steps, seed=args.seed)
    base = find_model(args.base)
    start, version = None, args.version or "1"
    if args.go_on_from:
        start, next_version = _start(args, base)
        version = args.version or next_version
        if args.seed is None:
            # Other conversations, or another order, than it was trained on before.
            recipe = recipe.model_copy(update={"seed": recipe.seed + start.rounds})
    report = _reporter(args)
    # Found now, not after the training.
    need_place(args.out, "--out", folder=True)
    need_place(args.work, "--work", folder=True)
    place = args.out or profile_place(args.name, version, base, _store(args), replace=args.replace)
    device = _machine(args)
    with ExitStack() as stack:
        documents, source, held = conversations(args, base.path, recipe, stack)
        target = args.out or stack.enter_context(passing_folder())
        card = train_adapter(
            base.path,
            base.name,
            documents,
            source,
            recipe,
            target,
            held=held,
            seeds=args.seeds,
            start=start,
            device=device,
            work=args.work,
            report=report,
        )
        if args.out is None:
            adapter_profile(args.name, target, base, card, place, version, replace=args.replace)
    _print_card(card, place, args.json)
    return 0


def _start(args: argparse.Namespace, base: ModelCard) -> tuple[Start, str]:
    """The adapter that `--go-on-from` names, and the version of the profile to make of it."""
    from ...steering.files import model_sha256
    from .adapter import Start
    from .score import adapter_of

    store = _store(args)
    profile = store.get(args.go_on_from)
    known = {"profile": profile.id, "sha256": profile.sha256, **(profile.document.provenance or {})}
    start = Start(adapter_of(profile, model_sha256(base.path)), known)
    if profile.name != args.name:
        return start, "1"
    taken = (profile_id.rpartition("@")[2] for profile_id in store.ids(f"{args.name}@*"))
    return start, str(1 + max((int(version) for version in taken if version.isdecimal()), default=0))


def run_score(args: argparse.Namespace) -> int:
    """`trimtab train score`."""
    from contextlib import ExitStack

    from ...steering.files import model_sha256
    from ..card import find_model
    from .score import adapter_of, score, table, to_json
    from .sources import scored_on

    base = find_model(args.base)
    device = _machine(args)
    store, sha256 = _store(args), model_sha256(base.path)
    profiles = [store.get(name) for name in args.profiles]
    adapters = [(profile.id, adapter_of(profile, sha256)) for profile in profiles]
    with ExitStack() as stack:
        held = scored_on(args, base.path, stack)
        found = score(base.path, base.name, adapters, held, device)
    print(json.dumps(to_json(found, held), indent=2) if args.json else table(found, len(held.documents)))
    return 0


def run_place(args: argparse.Namespace) -> int:
    """`trimtab train place`."""
    from contextlib import ExitStack

    from ...home import write_atomic
    from ..card import find_model
    from .picture import rates_png
    from .place import RATES, place, table
    from .recipe import load_recipe
    from .sources import conversations

    need_png(args.plot, "--plot", "picture")
    recipe = load_recipe(args.recipe)
    base = find_model(args.base)
    device = _machine(args)
    with ExitStack() as stack:
        documents, source, held = conversations(args, base.path, recipe, stack)
        found = place(
            base.path,
            documents(recipe.seed),
            source,
            held,
            recipe,
            args.steps,
            args.rates or RATES,
            device=device,
            processes=args.processes,
        )
    print(json.dumps(found.to_json(), indent=2) if args.json else table(found), flush=True)
    if args.plot is not None:
        write_atomic(args.plot, rates_png(found))
    return 0


def run_sizes(args: argparse.Namespace) -> int:
    """`trimtab train sizes`."""
    import re

    from ...errors import BadInput
    from ...home import home, write_atomic
    from .picture import sizes_png
    from .recipe import load_recipe
    from .sizes import HEAD, SHAPES, Shape, compare, table

    need_png(args.plot, "--plot", "picture")
    need_place(args.work, "--work", folder=True)
    shapes = []
    for text in args.shapes or ():
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None or int(match[1]) < 2 or int(match[2]) < 3 * HEAD or int(match[2]) % HEAD:
            raise BadInput(
                f"{text!r} is no shape",
                where="--shapes",
                fix=f"Layers (2 or more) x width (a multiple of {HEAD}), as 6x256",
            )
        shapes.append(Shape(int(match[1]), int(match[2])))
    device = _machine(args)
    runs = compare(
        load_recipe(args.recipe or RECIPES / "nano.yaml"),
        shapes or SHAPES,
        args.minutes,
        args.work or home() / "sizes",
        device=device,
        processes=_made_by(args, device),
    )
    document = {"minutes": args.minutes, "runs": [run.to_json() for run in runs]}
    print(json.dumps(document, indent=2) if args.json else table(runs), flush=True)
    if args.plot is not None:
        write_atomic(args.plot, sizes_png(runs))
    return 0


def run_data(args: argparse.Namespace) -> int:
    """`trimtab train data`: the same files every time, as long as the phrasings are the same. What is there with other
    content stays, unless `--replace` is given; all files are written, or none."""
    import yaml

    from ...errors import BadInput
    from ...home import write_atomic
    from ..embedded import HERE
    from ..embedded.corpus import contrast_pairs
    from ..embedded.intents import INTENTS
    from ..embedded.tasks import suite_tasks, task_kinds

    pairs = args.pairs or HERE / "pairs"
    suites = args.suites or HERE.parents[1] / "evals" / "suites"
    made: dict[Path, tuple[str, str]] = {}
    for axis in ("detail", "register"):
        need_place(pairs / f"{axis}.jsonl", "--pairs")
        rows = contrast_pairs(axis, "calc", 200, seed=11)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        made[pairs / f"{axis}.jsonl"] = text, f"{len(rows)} pairs"
    small, families = [], []
    for number, family in enumerate(INTENTS):
        small += suite_tasks("test", family, 5, seed=21 + number)
        families += suite_tasks("test", family, 2 * len(task_kinds(family)), seed=41 + number)
    for name, tasks in {"small": small, "families": families}.items():
        need_place(suites / f"{name}.yaml", "--suites")
        text = yaml.safe_dump({"name": name, "tasks": tasks}, sort_keys=False, allow_unicode=True, width=120)
        made[suites / f"{name}.yaml"] = text, f"{len(tasks)} tasks"
    others = [file for file, (text, _) in made.items() if file.exists() and file.read_bytes() != text.encode()]
    if others and not args.replace:
        raise BadInput(
            "already there with other content; nothing was written",
            where=", ".join(map(str, others)),
            fix="Name other folders with --pairs and --suites, or give --replace",
        )
    for file, (text, holds) in made.items():
        write_atomic(file, text)
        print(f"{file}: {holds}")
    return 0
