"""`trimtab steer learn means|weights` and `trimtab profiles list|show|make|load|unload`; more in `lifecycle.py`.

Steering lies below the models and knows neither their cards nor where a server runs. What it needs from above, the
command line sets once with `parser.set_defaults(...)`:

- `find_base(name) -> object with .name and .path`: resolves `--base` (without it, only folders are accepted);
- `default_store() -> ProfileStore`: the user's profiles, then the shipped ones (without it, `<home>/profiles` alone);
- `find_server() -> str`: the URL of the running server (without it, `TRIMTAB_URL` or http://127.0.0.1:8000).

Each handler takes the parsed arguments, returns an exit code, and raises the errors of `trimtab.errors`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, EngineRefused, EngineUnavailable

if TYPE_CHECKING:
    from .profile import Profile
    from .store import ProfileStore

DEFAULT_URL = "http://127.0.0.1:8000"
MOST_LAYERS = 1000
"""Layers that `--layers` names at most."""


def add_commands(subparsers: Any) -> None:
    """Add `steer` and `profiles` to the command line's sub-parsers; each leaf sets `handler`."""
    steer = subparsers.add_parser("steer", help="learn steering profiles")
    learn = steer.add_subparsers(required=True, metavar="COMMAND").add_parser("learn", help="learn a profile from data")
    methods = learn.add_subparsers(required=True, metavar="METHOD")

    means = methods.add_parser("means", help="activation vectors: difference of means over contrast pairs")
    _profile_arguments(means)
    means.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="contrast pairs, JSONL")
    means.add_argument(
        "--layers", type=_layers, required=True, metavar="L,L", help="blocks to steer, from 0: 2,3 or 2-4"
    )
    means.add_argument("--strength", type=float, required=True, help="how many times the vector is added")
    means.add_argument("--negate", action="store_true", help="steer towards the negative completions")
    means.add_argument("--tokens", choices=("all", "prompt", "generated"), default="all", help="token scope")
    means.add_argument(
        "--steps", type=_steps, metavar="S,S", help="steer only while the model is about: decide, arguments, answer"
    )
    means.add_argument("--read", choices=("mean", "last", "first"), default="mean", help="completion tokens to read")
    means.add_argument("--held-out", type=float, default=0.25, metavar="SHARE", help="share of prompts to check with")
    means.add_argument("--controls", type=int, default=3, metavar="N", help="random directions in the check")
    means.add_argument("--seed", type=int, default=0)
    means.add_argument("--plot", type=Path, metavar="FILE", help="a .png file: the check on held-out pairs")
    means.set_defaults(handler=_learn_means)

    weights = methods.add_parser("weights", help="weight delta: the direction between two adapters")
    _profile_arguments(weights)
    weights.add_argument("--plus", type=Path, required=True, metavar="DIR", help="adapter trained on the behaviour")
    weights.add_argument("--minus", type=Path, required=True, metavar="DIR", help="adapter trained on its opposite")
    weights.add_argument("--strength", type=float, required=True, help="how many times the direction is added")
    weights.set_defaults(handler=_learn_weights)

    profiles = subparsers.add_parser("profiles", help="list, make, load and unload profiles")
    leaves = profiles.add_subparsers(required=True, metavar="COMMAND")
    listing = leaves.add_parser("list", help="the profiles there are")
    listing.add_argument(
        "pattern", nargs="?", default="*", help="only names or name@version like this, such as 'calc*'"
    )
    listing.add_argument("--ids", action="store_true", help="name@version alone, at once however many there are")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(handler=_list)
    show = leaves.add_parser("show", help="all about one profile")
    show.add_argument("profile", help="name, name@version or name@sha256:...")
    show.add_argument("--json", action="store_true")
    show.add_argument("--plot", type=Path, metavar="FILE", help="a .png file: its check on held-out pairs")
    show.set_defaults(handler=_show)
    make = leaves.add_parser("make", help="a profile of an adapter alone")
    _profile_arguments(make)
    make.set_defaults(handler=_make)
    from . import lifecycle

    lifecycle.add_commands(leaves, _store)
    for action, text in (("load", "make a profile live on the running server"), ("unload", "take a profile off it")):
        leaf = leaves.add_parser(action, help=text)
        leaf.add_argument("profile", help="name, name@version or name@sha256:...")
        leaf.add_argument("--url", help="the server (default: the one that runs)")
        leaf.add_argument("--json", action="store_true")
        leaf.set_defaults(handler=_load_or_unload, action=action)


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, help="base model: a name or a folder")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA the profile carries (PEFT folder)")
    parser.add_argument("--name", required=True, help="the profile's name")
    parser.add_argument("--version", default="1", help="the profile's version")
    parser.add_argument("--description", default="")
    parser.add_argument("--temperature", type=float, help="decoding default")
    parser.add_argument("--out", default="store", help="a folder, or `store` (default)")
    parser.add_argument("--replace", action="store_true", help="replace the profile that is there")
    parser.add_argument("--json", action="store_true")


