"""One step of the engine as plain data, and what steering makes of it. Pure numpy: nothing here knows vLLM or torch.

A batch is the tokens of several requests laid end to end. For each token the layers gather one row of a table that
holds every live profile twice, once for prompt tokens and once for generated ones (see `steering.bank`); entry 0 is
zero. `fill` writes those entries; `Ledger` keeps what was really applied to each request, for receipts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import NotFound

PROFILE_KEY = "trimtab"
"""Field of a request's `extra_args` that holds the profile's SHA-256, in hex."""

RECEIPT_KEY = "trimtab_id"
"""Field of a request's `extra_args` that holds the id its receipt is kept under."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StepView:
    """The requests of one step, in batch order; all sequences have one entry per request.

    Attributes:
        request_ids: the engine's own ids.
        profiles: SHA-256 of the profile to apply, or None.
        receipts: the id to keep a receipt under, or None.
        adapters: name of the LoRA the engine applies, or None.
        lengths: tokens of the request in this step, [R].
        positions: absolute position of the first of them in the request's sequence, [R].
        prompt_lengths: tokens of the request's own prompt, [R]. A request that was preempted is prefilled again with
            prompt and answer so far; its prompt length does not change by that.
    """

    request_ids: Sequence[str]
    profiles: Sequence[str | None]
    receipts: Sequence[str | None]
    adapters: Sequence[str | None]
    lengths: Ints
    positions: Ints
    prompt_lengths: Ints


@dataclass(frozen=True)
class LiveRow:
    """A live profile as the runner sees it.

    Attributes:
        prompt: entry of the table for prompt tokens; 0 when the profile does nothing to them.
        generated: entry of the table for generated tokens; 0 when the profile does nothing to them.
        layers: layers at which it acts.
    """

    prompt: int = 0
    generated: int = 0
    layers: frozenset[int] = frozenset()


@dataclass
class Applied:
    """What was applied to one request so far.

    Attributes:
        profile: SHA-256 of the profile, or None.
        adapter: name of the LoRA the engine applied, or None.
        seen: positions [0, seen) have been through the model for this request, or came from the prefix cache.
        steered: positions at which vectors were added, each counted once however often it was computed.
        restored: of those, the ones whose state came from the prefix cache: it was steered by this same profile, for an
            earlier request with the same prefix.
    """

    profile: str | None
    adapter: str | None
    seen: int = 0
    steered: int = 0
    restored: int = 0


def fill(view: StepView, live: Mapping[str, LiveRow], index: Ints, dirty: int) -> tuple[int, frozenset[int]]:
    """Write the table entry of each token of a step into `index`, and zero whatever an earlier step left behind it.

    Args:
        view: the step, N tokens in all.
        live: the live profiles by SHA-256.
        index: the fixed buffer, [max tokens], changed in place.
        dirty: how many leading entries may be nonzero from earlier steps.

    Returns:
        How many leading entries may be nonzero now, and the layers at which something is added in this step.

    Raises:
        NotFound: a request names a profile that is not live. Nothing runs unsteered in silence.
        IndexError: the step has more tokens than the buffer.
    """
    rows = [_row(live, sha) for sha in view.profiles]
    layers: frozenset[int] = frozenset().union(*(row.layers for row in rows))
    if not layers:
        index[:dirty] = 0
        return 0, layers
    lengths = np.asarray(view.lengths, dtype=np.int64)
    total = int(lengths.sum())
    if total > len(index):
        raise IndexError(f"a step of {total} tokens does not fit the steering buffer of {len(index)}")
    starts = np.cumsum(lengths) - lengths
    positions = np.repeat(view.positions - starts, lengths) + np.arange(total, dtype=np.int64)
    prompt = np.repeat(np.fromiter((row.prompt for row in rows), np.int64, len(rows)), lengths)
    generated = np.repeat(np.fromiter((row.generated for row in rows), np.int64, len(rows)), lengths)
    index[:total] = np.where(positions < np.repeat(view.prompt_lengths, lengths), prompt, generated)
    index[total:dirty] = 0
    return total, layers


def _row(live: Mapping[str, LiveRow], sha: str | None) -> LiveRow:
    if sha is None:
        return _NONE
    try:
        return live[sha]
    except KeyError:
        raise NotFound(
            f"profile {sha[:12]} is not live", where="steering", fix="Load the profile before sending requests to it"
        ) from None


_NONE = LiveRow()


@dataclass
class Ledger:
    """What was applied, by receipt id and request; the oldest entries go when there are more than `limit` ids."""

    limit: int = 4096
    _entries: OrderedDict[str, dict[str, Applied]] = field(default_factory=OrderedDict)

    def record(self, view: StepView, live: Mapping[str, LiveRow]) -> None:
        """Note a step. Called once per step, before the model runs."""
        for i, receipt in enumerate(view.receipts):
            if receipt is None:
                continue
            requests = self._entries.get(receipt)
            if requests is None:
                requests = self._entries[receipt] = {}
                while len(self._entries) > self.limit:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(receipt)
            begin = int(view.positions[i])
            end, prompt = begin + int(view.lengths[i]), int(view.prompt_lengths[i])
            row = _row(live, view.profiles[i])
            entry = requests.get(view.request_ids[i])
            if entry is None:
                restored = _covered(row, 0, begin, prompt)
                entry = Applied(view.profiles[i], view.adapters[i], begin, restored, restored)
                requests[view.request_ids[i]] = entry
            if end > entry.seen:
                entry.steered += _covered(row, entry.seen, end, prompt)
                entry.seen = end

    def get(self, receipt: str) -> list[Applied] | None:
        """What was applied to the requests under one receipt id, or None when it is unknown or forgotten."""
        requests = self._entries.get(receipt)
        return None if requests is None else list(requests.values())


def _covered(row: LiveRow, begin: int, end: int, prompt: int) -> int:
    """How many of the positions [begin, end) get a vector, with `prompt` prompt tokens."""
    before = max(0, min(end, prompt) - begin) if row.prompt else 0
    after = max(0, end - max(begin, prompt)) if row.generated else 0
    return before + after
