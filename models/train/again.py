"""The order in which the batches of an endless corpus are learned: each once, or several times.

A GPU learns faster than its machine's processors write documents. Up to its fourth time, a text is worth nearly as much
as a new one (arXiv 2305.16264, section 5), so the same batches can keep it busy.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

from .data import Rows

SHELF = 60
"""Chunks that are kept until they have been learned often enough, and come again in other orders: mostly some hundred
steps apart."""


def in_order(
    chunks: Callable[[int], Iterator[Iterable[Rows]]], size: int, start: int, *, repeat: int = 1, seed: int = 0
) -> Iterator[Rows]:
    """The batches from step `start` on, endless.

    Args:
        chunks: the number of a chunk -> the chunks from there, each of `size` batches.
        repeat: how often a batch is learned: once as it is made, then in orders drawn from `seed`.
    """
    if repeat == 1:
        skip = start % size
        for chunk in chunks(start // size):
            yield from itertools.islice(chunk, skip, None)
            skip = 0
        return
    first, skip = divmod(start, SHELF * size * repeat)
    fresh = itertools.chain.from_iterable(chunks(first * SHELF))
    for shelf in itertools.count(first):
        kept: list[Rows] = []
        for batch in itertools.islice(fresh, SHELF * size):
            kept.append(batch)
            if len(kept) > skip:
                yield batch
        for turn in range(1, repeat):
            order = random.Random(f"{seed} {shelf} {turn}").sample(range(len(kept)), len(kept))
            yield from (kept[i] for i in order[max(0, skip - turn * len(kept)) :])
        skip = 0
