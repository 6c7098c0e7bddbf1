"""The reference implementation of steering: forward hooks on a Hugging Face model.

Slow and plain on purpose. The vLLM plugin is held to what these hooks do, and the in-process engine serves with them.
Hooks belong to the model object, so one generation at a time may run inside `steered` or `adapted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from .adapter import read_adapter
from .intervention import Intervention, by_phase
from .profile import Profile


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a decoder, in order: the shallowest list of modules as long as the config says there are layers.

    Raises:
        BadInput: no such list, or several at one depth.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    count = getattr(text, "num_hidden_layers", None)
    found = [
        (name.count("."), name, part)
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == count
    ]
    best = [part for depth, _, part in found if depth == min(depth for depth, _, _ in found)]
    if len(best) != 1:
        raise BadInput(
            f"found {len(best)} lists of {count} decoder layers, not one",
            where=type(model).__name__,
            fix="Steering needs a causal language model with one stack of blocks",
        )
    return list(best[0])


@contextmanager
def steered(
    model: nn.Module, profile: Profile | Iterable[Intervention], prompt_length: int | Sequence[int]
) -> Iterator[None]:
    """Add a profile's vectors to the output of their blocks while the block of code runs. Adapters are not applied.

    A token is of the prompt when its absolute position is below `prompt_length`, so cached decoding (one token a pass)
    and one whole pass give the same result.

    Args:
        model: a Hugging Face causal language model, possibly wrapped by PEFT.
        profile: a profile, or interventions alone.
        prompt_length: tokens in the prompt; for a batch, one number a row.

    Raises:
        BadInput: a layer or width does not fit the model; or the model does not tell its blocks the positions.
    """
    parts = profile.interventions if isinstance(profile, Profile) else tuple(profile)
    layers = decoder_layers(model)
    vectors = by_phase(parts)
    for layer, _ in vectors:
        if layer >= len(layers):
            raise BadInput(
                f"layer {layer} does not exist, the model has layers 0 to {len(layers) - 1}",
                where=profile.id if isinstance(profile, Profile) else "interventions",
                fix="Use the base model the profile was made for",
            )
    handles = [
        layers[layer].register_forward_hook(
            _adding(vectors.get((layer, "prompt")), vectors.get((layer, "generated")), prompt_length), with_kwargs=True
        )
        for layer in sorted({layer for layer, _ in vectors})
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(prompt: torch.Tensor | None, generated: torch.Tensor | None, prompt_length: int | Sequence[int]) -> Any:
    """A forward hook that adds one vector before the prompt's end and one after it."""
    same = prompt is not None and generated is not None and torch.equal(prompt, generated)

    def hook(_: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        early, late = (
            torch.zeros(hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
            if vector is None
            else vector.to(hidden.device, hidden.dtype)
            for vector in (prompt, generated)
        )
        if early.shape[-1] != hidden.shape[-1] or late.shape[-1] != hidden.shape[-1]:
            raise BadInput(
                f"a vector of width {(late if prompt is None else early).shape[-1]} does not fit the model's "
                f"{hidden.shape[-1]}",
                where="interventions",
                fix="Use the base model the profile was made for",
            )
        if same:
            hidden = hidden + early
        else:
            positions = _positions(kwargs, hidden)
            lengths = torch.as_tensor(prompt_length, device=hidden.device).reshape(-1, 1)
            hidden = hidden + torch.where((positions < lengths)[..., None], early, late)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def _positions(kwargs: Mapping[str, Any], hidden: torch.Tensor) -> torch.Tensor:
    """Absolute positions, shape [1 or batch, tokens], as the model tells them to its blocks."""
    for key in ("position_ids", "cache_position"):
        value = kwargs.get(key)
        if isinstance(value, torch.Tensor) and value.shape[-1] == hidden.shape[-2] and value.dim() <= 2:
            return value.reshape(-1, value.shape[-1]).to(hidden.device)
    raise BadInput(
        "this model does not tell its blocks the positions of their tokens",
        where="token scope",
        fix="Use the token scope `all`, or another architecture",
    )


@contextmanager
def reading(model: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Keep `resid_post` of some layers at each forward pass.

    Yields:
        layer -> the output of that block in the last pass, shape [batch, tokens, hidden_size], detached.

    Raises:
        BadInput: a layer does not exist.
    """
    blocks = decoder_layers(model)
    wanted = sorted(set(layers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(blocks):
        raise BadInput(
            f"layers {wanted} are not all among 0 to {len(blocks) - 1}", where="layers", fix="Name layers of this model"
        )
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            seen[layer] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adapted(model: nn.Module, directory: Path | None) -> Iterator[nn.Module]:
    """The model with a LoRA applied through PEFT, and the plain model again afterwards.

    Args:
        model: a Hugging Face model that has no adapter yet.
        directory: a PEFT folder, or None for no adapter at all.

    Raises:
        BadInput: the adapter is not usable (see `adapter.read_adapter`), or does not fit the model.
    """
    if directory is None:
        yield model
        return
    read_adapter(directory)
    from peft import PeftModel

    try:
        wrapped = PeftModel.from_pretrained(model, str(directory), low_cpu_mem_usage=False)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(
            f"the adapter does not fit the model ({first})",
            where=str(directory),
            fix="Use the base model it was trained on",
        ) from None
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()
