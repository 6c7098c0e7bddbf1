"""Difference of means over contrast pairs (CAA, arXiv 2312.06681, section 3).

    v_l = mean over pairs of [ a_l(p, c+) - a_l(p, c-) ]

where a_l reads `resid_post[l]` at the completion: the mean of its tokens (persona-vector style), its first token, or
its last one (CAA's answer letter). Serving adds `strength * v_l` at the tokens in scope. The mean of differences over
pairs equals the difference of means, so duplicated pairs change nothing and swapped completions negate v.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...errors import BadInput
from ..hooks import reading, steered
from ..intervention import Intervention, Tokens
from ..pairs import Encoded
from ..scope import Scope

Read = Literal["mean", "last", "first"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned at each layer.

    Attributes:
        vectors: layer -> v, shape [hidden_size], float32.
        norms: layer -> ||v||.
        relative: layer -> ||v|| / mean ||h||, h the activations read; None when they are all zero.
        split_half: layer -> cosine of the vectors of two random halves of the pairs; None below two pairs.
        pairs: how many pairs were read.
    """

    vectors: Mapping[int, torch.Tensor]
    norms: Mapping[int, float]
    relative: Mapping[int, float | None]
    split_half: Mapping[int, float | None]
    pairs: int


def learn(
    model: nn.Module,
    pairs: Sequence[Encoded],
    layers: Sequence[int],
    *,
    read: Read = "mean",
    seed: int = 0,
    progress: Progress | None = None,
) -> Learned:
    """Read activations and take the difference of means.

    Args:
        model: a Hugging Face causal language model in eval mode, with its adapter applied if it is to be read with one.
        pairs: at least one.
        layers: block indices.
        read: which tokens of a completion count.
        seed: draws the two halves of `split_half`.
        progress: called with (pairs done, pairs in all).

    Raises:
        BadInput: no pairs, or a layer that does not exist.
    """
    if not pairs:
        raise BadInput("no pairs to learn from", where="pairs", fix="Give more pairs, or hold out fewer")
    differences: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    lengths: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    device = next(model.parameters()).device
    with torch.inference_mode(), reading(model, layers) as seen:
        for number, pair in enumerate(pairs):
            sides = []
            for completion in (pair.positive, pair.negative):
                model(input_ids=torch.tensor([pair.prompt + completion], device=device), use_cache=False)
                sides.append({layer: _read(seen[layer][0, len(pair.prompt) :], read) for layer in layers})
            for layer in layers:
                differences[layer].append(sides[0][layer] - sides[1][layer])
                lengths[layer] += [side[layer].norm() for side in sides]
            if progress is not None:
                progress(number + 1, len(pairs))
    stacks = {layer: torch.stack(rows) for layer, rows in differences.items()}
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    half = len(order) // 2
    vectors = {layer: stack.mean(0).to(torch.float32) for layer, stack in stacks.items()}
    scale = {layer: float(torch.stack(rows).mean()) for layer, rows in lengths.items()}
    return Learned(
        vectors=vectors,
        norms={layer: float(vector.norm()) for layer, vector in vectors.items()},
        relative={layer: float(v.norm()) / scale[layer] if scale[layer] > 0 else None for layer, v in vectors.items()},
        split_half={
            layer: _cosine(stack[order[:half]].mean(0), stack[order[half:]].mean(0)) if half else None
            for layer, stack in stacks.items()
        },
        pairs=len(pairs),
    )


def _read(states: torch.Tensor, read: Read) -> torch.Tensor:
    """Activations [tokens, hidden_size] of a completion as one vector, float64 on the CPU."""
    states = states.to("cpu", torch.float64)
    return states.mean(0) if read == "mean" else states[-1 if read == "last" else 0]


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float | None:
    product = float(a.norm() * b.norm())
    return float(a @ b) / product if product > 0 else None


