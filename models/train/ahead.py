"""The base's corpus made by several processes: a GPU learns faster than one core can write documents.

Every chunk is made from its own seed, so the batches are the same, in the same order, however many processes make them.
"""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .again import in_order
from .data import Rows
from .recipe import Recipe

WAITING = 8
"""Chunks a process that are made and not yet learned: what is made while the model is compiled is not lost."""

_made_by: Any = None
"""In a process that makes batches: the number of a chunk -> its batches."""
_open = ExitStack()
"""What such a process keeps open until it ends."""


def _start(recipe: Recipe, tokenizer_home: Path, fresh: bool) -> None:
    import torch
    from transformers import AutoTokenizer

    from ..embedded.corpus import open_world
    from .base import chunk_of, corpus

    global _made_by
    torch.set_num_threads(1)
    world = _open.enter_context(open_world())
    _made_by = chunk_of(recipe, AutoTokenizer.from_pretrained(tokenizer_home), corpus(recipe, world, fresh=fresh))


def _make(chunk: int) -> list[Rows]:
    return [_narrow(rows) for rows in _made_by(chunk)]


def _narrow(rows: Rows) -> Rows:
    """The same rows in a quarter of the bytes, for the way from process to process."""
    return Rows(*(getattr(rows, f.name).astype(np.int16) for f in fields(rows)))


def _wide(rows: Rows) -> Rows:
    return Rows(*(getattr(rows, f.name).astype(np.int64) for f in fields(rows)))


def made_by_processes(
    recipe: Recipe, tokenizer_home: Path, *, fresh: bool, processes: int
) -> Callable[[int], Generator[Rows, None, None]]:
    """`base.chunked` over the base's corpus, by so many processes.

    Args:
        tokenizer_home: folder of the tokenizer; its tokens fit into 15 bits.
        fresh: as in `base.corpus`.

    Returns:
        The step to start at -> the batches from there, endless.
    """
    from .base import chunk_steps

    def batches(start: int) -> Generator[Rows, None, None]:
        # Started anew, not forked: this process has threads, and perhaps a GPU.
        pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(recipe, tokenizer_home, fresh),
        )

        def chunks(first: int) -> Iterator[list[Rows]]:
            numbers = count(first)
            made: collections.deque[Future[list[Rows]]] = collections.deque()
            while True:
                while len(made) < WAITING * processes:
                    made.append(pool.submit(_make, next(numbers)))
                yield made.popleft().result()

        try:
            order = in_order(chunks, chunk_steps(recipe), start, repeat=recipe.repeat, seed=recipe.seed)
            yield from map(_wide, order)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return batches
