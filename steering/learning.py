"""From data or adapters to a profile on disk: what the `learn` commands do, callable from Python.

All three functions write the profile whole or not at all, and return it as loaded back from disk.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import BadInput
from ..home import file_sha256
from .adapter import WEIGHTS, read_adapter
from .document import Document, document_of
from .files import model_sha256, read_json
from .intervention import Tokens
from .methods import difference_of_means, weight_arithmetic
from .methods.difference_of_means import Learned, Read
from .pairs import encode, read_pairs, split
from .profile import Profile, check_free, save_profile
from .scope import Scope, Step, idle

VECTORS = "vectors.safetensors"

ROUNDING = 1e-6
"""Of the activations' norm: what float32 makes of one text in two batches is a hundredth of it."""


def learn_means(
    *,
    base_name: str,
    base: Path,
    pairs_file: Path,
    layers: Sequence[int],
    strength: float,
    target: Path,
    about: Mapping[str, Any],
    tokens: Tokens = "all",
    steps: Sequence[Step] | None = None,
    read: Read = "mean",
    held_out: float = 0.25,
    controls: int = 3,
    seed: int = 0,
    adapter: Path | None = None,
    replace: bool = False,
    checked: bool = False,
) -> tuple[Profile, dict[str, Any]]:
    """Learn activation vectors from contrast pairs and save them as a profile.

    Args:
        base_name, base: the base model's name and folder.
        pairs_file: JSONL, see `pairs`.
        layers: block indices, from 0.
        strength: how many times the vectors are added; below zero steers towards the negative completions.
        target: the profile's folder.
        about: `name`, `version`, `description`, `decoding` of the profile.
        tokens, read, held_out, controls, seed: see `methods.difference_of_means`.
        steps: what the model is about where the vectors are added (`scope.step_of`); None for all.
        adapter: PEFT folder that is applied while reading and becomes part of the profile.
        replace: whether a profile in `target` may be replaced.
        checked: whether a check on held-out pairs is demanded, so that it is an error where none can be held out.

    Returns:
        The profile and a JSON-ready report: per layer `norm`, `relative` and `split_half`, and the held-out `check`.

    Raises:
        BadInput: there is nothing to learn at a layer, or to steer.
        NotFound, BadInput: see `read_pairs`, `split`, `reading` and `save_profile`.
    """
    from .hooks import adapted

    scope = Scope(tokens, steps=frozenset(steps) if steps else None)
    _check_numbers(strength, seed)  # found now, not after the reading
    if idle([scope]):
        raise BadInput(
            f"no token can ever be in the scope `{scope}`",
            where="tokens, steps",
            fix="Name `decide` among the steps, which the prompt's last token is about, or other tokens",
        )
    check_free(target, replace=replace)
    document = _document(base_name, base, about, adapter)
    pairs, digest = read_pairs(pairs_file)
    learn_from, check_with = split(pairs, held_out, seed)
    if checked and not check_with:
        raise BadInput(
            f"{held_out:g} of {len({pair.prompt for pair in pairs})} prompts leaves no pair to check with",
            where=str(pairs_file),
            fix="Hold out a larger share of more prompts, or ask for no picture of the check",
        )
    model, tokenizer = _load(base)
    encoded = [[encode(pair, tokenizer) for pair in part] for part in (learn_from, check_with)]
    with adapted(model, adapter) as reader:
        with _progress("reading activations") as tick:
            learned = difference_of_means.learn(reader, encoded[0], layers, read=read, seed=seed, progress=tick)
        _check_found(learned, read, str(pairs_file))
        with _progress("checking on held-out pairs") as tick:
            check = difference_of_means.check(
                reader,
                encoded[1],
                learned.vectors,
                strength,
                scope,
                controls=controls,
                seed=seed,
                progress=tick,
                tokenizer=tokenizer,
            )
    summary = {
        "layers": {
            str(layer): {
                "norm": learned.norms[layer],
                "relative": learned.relative[layer],
                "split_half": learned.split_half[layer],
            }
            for layer in learned.vectors
        },
        "check": check,
    }
    document = _with(
        document,
        **({"steps": list(steps)} if steps else {}),
        interventions=[
            {"layer": layer, "file": VECTORS, "tensor": f"layer_{layer}", "strength": strength, "tokens": tokens}
            for layer in learned.vectors
        ],
        calibration=summary,
        provenance={
            "method": "difference_of_means",
            "source": "arXiv:2312.06681",
            "data_sha256": digest,
            "pairs": learned.pairs,
            "read": read,
            "held_out": held_out,
            "seed": seed,
            "tool_version": __version__,
        },
    )
    profile = save_profile(
        target,
        document,
        tensors={VECTORS: {f"layer_{layer}": vector for layer, vector in learned.vectors.items()}},
        adapters={} if adapter is None else {"adapter": adapter},
        replace=replace,
        hidden_size=_size(base, "hidden_size"),
        num_layers=_size(base, "num_hidden_layers"),
    )
    return profile, summary


