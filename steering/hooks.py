"""The reference implementation of steering: forward hooks on a Hugging Face model.

Slow and plain on purpose. The vLLM plugin is held to what these hooks do, and the in-process engine serves with them.
Hooks belong to the model object, so one generation at a time may run inside `steered` or `adapted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import BadInput
from .bank import Bank, terms_needed
from .intervention import Gate, Intervention, Variants, variants
from .kernel import added, passes
from .profile import Profile
from .scope import ALL, Place, TextState
from .texts import Answers
from .wearing import wear


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
    model: nn.Module,
    profile: Profile | Iterable[Intervention],
    prompt_length: int | Sequence[int],
    *,
    gate: Gate | None = None,
    tokenizer: Any = None,
) -> Iterator[Run]:
    """Edit the output of a model's blocks as a profile says while the block of code runs. Adapters are not applied.

    A token is of the prompt when its absolute position is below `prompt_length`, so cached decoding (one token a pass)
    and one whole pass give the same result.

    Args:
        model: a Hugging Face causal language model, possibly wrapped by PEFT.
        profile: a profile, or interventions alone.
        prompt_length: tokens in the prompt; for a batch, one number a row.
        gate: with interventions alone, the condition under which they act.
        tokenizer: the model's; needed where a scope reads the generated text.

    Yields:
        The run, which counts the tokens it edits.

    Raises:
        BadInput: a layer or width does not fit the model; the model does not tell its blocks the positions; a scope
            reads text and there is no tokenizer.
    """
    parts = profile.interventions if isinstance(profile, Profile) else tuple(profile)
    gate = profile.gate if isinstance(profile, Profile) else gate
    where = profile.id if isinstance(profile, Profile) else "interventions"
    layers = decoder_layers(model)
    folded = variants(parts)
    for layer in (*folded.layers, *(() if gate is None else (gate.layer,))):
        if layer >= len(layers):
            raise BadInput(
                f"layer {layer} does not exist, the model has layers 0 to {len(layers) - 1}",
                where=where,
                fix="Use the base model the profile was made for",
            )
    if any(scope.reads_text for scope in folded.scopes) and tokenizer is None:
        raise BadInput("a token scope reads the generated text", where=where, fix="Give the model's tokenizer, too")
    run = Run(folded, gate, prompt_length, tokenizer, len(layers))
    acting = [] if not folded.edits else sorted({*folded.layers, *(() if gate is None else (gate.layer,))})
    handles = [layers[n].register_forward_hook(run.hook(n, first=n == acting[0]), with_kwargs=True) for n in acting]
    if run.answers is not None:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        handles.append(embeddings.register_forward_pre_hook(run.see_tokens))
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


class Run:
    """One use of `steered`: a bank of just this profile, and what was seen of each sequence.

    Attributes:
        edited: how many tokens were edited so far; one that is computed again counts again.
    """

    def __init__(
        self,
        folded: Variants,
        gate: Gate | None,
        prompt_length: int | Sequence[int],
        tokenizer: Any,
        num_layers: int,
    ) -> None:
        self.folded, self.gate, self.prompt_length, self.num_layers = folded, gate, prompt_length, num_layers
        self.edited = 0
        self.bank: Bank | None = None
        self.place: Place | None = None
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.open: torch.Tensor | None = None
        self.positions = torch.zeros(0, dtype=torch.int64)
        self.fed = torch.zeros(0, 0, dtype=torch.int64)
        self.answers: Answers | None = Answers(tokenizer) if any(scope.reads_text for scope in folded.scopes) else None
        self.tokens: list[dict[int, int]] = []
        self.held: dict[int, bool] = {}

    def see_tokens(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the tokens of a pass; their positions are known once the first block runs."""
        self.fed = args[0].detach().cpu()

    def hook(self, number: int, *, first: bool) -> Any:
        """A forward hook for one block."""

        def edit(_: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
            hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
            flat = hidden.reshape(-1, hidden.shape[-1])
            if self.bank is None:
                self._fill_bank(hidden)
            assert self.bank is not None
            if first:
                self._begin(kwargs, hidden)
            table = self.bank.table(number)
            if self.gate is not None and self.gate.layer == number and table.gates is not None:
                assert self.place is not None
                asked = torch.full_like(self.rows, self.place.gate_row)
                self._decide(passes(table.gates, asked, flat)[1].reshape(hidden.shape[:-1]))
            if number not in self.folded.layers:
                return None
            acts = self.rows != 0 if self.open is None else (self.rows != 0) & self.open
            if number == min(self.folded.layers):
                self.edited += int(acts.sum())
            if not bool(acts.any()):
                return None
            edited = (flat + added(table, self.rows, flat, self.open)).reshape(hidden.shape)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return edit

    def _fill_bank(self, hidden: torch.Tensor) -> None:
        bank = Bank(
            self.num_layers,
            hidden.shape[-1],
            max(len(self.folded.edits), 1) + 1,
            columns=terms_needed(self.folded),
            gated=self.gate is not None,
            dtype=hidden.dtype,
            device=hidden.device,
        )
        self.place = bank.add_variants("run", "interventions", self.folded, self.gate)
        self.bank = bank

    def _begin(self, kwargs: Mapping[str, Any], hidden: torch.Tensor) -> None:
        """Find the row of each token of a pass."""
        assert self.place is not None
        batch, count = hidden.shape[0], hidden.shape[1]
        self.open = None
        if self.folded.scopes == (ALL,) and self.gate is None:
            self.rows = torch.full((batch * count,), self.place.rows[1], device=hidden.device)
            return
        positions = _positions(kwargs, hidden).cpu().expand(batch, count)
        self.positions = positions
        rows = np.zeros((batch, count), np.int64)
        for b, length in enumerate(self._lengths(batch)):
            states = None if self.answers is None else self._states(self.answers, b, positions[b].tolist(), length)
            rows[b] = self.place.rows_of(positions[b].numpy(), length, states)
        self.rows = torch.from_numpy(rows).reshape(-1).to(hidden.device)

    def _lengths(self, batch: int) -> list[int]:
        given = self.prompt_length
        return [given] * batch if isinstance(given, int) else list(given)

    def _states(self, answers: Answers, b: int, positions: list[int], length: int) -> list[TextState]:
        """What has been said up to each token of a pass; padding, which comes first, is about nothing."""
        assert self.place is not None
        while len(self.tokens) <= b:
            self.tokens.append({})
        said = self.tokens[b]
        said.update(zip(positions, self.fed[b].tolist(), strict=True))
        span = range(min(positions), max(positions) + 1)
        ids = [said[place] for place in range(length, span.stop)]
        found = dict(zip(span, answers.states(str(b), self.place, span, length, ids), strict=True))
        return [found[place] for place in positions]

    def _decide(self, passing: torch.Tensor) -> None:
        """Set who is let through from here on, [batch * tokens]."""
        assert self.gate is not None
        if not self.gate.hold:
            self.open = passing.reshape(-1)
            return
        open_ = torch.zeros_like(passing)
        for b, length in enumerate(self._lengths(passing.shape[0])):
            places = self.positions[b]
            deciding = (places == length - 1).nonzero()
            if len(deciding):
                self.held[b] = bool(passing[b, deciding[0, 0]])
            later = places >= length - 1
            if bool(later.any()):
                if b not in self.held:
                    raise BadInput("the end of the prompt never went through the model", where="gate")
                open_[b] = later.to(passing.device) & self.held[b]
        self.open = open_.reshape(-1)


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
        BadInput: the adapter is not usable or does not fit the model (see `wearing.wear`), which is then as it was.
    """
    if directory is None:
        yield model
        return
    wrapped = wear(model, directory)
    try:
        yield wrapped
    finally:
        wrapped.unload()
