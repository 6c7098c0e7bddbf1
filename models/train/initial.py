"""Initial weights that already copy: a small model need not wait for induction heads to form by chance.

A model that calls tools copies names and values out of its prompt. The heads that do so (a previous-token head feeding
an induction head) appear late in training and all at once; with a few million tokens they may not appear at all. RoPE
has a closed form for the first half: with q = R(-r) psi and k = psi, constant vectors on the fast frequencies,
attention peaks at distance r (arXiv 2410.06205, proposition 3.1). The second half is content matching on the slow
frequencies, which rotate too little to disturb it. Everything stays trainable and in the stock architecture; only the
starting point differs.

The residual stream is laid out as: dimension 0 constant; `TOKEN` what the token is; `BEFORE` a projection of the token
before. Layer 0 writes `BEFORE`; layer 1 finds where the present token stood before and copies what came next. The
shifts that tell the variants of a word apart (`variants.py`) lie outside `TOKEN`, so ` Milk` is found and copied like
`milk`.
"""

from __future__ import annotations

from typing import Any

import torch

from .variants import Variants

FAST = 8
"""Frequencies used to attend by distance."""
SLOW = 16
"""Frequencies used to match content: 2 x SLOW dimensions."""
SHARPNESS = 2.2
"""Weight of the query norm in the two layers: the largest attention logit is sqrt(head_dim) times it."""
SIGMA = 0.05
"""Standard deviation of the token dimensions of the embedding."""
GAIN = 2.0
"""How much stronger than the present token a copied one is written."""
QUIET = 0.15
"""Factor on every other write into the residual stream, whose own scale is that of the small embedding."""


def _rotate(vector: torch.Tensor, inv_freq: torch.Tensor, distance: int) -> torch.Tensor:
    """RoPE's rotation by `distance` places, in the rotate-half layout."""
    half = len(vector) // 2
    cos, sin = torch.cos(inv_freq * distance), torch.sin(inv_freq * distance)
    first, second = vector[:half], vector[half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


@torch.no_grad()
def copying_heads(model: Any, seed: int, variants: Variants | None = None) -> None:
    """Set a freshly made Qwen3 model's first two layers and embedding so that it copies from the start.

    Args:
        model: a `Qwen3ForCausalLM` with at least 2 layers, 2 key-value heads, and hidden size at least
            1 + 2 head_dim + 2 SLOW.
        variants: the embedding's parameters; set in place of the model's own where given.
        seed: draws the projection and the embedding.
    """
    rng = torch.Generator().manual_seed(seed)
    config = model.config
    dim, width = config.head_dim, config.hidden_size
    group = config.num_attention_heads // config.num_key_value_heads
    half = dim // 2
    token = slice(1, 1 + 2 * dim)
    match = 2 * SLOW
    before = slice(token.stop, token.stop + match)
    base = config.rope_parameters["rope_theta"]
    inv_freq = base ** (-torch.arange(half, dtype=torch.float32) / half)

    for block in model.model.layers:
        block.self_attn.o_proj.weight.mul_(QUIET)
        block.mlp.down_proj.weight.mul_(QUIET)
    embedding = model.model.embed_tokens.weight if variants is None else variants.roots
    embedding.zero_()
    embedding[:, token] = torch.randn(len(embedding), 2 * dim, generator=rng) * SIGMA
    constant = SIGMA * (2 * dim) ** 0.5 / 2
    embedding[:, 0] = constant
    embedding[:, token.stop :] = torch.randn(len(embedding), width - token.stop, generator=rng) * SIGMA * 0.1
    if variants is not None:
        variants.shifts.zero_()
        variants.shifts[:, before.stop :] = torch.randn(2, width - before.stop, generator=rng) * SIGMA
        model.model.embed_tokens.weight.copy_(variants())
    rms = ((constant**2 + 2 * dim * SIGMA**2) / width) ** 0.5

    psi = torch.zeros(dim)
    psi[:FAST] = psi[half : half + FAST] = (
        1.0  # equal power: drawn at random it may favour a frequency that is too slow
    )
    projection = torch.linalg.qr(torch.randn(2 * dim, match, generator=rng))[0].T  # [match, 2 dim], orthonormal rows
    slow = torch.cat([torch.arange(half - SLOW, half), torch.arange(dim - SLOW, dim)])

    def rows(head: int) -> slice:
        return slice(head * dim, (head + 1) * dim)

    first = model.model.layers[0].self_attn
    first.k_proj.weight[rows(0)] = 0
    first.k_proj.weight[rows(0), 0] = psi
    first.v_proj.weight[rows(0)] = 0
    first.v_proj.weight[slice(0, match), token] = projection
    first.q_proj.weight[rows(0)] = 0
    first.q_proj.weight[rows(0), 0] = _rotate(psi, inv_freq, -1)
    first.o_proj.weight[:, rows(0)] = 0
    first.o_proj.weight[before, :match] = torch.eye(match) * rms
    first.q_norm.weight.fill_(SHARPNESS)

    attention = model.model.layers[1].self_attn
    attention.q_norm.weight.fill_(SHARPNESS)
    for kv in range(2):
        head = kv * group
        attention.q_proj.weight[rows(head)] = 0
        attention.k_proj.weight[rows(kv)] = 0
        asked = attention.q_proj.weight[head * dim + slow]
        asked[:, token] = projection
        attention.q_proj.weight[head * dim + slow] = asked
        kept = attention.k_proj.weight[kv * dim + slow]
        kept[:, before] = torch.eye(match)
        attention.k_proj.weight[kv * dim + slow] = kept
        part = slice(token.start + kv * dim, token.start + (kv + 1) * dim)
        attention.v_proj.weight[rows(kv)] = 0
        attention.v_proj.weight[rows(kv), part] = torch.eye(dim)
        attention.o_proj.weight[:, rows(head)] = 0
        attention.o_proj.weight[part, rows(head)] = torch.eye(dim) * rms * GAIN
