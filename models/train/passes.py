"""A user's conversations as batches. They have an end, so they are learned in passes: each once a pass, in a new order.

A pass is packed whole, and all its rows are learned before the next one's, in batches that go from one to the other.
However many steps a run has, none is then learned oftener than another by more than once.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import BadInput
from .again import in_order
from .base import chunk_steps, chunked
from .data import Clump, Encoder, Rows, pack, to_rows
from .recipe import Recipe


@dataclass(frozen=True)
class Passes:
    """All conversations again and again; the same for the same seed."""

    rows: Sequence[dict[str, Any]]
    seed: int

    def __call__(self, number: int) -> list[dict[str, Any]]:
        """The conversations in the order of that pass."""
        return [self.rows[i] for i in self.order(number)]

    def order(self, number: int) -> list[int]:
        """Their places in `rows`."""
        return random.Random(f"{self.seed} order {number}").sample(range(len(self.rows)), len(self.rows))

    def packed(self, tokenizer: Any, length: int) -> Iterator[list[Clump]]:
        """Rows of `length` tokens, pass after pass, endless.

        Raises:
            BadInput: there is nothing to learn, or nothing that fits a row.
        """
        encoder = Encoder(tokenizer)
        examples = [encoder(row) for row in self.rows]
        for number in itertools.count():
            rows = list(pack((examples[i] for i in self.order(number)), length))
            if not rows:
                raise BadInput(f"no conversation has anything to learn in {length} tokens", where="the training data")
            # The fullest come first: a run that ends within a pass would not see what packs badly.
            random.Random(f"{self.seed} rows {number}").shuffle(rows)
            yield from rows


def batches_of(
    recipe: Recipe, tokenizer: Any, documents: Callable[[int], Iterable[dict[str, Any]]]
) -> Callable[[int], Iterator[Rows]]:
    """The step to start at -> the batches from there, endless: of a corpus without end, or of `Passes`."""
    if not isinstance(documents, Passes):
        return chunked(recipe, tokenizer, documents)

    def chunks(first: int) -> Iterator[Iterator[Rows]]:
        size = chunk_steps(recipe)
        # How many rows a pass fills is known only once it is packed, so a run that goes on packs the earlier ones, too.
        rows = itertools.islice(documents.packed(tokenizer, recipe.length), first * size * recipe.batch, None)
        while True:
            yield (to_rows(list(itertools.islice(rows, recipe.batch)), recipe.length) for _ in range(size))

    return lambda start: in_order(chunks, chunk_steps(recipe), start, repeat=recipe.repeat, seed=recipe.seed)
