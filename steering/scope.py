"""Token scopes: at which tokens of a sequence an intervention acts.

A token is known by its absolute position, by the length of its request's prompt, and, where a scope asks for it, by the
text that has been generated up to and including it. So chunked prefill, cached decoding and a prompt that is computed
again need no cases: the same token always gets the same answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from operator import or_
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput

Phase = Literal["all", "prompt", "generated"]
"""Every token, those of the prompt, or those after it. The last prompt token is a prompt token."""

Step = Literal["decide", "arguments", "answer"]
STEPS: Final[tuple[Step, ...]] = ("decide", "arguments", "answer")
"""What the model is about: whether and what to call, a call's name and arguments, the words for the user."""

CALL, CLOSE = "<tool_call>", "</tool_call>"
"""Between these a call stands, in the Hermes form."""
_OPENINGS = tuple(CALL[:n] for n in range(1, len(CALL)))

MOST_PLACES = 64
"""Bound on `first`, `last` and the positions of a scope: each place may need a row of its own."""
MOST_SCOPES = 62
"""Bound on different scopes in one profile: one bit of a mask each."""
MOST_TEXTS = 4
"""Bound on different `after` and `until` texts in one profile."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scope:
    """The tokens that meet all conditions given here.

    Attributes:
        phase: on which side of the prompt's end.
        first: only the first so many tokens of the phase.
        last: only the last so many tokens of the prompt.
        at: only these absolute positions, from 0.
        after: only from the token on that completes this text in what was generated.
        until: only before the token that completes this text in what was generated; nothing of the prompt is.
        steps: only while the model is about one of these (`step_of`); None for no such condition. The last prompt token
            decides, as what comes next is chosen there; the other prompt tokens are about none.
    """

    phase: Phase = "all"
    first: int | None = None
    last: int | None = None
    at: tuple[int, ...] | None = None
    after: str | None = None
    until: str | None = None
    steps: frozenset[Step] | None = None

    @property
    def plain(self) -> bool:
        """Whether the phase says it all."""
        return self == Scope(self.phase)

    @property
    def reads_text(self) -> bool:
        """Whether what was generated must be known."""
        return self.after is not None or self.until is not None or self.steps is not None

    def __str__(self) -> str:
        """In words, such as `prompt` or `generated, after '<think>'`."""
        parts: list[str] = [self.phase]
        for name in ("first", "last"):
            if (count := getattr(self, name)) is not None:
                parts.append(f"{name} {count}")
        if self.at is not None:
            parts.append(f"at {', '.join(map(str, self.at))}")
        parts += [f"{name} {text!r}" for name in ("after", "until") if (text := getattr(self, name)) is not None]
        if self.steps is not None:
            parts.append("to " + " and ".join(step for step in STEPS if step in self.steps))
        return ", ".join(parts)


ALL, PROMPT, GENERATED = Scope("all"), Scope("prompt"), Scope("generated")


@dataclass(frozen=True, eq=False)
class Place:
    """Where a live profile stands in a bank, and for which tokens.

    Attributes:
        scopes: its token scopes; bit i of a mask is the i-th.
        rows: mask -> row of the bank, from 1. A token whose mask is missing gets row 0, no steering.
        layers: layers at which it acts.
        reads: whether it has rank-1 terms, which read the residual.
        gate_layer: where its condition is read; None without one.
        hold: whether the condition is held from the last prompt token on; None without one.
    """

    scopes: tuple[Scope, ...] = ()
    rows: Mapping[int, int] = field(default_factory=dict)
    layers: frozenset[int] = frozenset()
    reads: bool = False
    gate_layer: int | None = None
    hold: bool | None = None

    @cached_property
    def plain(self) -> bool:
        """Whether only the phase of a token counts."""
        return not self.hold and all(scope.plain for scope in self.scopes)

    @cached_property
    def reads_text(self) -> bool:
        """Whether what was generated must be known."""
        return any(scope.reads_text for scope in self.scopes)

    @cached_property
    def by_phase(self) -> tuple[int, int]:
        """The rows of a prompt token and of a generated one, where the place is plain."""
        prompt = sum(1 << i for i, scope in enumerate(self.scopes) if scope.phase in ("all", "prompt"))
        generated = sum(1 << i for i, scope in enumerate(self.scopes) if scope.phase in ("all", "generated"))
        return self.rows.get(prompt, 0), self.rows.get(generated, 0)

    @cached_property
    def gate_row(self) -> int:
        """A row that carries the condition, as all of the place's do; 0 without one. The token that decides may itself
        be one that is left alone, and then has no row of its own."""
        return 0 if self.gate_layer is None else min(self.rows.values(), default=0)

    def rows_of(self, positions: Ints, prompt_length: int, states: Sequence[TextState] | None = None) -> Ints:
        """The row of each token; see `masks`. Where a condition is held, tokens before it is read are left alone."""
        found = masks(self.scopes, positions, prompt_length, states)
        rows = np.fromiter((self.rows.get(mask, 0) for mask in found.tolist()), np.int64, len(found))
        return np.where(positions < prompt_length - 1, 0, rows) if self.hold else rows


@dataclass(frozen=True)
class TextState:
    """What the generated text up to and including some token says.

    Attributes:
        done: the texts of `after` and `until` scopes that stand in it whole.
        step: what the model is about; None for prompt tokens but the last.
    """

    done: frozenset[str] = frozenset()
    step: Step | None = None


def step_of(text: str) -> Step:
    """What a model that has said `text` is about.

    Before the first word, and after a call, it decides; inside a call it writes name and arguments; else it answers.
    While what stands at the end may still become `<tool_call>`, it decides, words before it or not.
    """
    rest = text.rpartition(CLOSE)[2]
    if CALL in rest:
        return "arguments"
    return "decide" if not rest.strip() or rest.endswith(_OPENINGS) else "answer"


def masks(
    scopes: Sequence[Scope], positions: Ints, prompt_length: int | Ints, states: Sequence[TextState] | None = None
) -> Ints:
    """Which scopes each token is in.

    Args:
        scopes: at most `MOST_SCOPES`; scope i is bit i.
        positions: absolute positions of the tokens, [N].
        prompt_length: tokens in the request's prompt, or in that of each token, [N].
        states: where a scope reads text, the state at each token, as long as `positions`.

    Returns:
        [N], the sum of 2**i over the scopes that hold.

    Raises:
        BadInput: a scope reads text and no states are given.
    """
    out = np.zeros(len(positions), np.int64)
    in_prompt = positions < prompt_length
    for bit, scope in enumerate(scopes):
        on = np.ones(len(positions), bool)
        if scope.phase != "all":
            on &= in_prompt if scope.phase == "prompt" else ~in_prompt
        if scope.first is not None:
            on &= positions < (prompt_length if scope.phase == "generated" else 0) + scope.first
        if scope.last is not None:
            on &= in_prompt & (positions >= prompt_length - scope.last)
        if scope.at is not None:
            on &= np.isin(positions, scope.at)
        if scope.reads_text:
            if states is None:
                raise BadInput(f"the scope `{scope}` needs the generated text", where="token scope")
            on &= np.fromiter((_said(scope, state) for state in states), bool, len(positions))
            if scope.after is not None or scope.until is not None:
                on &= ~in_prompt
        out |= on.astype(np.int64) << bit
    return out


def _said(scope: Scope, state: TextState) -> bool:
    if scope.steps is not None and state.step not in scope.steps:
        return False
    if scope.after is not None and scope.after not in state.done:
        return False
    return scope.until is None or scope.until not in state.done


def texts_of(scopes: Iterable[Scope]) -> tuple[str, ...]:
    """The different texts that scopes wait for, in order."""
    found = [text for scope in scopes for text in (scope.after, scope.until) if text is not None]
    return tuple(dict.fromkeys(found))


def reachable(scopes: Sequence[Scope]) -> tuple[int, ...]:
    """Every combination of scopes, as a mask above 0, that some token of some sequence can be in, in order."""
    return _reachable(tuple(scopes))


@lru_cache(maxsize=256)
def _reachable(scopes: tuple[Scope, ...]) -> tuple[int, ...]:
    """As `reachable`; of the scopes that were asked for lately it is known.

    What counts is where a token stands, how far from its prompt's end, and what was said: each in ranges within which
    no scope changes. One token of each range is tried with one of each other.
    """
    bare = [replace(scope, after=None, until=None, steps=None) for scope in scopes]
    from_end = sorted({0, 1, *(scope.last for scope in scopes if scope.last is not None)})
    into_answer = sorted({0, *(s.first for s in scopes if s.first is not None and s.phase == "generated")})
    edges = {s.first for s in scopes if s.first is not None}
    edges |= {place + i for scope in scopes for place in scope.at or () for i in (0, 1)}
    # Of each range the last position: it leaves the most room for a prompt before it, and beyond all edges is enough.
    positions = sorted({edge - 1 for edge in edges if edge} | {max(edges, default=0) + into_answer[-1] + 1})

    waiting = sum(1 << i for i, scope in enumerate(scopes) if scope.after is not None or scope.until is not None)
    place, distance = _each_with_each(positions, from_end)
    found: set[int] = set()
    here = masks(bare, place, place + distance + 1)
    for state, tokens in ((TextState(step="decide"), distance == 0), (TextState(), distance > 0)):
        said = _said_mask(scopes, state) & ~waiting
        found |= {mask & said for mask in set(here[tokens].tolist())}

    place, distance = _each_with_each(positions, into_answer)
    place, prompt = place[place > distance], (place - distance)[place > distance]
    here_too = set(masks(bare, place, prompt).tolist())
    texts = texts_of(scopes)
    for count in range(len(texts) + 1):
        for done in itertools.combinations(texts, count):
            if any(part in text and part not in done for text in done for part in texts):
                continue  # who said a text said what stands in it
            for step in STEPS:
                said = _said_mask(scopes, TextState(frozenset(done), step))
                found |= {mask & said for mask in here_too}
    return tuple(sorted(found - {0}))


def idle(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes that no token of any sequence can be in: their conditions exclude each other."""
    some = list(dict.fromkeys(scope for scope in scopes if not scope.plain))
    met = reduce(or_, reachable(some), 0) if some else 0
    return frozenset(scope for i, scope in enumerate(some) if not met >> i & 1)


