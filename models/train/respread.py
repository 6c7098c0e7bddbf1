"""Giving collapsed token embeddings directions of their own again.

The softmax pushes a token that a run never sees the same way at every step, so all such tokens end up in one place
(representation degeneration, arXiv 1907.12009, section 4). A head that copies a token through its embedding then
cannot tell them apart: months and weekdays that the first training cycle never showed had a cosine of 0.85, and
`12 July` was copied as `12 December`.
"""

from __future__ import annotations

from typing import Any

import torch


def closest(embedding: torch.Tensor) -> torch.Tensor:
    """[V, H] embedding -> [V] the largest cosine of each token with another one, around the mean embedding."""
    unit = torch.nn.functional.normalize(embedding - embedding.mean(0), dim=1)
    cosine = unit @ unit.T
    return cosine.fill_diagonal_(-1).max(1).values


@torch.no_grad()
def respread(model: Any, tokenizer: Any, threshold: float, seed: int) -> list[str]:
    """Add to each collapsed token of letters a random vector with the covariance of the embeddings that are sound.

    What a token's place says of its kind is kept: the vector is added to it.

    Args:
        model: a causal language model; its input embedding [V, H] is changed in place.
        threshold: cosine with the closest other token above which a token counts as collapsed.

    Returns:
        The tokens that were moved.
    """
    embedding = model.get_input_embeddings().weight
    near = closest(embedding) > threshold
    letters = [tokenizer.decode([i]).isalpha() for i in range(len(embedding))]
    moved = near & torch.tensor(letters)
    sound = embedding[~near] - embedding.mean(0)
    draws = torch.randn(int(moved.sum()), len(sound), generator=torch.Generator().manual_seed(seed))
    embedding[moved] += draws @ sound / len(sound) ** 0.5
    return [tokenizer.decode([i]) for i in moved.nonzero().flatten().tolist()]
