"""One step of the engine as plain data, and what steering makes of it. Pure numpy: nothing here knows vLLM or torch.

A batch is the tokens of several requests laid end to end. For each token the layers gather one row of a bank
(`steering.bank`); row 0 is no steering. `Rows` finds and writes those rows; `Ledger` keeps what was really applied to
each request, for receipts.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, NotFound
from ..scope import Place
from ..texts import Answers

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
        outputs: tokens generated so far; read only for scopes that ask for the text.
    """

    request_ids: Sequence[str]
    profiles: Sequence[str | None]
    receipts: Sequence[str | None]
    adapters: Sequence[str | None]
    lengths: Ints
    positions: Ints
    prompt_lengths: Ints
    outputs: Sequence[Sequence[int]] = ()

    @cached_property
    def starts(self) -> Ints:
        """Where each request's tokens begin in the step, [R]."""
        starts: Ints = np.cumsum(self.lengths) - self.lengths
        return starts


@dataclass
class Applied:
    """What was applied to one request so far.

    Attributes:
        profile: SHA-256 of the profile, or None.
        adapter: name of the LoRA the engine applied, or None.
        seen: positions [0, seen) have been through the model for this request, or came from the prefix cache.
        steered: positions that were steered, each counted once however often it was computed; None where the states
            of some came from the prefix cache, and whether a condition let these through is not known.
        restored: of those, the ones whose state came from the prefix cache: it was steered by this same profile, for an
            earlier request with the same prefix.
    """

    profile: str | None
    adapter: str | None
    seen: int = 0
    steered: int | None = 0
    restored: int = 0


class Filled(NamedTuple):
    """What a step needs.

    Attributes:
        dirty: how many leading entries of the index may be nonzero now.
        layers: the layers at which something is done or a condition is read.
        reads: whether rank-1 terms are among it.
        gated: whether conditions are.
    """

    dirty: int
    layers: frozenset[int]
    reads: bool
    gated: bool = False


class Rows:
    """The rows of tokens, by the places of live profiles.

    Args:
        live: the live profiles by SHA-256; read at every step, so it may change between steps.
        answers: what was said, for scopes that read it; None where no profile may have such a scope.
    """

    def __init__(self, live: Mapping[str, Place], answers: Answers | None = None) -> None:
        self._live, self._answers = live, answers
        self._mixed, self._filled = _Mixed([]), NOTHING

    def place(self, sha: str | None) -> Place:
        """The place of a request's profile. Raises NotFound when it is not live: nothing runs unsteered in silence."""
        if sha is None:
            return _NOWHERE
        try:
            return self._live[sha]
        except KeyError:
            raise NotFound(
                f"profile {sha[:12]} is not live",
                where="steering",
                fix="Load the profile before sending requests to it",
            ) from None

    def of_span(self, view: StepView, i: int, place: Place, begin: int, end: int) -> Ints:
        """The rows of the positions [begin, end) of the i-th request of a step, [end - begin]."""
        prompt = int(view.prompt_lengths[i])
        states = None
        if place.reads_text:
            answer = view.outputs[i]
            missing = prompt + len(answer) < end or any(token < 0 for token in answer[: max(0, end - prompt)])
            if self._answers is None or missing:
                raise EngineError(
                    "a token scope reads the generated text, and this engine does not tell it in time",
                    where="steering",
                    fix="Start the server with --no-async-scheduling",
                )
            states = self._answers.states(view.request_ids[i], place, range(begin, end), prompt, answer)
        return place.rows_of(np.arange(begin, end, dtype=np.int64), prompt, states)

    def fill(self, view: StepView, index: Ints, dirty: int) -> Filled:
        """Write the row of each token of a step into `index`, and zero whatever an earlier step left behind it.

        Args:
            view: the step, N tokens in all.
            index: the fixed buffer, [max tokens], changed in place.
            dirty: how many leading entries may be nonzero from earlier steps.

        Raises:
            NotFound: a request names a profile that is not live.
            EngineError: what was generated is not known in time.
            IndexError: the step has more tokens than the buffer.
        """
        places = [self.place(sha) for sha in view.profiles]
        if not self._mixed.same(places):
            self._mixed = _Mixed(places)
        mixed, self._filled = self._mixed, view
        if not mixed.layers:
            index[:dirty] = 0
            return Filled(0, mixed.layers, False)
        lengths = np.asarray(view.lengths, dtype=np.int64)
        total = int(lengths.sum())
        if total > len(index):
            raise IndexError(f"a step of {total} tokens does not fit the steering buffer of {len(index)}")
        starts = view.starts
        # Places that only ask for the phase are written all at once, the others over it one by one.
        if total == len(lengths):  # one token each, as in most steps
            inside = view.positions < view.prompt_lengths
            index[:total] = np.where(inside, mixed.prompt, mixed.generated)
        else:
            positions = np.repeat(view.positions - starts, lengths) + np.arange(total, dtype=np.int64)
            inside = positions < np.repeat(view.prompt_lengths, lengths)
            prompt, generated = (np.repeat(rows, lengths) for rows in (mixed.prompt, mixed.generated))
            index[:total] = np.where(inside, prompt, generated)
        for i in mixed.others:
            begin = int(view.positions[i])
            span = slice(int(starts[i]), int(starts[i] + lengths[i]))
            index[span] = self.of_span(view, i, places[i], begin, begin + int(lengths[i]))
        index[total:dirty] = 0
        return Filled(total, mixed.layers, mixed.reads, mixed.gated)

    def decoding(self, view: StepView) -> list[int] | None:
        """The row of each request's one token, where `fill` just wrote this step and all are generated tokens of places
        that ask for the phase alone and have no condition; else None."""
        mixed = self._mixed
        if self._filled is not view or mixed.others or mixed.gated:
            return None
        if not (np.all(view.lengths == 1) and np.all(view.positions >= view.prompt_lengths)):
            return None
        rows: list[int] = mixed.generated.tolist()
        return rows

    def covered(self, view: StepView, i: int, begin: int, end: int) -> int:
        """How many of the positions [begin, end) of the i-th request are steered."""
        place = self.place(view.profiles[i])
        if not place.plain:
            return int(np.count_nonzero(self.of_span(view, i, place, begin, end)))
        prompt, (in_prompt, generated) = int(view.prompt_lengths[i]), place.by_phase
        before = max(0, min(end, prompt) - begin) if in_prompt else 0
        after = max(0, end - max(begin, prompt)) if generated else 0
        return before + after