def _layers(text: str) -> list[int]:
    """`2,3,4` or `2-4` as numbers."""
    out: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            layers = range(int(first), int(last if dash else first) + 1)
            if len(layers[: MOST_LAYERS + 1]) + len(out) > MOST_LAYERS:  # a range may be too long to have a length
                raise ValueError
            out += layers
    except ValueError:
        out = []
    if not out:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers such as 2,3,4 or 2-4")
    return sorted(set(out))


def _steps(text: str) -> list[str]:
    """`answer` or `decide,answer`, checked."""
    from .scope import STEPS

    parts = text.split(",")
    if not set(parts) <= set(STEPS):
        raise argparse.ArgumentTypeError(f"{text!r} does not name steps: {', '.join(STEPS)}")
    return parts


def _learn_means(args: argparse.Namespace) -> int:
    from ..arguments import need_png
    from .learning import learn_means, report

    need_png(args.plot, "--plot")
    name, path = _base(args)
    profile, summary = learn_means(
        base_name=name,
        base=path,
        pairs_file=args.pairs,
        layers=args.layers,
        strength=-args.strength if args.negate else args.strength,
        tokens=args.tokens,
        steps=args.steps,
        read=args.read,
        held_out=args.held_out,
        controls=args.controls,
        seed=args.seed,
        adapter=args.adapter,
        target=_target(args),
        about=_about(args),
        replace=args.replace,
        checked=args.plot is not None,
    )
    report(profile, summary, as_json=args.json)
    if args.plot is not None:
        _draw(profile, args.plot)
    return 0


def _draw(profile: Profile, file: Path) -> None:
    from ..home import write_atomic
    from .picture import calibration_png

    write_atomic(file, calibration_png(profile))


def _learn_weights(args: argparse.Namespace) -> int:
    from .learning import learn_weights, report

    name, path = _base(args)
    profile, summary = learn_weights(
        base_name=name,
        base=path,
        plus=args.plus,
        minus=args.minus,
        strength=args.strength,
        adapter=args.adapter,
        target=_target(args),
        about=_about(args),
        replace=args.replace,
    )
    report(profile, summary, as_json=args.json)
    return 0


def _make(args: argparse.Namespace) -> int:
    from .learning import make_profile, report

    if args.adapter is None:
        raise BadInput("there is nothing to put into it", where="--adapter", fix="Give a PEFT folder")
    name, path = _base(args)
    profile = make_profile(
        base_name=name,
        base=path,
        adapter=args.adapter,
        target=_target(args),
        about=_about(args),
        replace=args.replace,
    )
    report(profile, {}, as_json=args.json)
    return 0


def _base(args: argparse.Namespace) -> tuple[str, Path]:
    """Name and folder of the base model. Raises BadInput, or what `find_base` raises."""
    from ..home import expanded

    path = expanded(args.base, "--base")
    find = getattr(args, "find_base", None)
    if find is not None:
        card = find(args.base)
        return str(card.name), Path(card.path)
    if not path.is_dir():
        raise BadInput(f"{args.base!r} is not a folder", where="--base", fix="Give the folder of a Hugging Face model")
    return path.resolve().name, path


def _store(args: argparse.Namespace) -> ProfileStore:
    from ..home import home
    from .store import ProfileStore

    default = getattr(args, "default_store", None)
    store = ProfileStore(home() / "profiles") if default is None else default()
    assert isinstance(store, ProfileStore)
    return store


def _target(args: argparse.Namespace) -> Path:
    return _store(args).place(args.name, args.version) if args.out == "store" else Path(args.out)


def _about(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the YAML that come straight from the command line."""
    decoding = {} if args.temperature is None else {"temperature": args.temperature}
    return {"name": args.name, "version": args.version, "description": args.description, "decoding": decoding}


def _list(args: argparse.Namespace) -> int:
    from .listing import print_list

    print_list(_store(args), as_json=args.json, pattern=args.pattern, ids=args.ids)
    return 0


def _show(args: argparse.Namespace) -> int:
    from ..arguments import need_png
    from .listing import print_profile

    need_png(args.plot, "--plot")
    profile = _store(args).get(args.profile)
    print_profile(profile, as_json=args.json)
    if args.plot is not None:
        _draw(profile, args.plot)
    return 0


def _load_or_unload(args: argparse.Namespace) -> int:
    import json

    import httpx

    from .admin import admin_headers

    find = getattr(args, "find_server", None)
    url = args.url or (find() if find is not None else os.environ.get("TRIMTAB_URL", DEFAULT_URL))
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/trimtab/profiles/{args.action}"
    try:
        reply = httpx.post(address, json={"name": args.profile}, headers=admin_headers(), timeout=60.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineUnavailable(
            f"no answer ({error})", where=address, fix="Start a server with `trimtab serve`, or give its --url"
        ) from None
    try:
        body = reply.json()
    except ValueError:
        body = {}
    if reply.status_code >= 400:
        error_body = body.get("error", body) if isinstance(body, dict) else {}
        message = error_body.get("message") if isinstance(error_body, dict) else None
        kind = EngineRefused if reply.status_code < 500 else EngineUnavailable
        raise kind(f"HTTP {reply.status_code}: {message or reply.text[:200] or 'no message'}", where=address)
    if args.json:
        print(json.dumps(body))
    else:
        print(f"{args.profile}: {args.action}ed")
    return 0