def learn_weights(
    *,
    base_name: str,
    base: Path,
    plus: Path,
    minus: Path,
    strength: float,
    target: Path,
    about: Mapping[str, Any],
    adapter: Path | None = None,
    replace: bool = False,
) -> tuple[Profile, dict[str, Any]]:
    """Save the direction between two adapters as a profile's weight delta; arguments as in `learn_means`.

    Returns:
        The profile and a JSON-ready report of norms and of the cosine between the two updates.

    Raises:
        BadInput: an adapter is not usable, or does not fit the base model or the others.
    """
    document = _document(base_name, base, about, adapter)
    direction = weight_arithmetic.learn(plus, minus)
    summary: dict[str, Any] = {
        "norm": direction.norm,
        "plus_norm": direction.plus_norm,
        "minus_norm": direction.minus_norm,
        "cosine": direction.cosine,
        "rank": direction.rank,
        "modules": dict(direction.modules),
    }
    folder = f"deltas/{document.name}"
    document = _with(
        document,
        weight_deltas=[{"plus": f"{folder}/plus", "minus": f"{folder}/minus", "strength": strength}],
        calibration={key: value for key, value in summary.items() if key != "modules"},
        provenance={
            "method": "weight_arithmetic",
            "source": "arXiv:2511.05408",
            "plus_sha256": direction.plus_sha256,
            "minus_sha256": direction.minus_sha256,
            "tool_version": __version__,
        },
    )
    adapters = {f"{folder}/plus": plus, f"{folder}/minus": minus}
    if adapter is not None:
        adapters["adapter"] = adapter
    profile = save_profile(
        target,
        document,
        adapters=adapters,
        replace=replace,
        hidden_size=_size(base, "hidden_size"),
        num_layers=_size(base, "num_hidden_layers"),
    )
    return profile, summary


def make_profile(
    *, base_name: str, base: Path, adapter: Path, target: Path, about: Mapping[str, Any], replace: bool = False
) -> Profile:
    """Save an adapter alone as a profile; arguments and errors as in `learn_means`."""
    document = _with(
        _document(base_name, base, about, adapter), provenance={"method": "adapter", "tool_version": __version__}
    )
    return save_profile(
        target,
        document,
        adapters={"adapter": adapter},
        replace=replace,
        hidden_size=_size(base, "hidden_size"),
        num_layers=_size(base, "num_hidden_layers"),
    )


def _check_numbers(strength: float, seed: int) -> None:
    """Raises BadInput for numbers that nothing can be learned with."""
    if not math.isfinite(strength):
        raise BadInput(f"{strength!r} is no strength", where="strength", fix="Give a finite number, such as 1")
    if not -(2**63) <= seed < 2**63:
        raise BadInput(f"{seed} is too large a seed", where="seed", fix="Give a number of at most 64 bits, such as 0")


def _check_found(learned: Learned, read: Read, where: str) -> None:
    """Raises BadInput for a layer at which the completions do not differ: what is left there is rounding."""
    for layer, relative in learned.relative.items():
        if relative is None or relative <= ROUNDING:
            raise BadInput(
                f"the completions do not differ at layer {layer} where they are read: the vector would be zero",
                where=where,
                fix="Their first tokens are the same: read the mean or the last one"
                if read == "first"
                else "Give pairs whose completions differ in the same way",
            )


def _document(base_name: str, base: Path, about: Mapping[str, Any], adapter: Path | None) -> Document:
    """The part of the YAML known before any learning; a bad name or adapter is found before the long work."""
    if adapter is not None:
        read_adapter(adapter)
    data = {
        "format": 1,
        **about,
        "base": {"model": base_name, "sha256": model_sha256(base)},
        "adapter": None if adapter is None else {"path": "adapter", "sha256": file_sha256(adapter / WEIGHTS)},
    }
    return document_of(data)


def _size(base: Path, key: str) -> int | None:
    """Width or depth of the base model as its config says, for the checks of `load_profile`; None when it does not."""
    value = read_json(base / "config.json").get(key) if (base / "config.json").is_file() else None
    return value if isinstance(value, int) else None


def _with(document: Document, **fields: Any) -> Document:
    return document_of({**document.model_dump(), **fields})


def _load(base: Path) -> tuple[Any, Any]:
    """The base model, float32, ready to read, and its tokenizer. Code that comes with a model is never run."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            str(base), dtype="float32", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"the base model does not load ({first})", where=str(base), fix="Give the folder of a Hugging Face model"
        ) from None
    return model.eval(), tokenizer


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal's stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def report(profile: Profile, summary: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was learned: JSON on one line, or tables."""
    if as_json:
        head = {"profile": profile.id, "sha256": profile.sha256, "directory": str(profile.directory)}
        print(json.dumps({**head, **summary}))
        return
    from rich.markup import escape
    from rich.table import Table

    from .listing import console_for

    console = console_for()
    console.print(f"[bold]{profile.id}[/bold] sha256:{profile.sha256[:12]}  {escape(str(profile.directory))}")
    if "layers" in summary:
        table = Table("layer", "||v||", "||v|| / ||h||", "split-half cosine")
        for layer, row in summary["layers"].items():
            table.add_row(layer, *(_number(row[key]) for key in ("norm", "relative", "split_half")))
        console.print(table)
    if "norm" in summary:
        table = Table("||w||", "||plus||", "||minus||", "cosine", "rank at most")
        table.add_row(*(_number(summary[k]) for k in ("norm", "plus_norm", "minus_norm", "cosine", "rank")))
        console.print(table)
    check = summary.get("check")
    if check is None and "layers" in summary:
        console.print("No pairs were held out, so nothing was checked: give more prompts, or hold out a larger share.")
    if check is not None:
        table = Table("strength", "margin (nats)", "positive preferred", title=f"{check['pairs']} held-out pairs")
        for point in check["points"]:
            table.add_row(_number(point["strength"]), _number(point["margin"]), f"{point['preferred']:.0%}")
        console.print(table)
        shifts = check["random_shift"]
        note = "" if shifts is None else "; random directions shift it by " + ", ".join(_number(v) for v in shifts)
        console.print(f"The margin grows from -s to +s for {check['moved']:.0%} of the pairs{note}.")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