_NOWHERE = Place()
_NO_INTS = np.zeros(0, dtype=np.int64)
NOTHING = StepView((), (), (), (), _NO_INTS, _NO_INTS, _NO_INTS)
"""A step without requests."""


class _Mixed:
    """What the places of a batch come to, kept as long as the batch stays the same.

    Attributes:
        prompt, generated: the row of each request's prompt and answer tokens where its place asks for the phase alone,
            else 0, [R] each.
        others: numbers of the requests whose places ask for more.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = list(places)
        gates = {place.gate_layer for place in places if place.gate_layer is not None}
        self.layers: frozenset[int] = frozenset(gates).union(*(place.layers for place in places))
        self.reads = any(place.reads for place in places)
        self.gated = any(place.hold is not None for place in places)
        phases = [place.by_phase if place.plain else (0, 0) for place in places]
        self.prompt, self.generated = (np.array([p[side] for p in phases], np.int64) for side in (0, 1))
        self.others = [i for i, place in enumerate(places) if not place.plain]

    def same(self, places: Sequence[Place]) -> bool:
        """Whether these are the very places it was made of."""
        mine = self.places
        return len(mine) == len(places) and all(map(operator.is_, mine, places))


class Pending(NamedTuple):
    """Tokens [begin, end) of a step that count for a request as far as its condition lets them through."""

    entry: Applied
    begin: int
    end: int


@dataclass
class Ledger:
    """What was applied, by receipt id and request; the oldest entries go when there are more than `limit` ids."""

    limit: int = 4096
    _entries: OrderedDict[str, dict[str, Applied]] = field(default_factory=OrderedDict)
    _last: tuple[Sequence[str], Sequence[str | None], list[Applied]] = ((), (), [])
    """Requests, receipt ids and entries of the last step, where every request has a receipt."""

    def record(self, view: StepView, rows: Rows) -> list[Pending]:
        """Note a step. Called once per step, before the model runs.

        Returns:
            What can only be counted when it has run.
        """
        if self._decoded(view, rows):
            return []
        pending: list[Pending] = []
        entries: list[Applied] = []
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
            end = begin + int(view.lengths[i])
            entry = requests.get(view.request_ids[i])
            gated = rows.place(view.profiles[i]).hold is not None
            if entry is None:
                restored = rows.covered(view, i, 0, begin)
                known = None if gated and restored else restored
                entry = Applied(view.profiles[i], view.adapters[i], begin, known, restored)
                requests[view.request_ids[i]] = entry
            entries.append(entry)
            if end > entry.seen:
                if gated:
                    shift = int(view.starts[i]) - begin
                    pending.append(Pending(entry, entry.seen + shift, end + shift))
                elif entry.steered is not None:
                    entry.steered += rows.covered(view, i, entry.seen, end)
                entry.seen = end
        whole = len(entries) == len(view.receipts)
        self._last = (view.request_ids, view.receipts, entries) if whole else ((), (), [])
        return pending

    def _decoded(self, view: StepView, rows: Rows) -> bool:
        """Count a step of the requests of the last one, each of which generates its next token: most steps are such.
        False where it is not, and nothing was counted."""
        request_ids, receipts, entries = self._last
        if not entries or request_ids != view.request_ids or receipts != view.receipts:
            return False
        own = rows.decoding(view)
        begins: list[int] = view.positions.tolist()
        if own is None or any(entry.seen != begin for entry, begin in zip(entries, begins, strict=True)):
            return False
        for entry, row in zip(entries, own, strict=True):
            entry.seen += 1
            if row and entry.steered is not None:
                entry.steered += 1
        return True

    def get(self, receipt: str) -> list[Applied] | None:
        """What was applied to the requests under one receipt id, or None when it is unknown or forgotten."""
        requests = self._entries.get(receipt)
        return None if requests is None else list(requests.values())
