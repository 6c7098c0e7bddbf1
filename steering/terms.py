"""The rank-1 terms of the literature, as `LowRank`. Each docstring gives the formula it equals.

With h the residual, a unit vector w, p = w . h; every function returns terms to be added to h.
"""

from __future__ import annotations

import torch

from ..errors import BadInput
from .intervention import LowRank


def _basis(directions: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows with the span of the given rows. Raises BadInput where these are not independent."""
    rows = directions.to(torch.float64).reshape(-1, directions.shape[-1])
    scaled = rows / rows.norm(dim=1, keepdim=True)
    if not torch.isfinite(scaled).all() or torch.linalg.matrix_rank(scaled) < len(rows):
        raise BadInput("a direction is zero, or hangs on the others", where="directions", fix="Leave it out")
    basis: torch.Tensor = torch.linalg.qr(scaled.T).Q.T.to(torch.float32)
    return basis


def _unit(direction: torch.Tensor) -> torch.Tensor:
    norm = direction.to(torch.float64).norm()
    if direction.dim() != 1 or not norm > 0:
        raise BadInput("a direction is one vector that is not zero", where="direction")
    unit: torch.Tensor = (direction.to(torch.float64) / norm).to(torch.float32)[None]
    return unit


def ablate(directions: torch.Tensor) -> LowRank:
    """Directional ablation (arXiv 2406.11717, section 2.4): h' = h - W^T W h, W an orthonormal basis of the directions.

    Args:
        directions: [hidden_size] or [r, hidden_size], independent.
    """
    basis = _basis(directions)
    zero, one = torch.zeros(len(basis)), torch.ones(len(basis))
    return LowRank(basis, basis, low=zero, high=zero, keep=one)


def clamp(direction: torch.Tensor, low: float | None, high: float | None) -> LowRank:
    """Keep the projection within bounds: h' = h + (clip(p, low, high) - p) w, w the unit vector of `direction`.

    Args:
        direction: [hidden_size].
        low, high: bounds of p, in units of the residual; None for no bound on that side.

    Raises:
        BadInput: no bound at all, or low above high.
    """
    floor = -torch.inf if low is None else low
    ceiling = torch.inf if high is None else high
    if (low is None and high is None) or floor > ceiling:
        raise BadInput(f"bounds {low} and {high} hold nothing in", where="low, high", fix="Give low <= high, or one")
    unit = _unit(direction)
    return LowRank(unit, unit, low=torch.tensor([floor]), high=torch.tensor([ceiling]), keep=torch.ones(1))


def clamp_feature(
    encoder: torch.Tensor, bias: float, decoder: torch.Tensor, value: float, threshold: float = 0.0
) -> tuple[torch.Tensor, LowRank]:
    """Set one feature of a sparse autoencoder, keeping its error: h' = h + (value - f(h)) d.

    f(h) = z [z > threshold], z = e . h + bias: ReLU with threshold 0, JumpReLU (arXiv 2407.14435) with its own.
    A decoder bias that is taken off before encoding belongs in `bias`, as - e . b_dec.

    Args:
        encoder, decoder: e and d, [hidden_size] each; d as it is, not made a unit vector.
        bias, threshold: of the feature.
        value: what it is set to; 0 ablates the feature.

    Returns:
        The vector to add, value * d, and the terms to add.

    Raises:
        BadInput: a negative threshold, another width of the decoder than of the encoder, or a value that overflows.
    """
    if threshold < 0:
        raise BadInput(f"the threshold is {threshold}, and features are not negative", where="threshold")
    if decoder.shape != encoder.shape:
        raise BadInput(
            f"has shape {list(decoder.shape)}, and the encoder {list(encoder.shape)}",
            where="decoder",
            fix="Encoder and decoder have the width of the model's residual stream",
        )
    vector = decoder.to(torch.float32) * value
    if not torch.isfinite(vector).all():
        raise BadInput("the vector overflows at this value", where="value", fix="Lower it")
    term = LowRank(
        encoder[None].to(torch.float32),
        -decoder[None].to(torch.float32),
        bias=torch.tensor([float(bias)]),
        threshold=torch.tensor([float(threshold)]),
    )
    return vector, term


def loreft(rotation: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> LowRank:
    """LoReFT (arXiv 2404.03592, equation 2): h' = h + R^T (W h + b - R h).

    Args:
        rotation: R, [r, hidden_size], with orthonormal rows.
        weight: W, [r, hidden_size].
        bias: b, [r].

    Raises:
        BadInput: W - R overflows.
    """
    r = rotation.to(torch.float32)
    read = (weight.to(torch.float64) - r).to(torch.float32)
    if not torch.isfinite(read).all():
        raise BadInput("overflows less the rotation", where="weight", fix="Learn or export it again")
    return LowRank(read, r, bias=bias.to(torch.float32))


def reft_r1(direction: torch.Tensor) -> LowRank:
    """The token-wise part of ReFT-r1 (arXiv 2501.17148, section 4): h' = h + ReLU(w . h) w, w as given.

    At inference the paper adds a fixed multiple of w instead, which is a plain added vector.
    """
    w = direction[None].to(torch.float32)
    return LowRank(w, w, low=torch.zeros(1))
