"""Which table entry each token of a step gets, and what is counted, over whole scripted lives of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.errors import NotFound
from trimtab.steering import scope
from trimtab.steering.scope import Place, Scope
from trimtab.steering.vllm.steps import Ledger, Rows, StepView

ALL = Place((scope.PROMPT, scope.GENERATED), {1: 3, 2: 13}, frozenset({1, 2}))
PROMPT = Place((scope.PROMPT,), {1: 4}, frozenset({0}))
GENERATED = Place((scope.GENERATED,), {1: 15}, frozenset({5}))
FIRST = Place((Scope(first=3), scope.GENERATED, Scope(last=2)), {1: 6, 2: 7, 4: 8, 5: 9}, frozenset({1}))
ADAPTER_ONLY = Place()
LIVE = {"all": ALL, "prompt": PROMPT, "generated": GENERATED, "first": FIRST, "adapter": ADAPTER_ONLY}
ROWS = Rows(LIVE)


@dataclass(frozen=True)
class Part:
    """A request's tokens in one step: positions [begin, begin + count) with `prompt` prompt tokens."""

    id: str
    profile: str | None
    begin: int
    count: int
    prompt: int
    receipt: str | None = None


def view(parts: Sequence[Part]) -> StepView:
    return StepView(
        [p.id for p in parts],
        [p.profile for p in parts],
        [p.receipt for p in parts],
        [None for _ in parts],
        np.array([p.count for p in parts], dtype=np.int64),
        np.array([p.begin for p in parts], dtype=np.int64),
        np.array([p.prompt for p in parts], dtype=np.int64),
    )


def one_by_one(parts: Sequence[Part]) -> list[int]:
    """The same, token by token."""
    out = []
    for part in parts:
        out += [row_of(part.profile, p, part.prompt) for p in range(part.begin, part.begin + part.count)]
    return out


def row_of(profile: str | None, position: int, prompt: int) -> int:
    """The row of one token, by what the profiles above say."""
    early = position < prompt
    if profile == "first":
        mask = (position < 3) + 2 * (not early) + 4 * (early and position >= prompt - 2)
        return FIRST.rows.get(mask, 0)
    rows = {"all": (3, 13), "prompt": (4, 0), "generated": (0, 15)}.get(profile or "", (0, 0))
    return rows[0 if early else 1]


def run(steps: Sequence[Sequence[Part]], size: int = 64) -> tuple[list[list[int]], Ledger]:
    index, ledger, dirty, seen = np.zeros(size, dtype=np.int64), Ledger(), 0, []
    for parts in steps:
        step = view(parts)
        dirty = ROWS.fill(step, index, dirty).dirty
        ledger.record(step, ROWS)
        assert not index[sum(p.count for p in parts) :].any(), "an earlier step shows through"
        seen.append(index[: sum(p.count for p in parts)].tolist())
    return seen, ledger


parts = st.builds(
    Part,
    st.just("r"),
    st.sampled_from([None, *LIVE]),
    st.integers(0, 30),
    st.integers(1, 12),
    st.integers(1, 40),
)


@given(st.lists(st.lists(parts, max_size=5), max_size=4))
def test_every_token_gets_its_own_entry(steps: list[list[Part]]) -> None:
    seen, _ = run(steps)
    assert seen == [one_by_one(step) for step in steps]


def test_phase_is_decided_by_position_not_by_the_number_of_tokens() -> None:
    # A prompt's last chunk of one token is prompt, and several generated tokens in one step are generated.
    seen, _ = run([[Part("a", "all", 9, 1, 10)], [Part("a", "all", 10, 3, 10)], [Part("a", "all", 8, 4, 10)]])
    assert seen == [[3], [13, 13, 13], [3, 3, 13, 13]]


def test_layers_of_the_step_are_those_of_its_profiles() -> None:
    index = np.zeros(8, dtype=np.int64)
    mixed = [Part("a", "prompt", 0, 2, 2), Part("b", "generated", 5, 1, 2), Part("c", None, 0, 1, 1)]
    assert ROWS.fill(view(mixed), index, 0) == (4, frozenset({0, 5}), False, False)
    assert ROWS.fill(view([Part("c", "adapter", 0, 3, 3)]), index, 4) == (0, frozenset(), False, False)
    assert not index.any()


