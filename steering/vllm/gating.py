"""Conditions inside a step: which tokens the gates of their profiles let through.

A token is let through by its own state, or, where the gate is held, by that of its request's last prompt token: the one
in this very step, or else what was decided then, which is kept in a slot of the request. All of it is fixed buffers, so
that compiled code may read and write them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import nn

from ...errors import EngineError
from ..kernel import GateTable, passes
from ..scope import Place
from .steps import StepView

BUFFERS = ("asked", "open", "source", "slot", "decides", "held")


class Gating:
    """The buffers of all gates of one runner.

    Attributes:
        asked: the row whose condition each token is asked, [max tokens], int64; 0 for none. Not the row of its edit: a
            token that is left alone may still be the one that decides.
        open: whether each token of a step is let through, [max tokens], bool; written by the layers.
        source: the token of the step whose state decides for each, [max tokens], int64; -1 for the request's slot.
        slot: the slot of each token's request, [max tokens], int64; 0 is nobody's.
        decides: whether each token decides for its request, [max tokens], bool.
        held: what was decided, by slot, [slots + 1], bool.
    """

    def __init__(self, tokens: int, requests: int, device: torch.device | str) -> None:
        """Buffers for steps of so many tokens, and slots for so many requests that have not ended."""
        self.asked = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.open = torch.ones(tokens, dtype=torch.bool, device=device)
        self.source = torch.arange(tokens, device=device)
        self.slot = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.decides = torch.zeros(tokens, dtype=torch.bool, device=device)
        self.held = torch.zeros(requests + 1, dtype=torch.bool, device=device)
        self._slots: dict[str, int] = {}
        self._dirty = 0
        """How many leading entries an earlier step may have left behind."""

    def register(self, layer: nn.Module, gates: GateTable) -> None:
        """Make the buffers, and a layer's conditions, buffers of the layer."""
        for name in BUFFERS:
            layer.register_buffer(f"trimtab_{name}", getattr(self, name), persistent=False)
        for name, tensor in gates._asdict().items():
            layer.register_buffer(f"trimtab_gate_{name}", tensor, persistent=False)

    def fill(self, view: StepView, places: Sequence[Place], alive: Collection[str]) -> None:
        """Say for each token of a step who decides for it.

        Args:
            places: of the requests' profiles.
            alive: the requests that have not ended; the slots of others are freed.

        Raises:
            EngineError: a request's gate is held, and the end of its prompt was never seen; or there is no slot left.
        """
        if self._dirty:
            self._clear()
        if all(place.hold is None for place in places):
            return
        self._slots = {request: slot for request, slot in self._slots.items() if request in alive}
        lengths, starts = view.lengths, view.starts
        total = int(lengths.sum())
        source, slot = np.arange(total), np.zeros(total, np.int64)
        decides = np.zeros(total, bool)
        asked = np.repeat(np.array([place.gate_row for place in places], np.int64), lengths)
        for i, place in enumerate(places):
            if not place.hold:
                continue
            span = slice(int(starts[i]), int(starts[i] + lengths[i]))
            ahead = int(view.prompt_lengths[i]) - 1 - int(view.positions[i])
            inside = 0 <= ahead < int(lengths[i])
            slot[span] = self._slot(view.request_ids[i], fresh=ahead >= 0)
            source[span] = span.start + ahead if inside else -1
            if inside:
                decides[span.start + ahead] = True
        for buffer, values in (
            (self.asked, asked),
            (self.source, source),
            (self.slot, slot),
            (self.decides, decides),
        ):
            buffer[:total].copy_(torch.from_numpy(values))
        self._dirty = total

    def _clear(self) -> None:
        """Let every token decide for itself again. Compiled layers read the buffers in every step, also where no
        request has a condition, and a source left behind by a longer step would lie outside the next one."""
        self.open.fill_(True)
        gone = slice(0, self._dirty)
        self.source[gone] = torch.arange(self._dirty, device=self.source.device)
        self.asked[gone] = 0
        self.slot[gone] = 0
        self.decides[gone] = False
        self._dirty = 0

    def _slot(self, request: str, *, fresh: bool) -> int:
        if request not in self._slots:
            if not fresh:
                raise EngineError("the end of the prompt never went through the model", where=f"request {request}")
            taken = set(self._slots.values())
            free = next((slot for slot in range(1, len(self.held)) if slot not in taken), None)
            if free is None:
                raise EngineError(
                    f"all {len(self.held) - 1} slots of held conditions are taken",
                    where=f"request {request}",
                    fix="Start the server with a larger --max-num-seqs",
                )
            self._slots[request] = free
        return self._slots[request]


def decide(layer: nn.Module, total: torch.Tensor) -> torch.Tensor:
    """Read the conditions of one layer, and say which tokens are let through from here on.

    Args:
        layer: with the buffers of `Gating.register`.
        total: the summed residual, [N, hidden_size].

    Returns:
        [N], bool.
    """
    b = {name: getattr(layer, f"trimtab_{name}") for name in BUFFERS}
    n = total.shape[0]
    gates = GateTable(*(getattr(layer, f"trimtab_gate_{name}") for name in GateTable._fields))
    has, passing = passes(gates, b["asked"][:n], total)
    source, slot = b["source"][:n], b["slot"][:n]
    decided = torch.where(source >= 0, passing[source.clamp_min(0)], b["held"][slot])
    now = torch.where(has, decided, b["open"][:n])
    b["open"][:n] = now
    # Only the token that decides writes its request's slot; slot 0 takes what the others would write.
    b["held"].index_copy_(0, torch.where(has & b["decides"][:n], slot, 0), decided)
    return now