def _each_with_each(first: Sequence[int], second: Sequence[int]) -> tuple[Ints, Ints]:
    """All pairs of a number of the one and a number of the other."""
    return np.repeat(np.array(first, np.int64), len(second)), np.tile(np.array(second, np.int64), len(first))


def _said_mask(scopes: Sequence[Scope], state: TextState) -> int:
    """The scopes that are met as far as the text goes."""
    return sum(1 << i for i, scope in enumerate(scopes) if _said(scope, state))


def prompt_end_reach(scopes: Iterable[Scope], *, held: bool = False) -> int:
    """How far what is done to a token depends on where its request's prompt ends.

    Args:
        held: whether a condition is decided at the last prompt token.

    Returns:
        0 where it does not; else 1 more than the number of tokens at the prompt's end for which it does. Tokens after
        the prompt always count, other prompt tokens never.
    """
    reach = 2 if held else 0
    for scope in scopes:
        if scope.phase != "all" or scope.after is not None or scope.until is not None:
            reach = max(reach, 1)
        if scope.last is not None:
            reach = max(reach, 1 + scope.last)
        if scope.steps is not None:
            reach = max(reach, 2)
    return reach


def check_scopes(scopes: Sequence[Scope], where: str) -> None:
    """Raises BadInput where the scopes of a profile ask for more than can be kept."""
    if len(set(scopes)) > MOST_SCOPES:
        raise BadInput(f"more than {MOST_SCOPES} different scopes", where=where)
    if len(texts_of(scopes)) > MOST_TEXTS:
        raise BadInput(f"more than {MOST_TEXTS} texts to wait for", where=where)