def test_an_unknown_profile_stops_the_step() -> None:
    with pytest.raises(NotFound, match="not live"):
        ROWS.fill(view([Part("a", "gone", 0, 1, 1)]), np.zeros(4, dtype=np.int64), 0)


def test_a_step_larger_than_the_buffer_stops() -> None:
    with pytest.raises(IndexError, match="does not fit"):
        ROWS.fill(view([Part("a", "all", 0, 5, 5)]), np.zeros(4, dtype=np.int64), 0)


def life(profile: str | None, prompt: int, answer: int, chunks: Sequence[int], begin: int = 0) -> list[list[Part]]:
    """A request's steps: its prompt in chunks from `begin`, then one token each. The last answer token never runs."""
    steps, at = [], begin
    for count in chunks:
        steps.append([Part("r", profile, at, count, prompt, "id")])
        at += count
    return steps + [[Part("r", profile, at + i, 1, prompt, "id")] for i in range(answer - 1)]


@pytest.mark.parametrize(
    ("profile", "steered"), [("all", 14), ("prompt", 10), ("generated", 4), ("adapter", 0), (None, 0)]
)
def test_receipt_of_a_whole_life(profile: str | None, steered: int) -> None:
    for chunks in ([10], [4, 4, 2], [1] * 10):
        _, ledger = run(life(profile, 10, 5, chunks))
        (entry,) = ledger.get("id") or []
        assert (entry.profile, entry.steered, entry.restored) == (profile, steered, 0)


def test_receipt_counts_cached_positions_apart() -> None:
    _, ledger = run(life("all", 10, 5, [2], begin=8))
    (entry,) = ledger.get("id") or []
    assert (entry.steered, entry.restored) == (14, 8)


def test_receipt_counts_a_resumed_request_once() -> None:
    # Preempted after 3 generated tokens: prompt and answer so far are computed again, in one prefill.
    steps = [*life("all", 10, 4, [10]), [Part("r", "all", 0, 13, 10, "id")], [Part("r", "all", 13, 1, 10, "id")]]
    seen, ledger = run(steps)
    assert seen[-2] == [3] * 10 + [13] * 3
    (entry,) = ledger.get("id") or []
    assert (entry.steered, entry.restored) == (14, 0)


requests = st.tuples(st.sampled_from([None, *LIVE]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))


@given(st.lists(requests, min_size=1, max_size=6), st.booleans())
def test_receipts_of_requests_that_decode_together(asked: list[tuple[str | None, int, int, int]], whole: bool) -> None:
    """Steps in which nothing but the next tokens changes are counted in another way than others."""
    steps: list[list[Part]] = []
    for number, (profile, prompt, answer, late) in enumerate(asked):
        mine = life(profile, prompt, answer, [prompt] if whole else [1] * prompt)
        for at, [part] in enumerate(mine, start=late):
            while len(steps) <= at:
                steps.append([])
            steps[at].append(replace(part, id=f"r{number}", receipt=f"id{number}"))
    seen, ledger = run(steps, size=128)
    assert seen == [one_by_one(step) for step in steps]
    for number, (profile, prompt, answer, _) in enumerate(asked):
        (entry,) = ledger.get(f"id{number}") or []
        assert entry.seen == prompt + answer - 1
        assert entry.steered == sum(row_of(profile, p, prompt) > 0 for p in range(entry.seen))


def test_receipts_of_several_requests_under_one_id() -> None:
    _, ledger = run([[Part("r0", "all", 0, 3, 3, "id"), Part("r1", "all", 0, 4, 4, "id"), Part("r2", None, 0, 1, 1)]])
    assert [entry.steered for entry in ledger.get("id") or []] == [3, 4]


def test_the_ledger_is_bounded_and_forgets_the_oldest() -> None:
    ledger = Ledger(limit=2)
    for name in ("x", "y", "x", "z"):
        ledger.record(view([Part(name, "all", 0, 1, 1, name)]), ROWS)
    assert (ledger.get("y"), len(ledger.get("x") or []), len(ledger.get("z") or [])) == (None, 1, 1)
