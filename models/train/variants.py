"""One embedding for all variants of a word: `milk`, ` milk`, `Milk` and ` Milk` differ by two shifts that all share.

E[variant] = root[piece] + after_space * s + capitalised * c, with s and c of shape [H]. A head that copies a word out
of a request writes it the same way whatever stood before it, and whatever is learned of one variant holds for all.
The trained weights are written out as an ordinary embedding matrix.
"""

from __future__ import annotations

from typing import Any

import torch

from ..embedded.template import root_of


class Variants(torch.nn.Module):
    """The embedding matrix of a tokenizer with variants, as a function of far fewer parameters.

    Attributes:
        roots: [R, H], one row a piece.
        shifts: [2, H], what a space before and a capital add.
    """

    def __init__(self, tokenizer: Any, width: int) -> None:
        super().__init__()
        known = tokenizer.get_vocab()
        named = sorted(known, key=known.__getitem__)
        roots: dict[str, int] = {}
        index, marks = [], []
        for token in named:
            piece, after_space, capital = root_of(token, known)
            index.append(roots.setdefault(piece, len(roots)))
            marks.append((float(after_space), float(capital)))
        self.roots = torch.nn.Parameter(torch.zeros(len(roots), width))
        self.shifts = torch.nn.Parameter(torch.zeros(2, width))
        self.index: torch.Tensor
        self.marks: torch.Tensor
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.register_buffer("marks", torch.tensor(marks), persistent=False)

    def forward(self) -> torch.Tensor:
        """[V, H]: the embedding of every token."""
        return self.roots[self.index] + self.marks @ self.shifts

    @torch.no_grad()
    def read(self, weight: torch.Tensor) -> None:
        """Take over a matrix [V, H] that was written by `forward`: exactly, up to its rounding."""
        rows = weight.float()
        plain = (self.marks.sum(1) == 0).nonzero().flatten()
        self.roots[self.index[plain]] = rows[plain]
        for side in (0, 1):
            other = 1 - side
            only = ((self.marks[:, side] == 1) & (self.marks[:, other] == 0)).nonzero().flatten()
            self.shifts[side] = (rows[only] - self.roots[self.index[only]]).mean(0)
