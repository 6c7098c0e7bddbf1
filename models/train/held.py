"""What an adapter is scored on: conversations that it was not trained on, and the loss on them.

Most of that loss cannot be learned away: an answer's manner is drawn (`embedded.answers`). What is right or wrong are
the calls, whose loss is a few hundredths of the whole; it is told beside it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .attention import faster
from .data import IGNORE, Encoder, Rows, pack, to_rows
from .loop import backbone_of, loss_of

if TYPE_CHECKING:
    from ..embedded.answers import Style
    from ..embedded.corpus import World

COUNT = 64
"""Conversations of a family's test split."""
BASE_COUNT = 96
"""The same, for a base model."""
SEED = 977
"""Which ones: always the same, so that runs compare."""


@dataclass(frozen=True)
class Held:
    """Conversations that are scored on.

    Attributes:
        source: where they come from, for the card.
    """

    documents: tuple[dict[str, Any], ...]
    source: dict[str, Any] = field(default_factory=dict)


def of_family(world: World, family: str, style: Style | None, count: int = COUNT) -> Held:
    """Conversations of a family in the phrasings of the test split, otherwise as its adapter is trained on them."""
    from ..embedded.corpus import family_group

    rng = random.Random(SEED)

    def groups() -> Any:
        while True:
            yield from family_group(
                rng, world, family, "test", count=4, whole=0.8, style=style, specialist=style is None
            )

    return _of_test(groups(), count)


def _of_test(documents: Iterator[dict[str, Any]], count: int) -> Held:
    chosen = tuple(itertools.islice(documents, count))
    return Held(chosen, {"split": "test", "documents": len(chosen)})


def of_base(world: World, count: int = BASE_COUNT) -> Held:
    """Conversations of every family in the phrasings of the test split, and as many again of made-up tools."""
    from ...tools.builtin import FAMILIES
    from ..embedded.corpus import family_group
    from ..embedded.random_tools import group

    rng = random.Random(SEED)

    def groups() -> Iterator[dict[str, Any]]:
        for family in itertools.cycle(FAMILIES):
            yield from family_group(rng, world, family, "test", count=3)
            yield from group(rng, 3)

    return _of_test(groups(), count)


def of_rows(rows: Sequence[dict[str, Any]], out_of: int) -> Held:
    """A user's rows that were held back, out of so many."""
    return Held(tuple(rows), {"held_back": len(rows), "out_of": out_of, "documents": len(rows)})


def packed(tokenizer: Any, held: Held, length: int, batch: int = 4, *, calls_only: bool = False) -> list[Rows]:
    """The conversations as rows of at least `length` tokens; longer where one of them is, so that none is left out.

    Args:
        calls_only: leave out conversations without calls, and let nothing count but these.
    """
    encoder = Encoder(tokenizer, calls_only=calls_only)
    examples = [e for e in (encoder(document) for document in held.documents) if any(e.learn)]
    if not examples:
        return []
    length = max(length, *(len(e.ids) for e in examples))
    rows = list(pack(examples, length))
    return [to_rows(rows[i : i + batch], length) for i in range(0, len(rows), batch)]


@torch.no_grad()
def held_loss(model: Any, batches: Sequence[Rows]) -> float | None:
    """Mean cross-entropy (nats) over all learned tokens of the batches; None where there are none."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    with faster(model):
        for rows in batches:
            learned = int((rows.targets != IGNORE).sum())
            if learned:
                total += float(loss_of(model, backbone_of(model), rows)) * learned
                count += learned
    model.train(training)
    return total / count if count else None


def losses_on(tokenizer: Any, held: Held, length: int) -> Callable[[Any], tuple[float | None, float | None]]:
    """A model -> its losses on the conversations, in all and in their calls: `held_loss` on rows of `packed`."""
    rows, calls = (packed(tokenizer, held, length, calls_only=only) for only in (False, True))
    return lambda model: (held_loss(model, rows), held_loss(model, calls))