def log_margins(
    model: nn.Module,
    pairs: Sequence[Encoded],
    interventions: Sequence[Intervention],
    progress: Progress | None = None,
    tokenizer: Any = None,
) -> list[float]:
    """log p(c+ | p) - log p(c- | p) of each pair in nats, end-of-turn token included, under some interventions.

    `tokenizer` is needed where a scope of these reads the generated text.
    """
    out = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for number, pair in enumerate(pairs):
            sides = []
            for completion in (pair.positive, pair.negative):
                with steered(model, interventions, len(pair.prompt), tokenizer=tokenizer):
                    answer = completion if pair.end is None else [*completion, pair.end]
                    ids = torch.tensor([pair.prompt + answer], device=device)
                    logits = model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1]
                    logprobs = torch.log_softmax(logits.to(torch.float32), -1)
                    sides.append(float(logprobs.gather(-1, ids[0, len(pair.prompt) :, None]).sum()))
            out.append(sides[0] - sides[1])
            if progress is not None:
                progress(number + 1, len(pairs))
    return out


MULTIPLES = (0.5, 1.0, 2.0)
"""Of its strength, at which a vector is checked: a curve that bends back before 2 says that 1 is near the most."""


def check(
    model: nn.Module,
    pairs: Sequence[Encoded],
    vectors: Mapping[int, torch.Tensor],
    strength: float,
    tokens: Scope | Tokens,
    *,
    controls: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    tokenizer: Any = None,
) -> dict[str, Any] | None:
    """The held-out check: how the log-prob margin of positive over negative moves with the strength.

    Args:
        model, vectors, tokens: as learned and as served.
        tokenizer: the model's; needed where `tokens` reads the generated text.
        pairs: pairs that were not learned from; none gives None.
        strength: margins are taken at 0 and at `MULTIPLES` of |strength|, to both sides.
        controls: how many random directions of the same norms to try at +|strength|, as a control.
        seed: draws the controls.
        progress: called with (passes done, passes in all).

    Returns:
        JSON-ready: `pairs`; `points`, each with strength, mean `margin` in nats and the share `preferred` of pairs with
        a positive margin; `moved`, the share of pairs whose margin grows from -s to +s; `monotone`; `random_shift`, the
        shifts of the mean margin by random directions, or None without controls.
    """
    if not pairs:
        return None
    size = abs(strength)
    factors = sorted({sign * size * multiple for multiple in MULTIPLES for sign in (-1, 1)} | {0.0})
    total, done = (len(factors) + controls) * len(pairs), 0

    def margins(directions: Mapping[int, torch.Tensor], factor: float) -> list[float]:
        nonlocal done
        parts = [Intervention(layer, vector * factor, tokens) for layer, vector in directions.items()]
        tick = None if progress is None else (lambda n, _: progress(done + n, total))
        values = log_margins(model, pairs, parts, tick, tokenizer)
        done += len(pairs)
        return values

    by_strength = {factor: margins(vectors, factor) for factor in factors}
    means = {factor: sum(values) / len(values) for factor, values in by_strength.items()}
    generator = torch.Generator().manual_seed(seed)
    shifts = []
    for _ in range(controls):
        draws = {layer: torch.randn(vector.shape, generator=generator) for layer, vector in vectors.items()}
        draws = {layer: draw * (vectors[layer].norm() / draw.norm()) for layer, draw in draws.items()}
        values = margins(draws, size)
        shifts.append(sum(values) / len(values) - means[0.0])
    low, high = by_strength[-size], by_strength[size]
    return {
        "measure": "log p(positive) - log p(negative), nats, on held-out pairs",
        "pairs": len(pairs),
        "points": [
            {"strength": factor, "margin": means[factor], "preferred": sum(v > 0 for v in values) / len(values)}
            for factor, values in by_strength.items()
        ],
        "moved": sum(b > a for a, b in zip(low, high, strict=True)) / len(pairs),
        "monotone": means[-size] < means[0.0] < means[size],
        "random_shift": shifts or None,
    }
