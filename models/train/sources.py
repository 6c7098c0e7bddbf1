"""What a training command trains on and what it scores on: a family of the corpus, or a user's own conversations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from ..embedded.answers import Style
    from .held import Held
    from .recipe import Recipe


def conversations(args: argparse.Namespace, base: Path, recipe: Recipe, stack: Any) -> tuple[Any, Any, Held]:
    """What to train on, by seed and the number of a chunk or pass, how the card names it, and what to score on."""
    from .data import data_hash
    from .examples import fits, hold_back, read_examples
    from .held import of_rows
    from .passes import Passes

    fixed = _fixed_style(args.family, args.style)
    if args.family:
        return _family_source(args.family, args.style, fixed, stack)
    from transformers import AutoTokenizer

    rows = read_examples(args.data, fits(AutoTokenizer.from_pretrained(base), recipe.length))
    learned, held = hold_back(rows)
    source = {"file": args.data.resolve().name, "rows": len(rows), "trained_on": len(learned)}
    return partial(Passes, learned), source | {"sha256": data_hash(rows)}, of_rows(held, len(rows))


def scored_on(args: argparse.Namespace, base: Path, stack: Any) -> Held:
    """The conversations to score adapters on: of a family's test side, or all of a user's."""
    from ..embedded.corpus import open_world
    from .examples import fits, read_examples
    from .held import of_family, of_rows
    from .score import LENGTH

    fixed = _fixed_style(args.family, args.style)
    if args.family:
        return of_family(stack.enter_context(open_world()), args.family, fixed, args.conversations)
    from transformers import AutoTokenizer

    rows = read_examples(args.data, fits(AutoTokenizer.from_pretrained(base), 4 * LENGTH))
    return of_rows(rows, len(rows))


def _fixed_style(family: str | None, style: str | None) -> Style | None:
    """The style that `--style` names; None without one.

    Raises:
        BadInput: it has no family to go with, or the family, or a word of it, is unknown.
    """
    from ...errors import BadInput
    from ...tools.builtin import FAMILIES
    from ..embedded.answers import AXES, PLAIN, styled

    if style and not family:
        raise BadInput("--style goes with --family", where="--style")
    if family and family not in FAMILIES:
        raise BadInput(f"no family {family!r}", where="--family", fix=f"Known: {', '.join(FAMILIES)}")
    if not family or style is None:
        return None
    try:
        return styled([word.strip() for word in style.split(",")], PLAIN)
    except KeyError as error:
        known = ", ".join("|".join(sides) for sides in AXES.values())
        raise BadInput(f"{error} is no side of a behaviour", where="--style", fix=f"Known: {known}") from None


def _family_source(family: str, style: str | None, fixed: Style | None, stack: Any) -> tuple[Any, dict[str, Any], Held]:
    """The documents of a family's adapter, how the card names them, and its held-out conversations.

    Args:
        style: as it was given; `fixed` is what it names.
    """
    from ..embedded.corpus import family_documents, open_world
    from .held import of_family

    world = stack.enter_context(open_world())
    held = of_family(world, family, fixed)

    def documents(seed: int) -> Any:
        return lambda chunk: family_documents(seed * 1_000_003 + 500_000 + chunk, world, family, fixed)

    source = {"family": family, "style": style, "generator": "trimtab.models.embedded.corpus.family_documents"}
    return documents, source, held
