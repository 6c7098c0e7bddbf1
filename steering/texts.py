"""What a request has said so far, token by token, for scopes that read the generated text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from .scope import Place, TextState, step_of, texts_of

_UNFINISHED = "\ufffd"
"""What a decoder writes for the bytes of a character that is not whole yet."""


class Said:
    """The text of one answer after each of its tokens.

    A token's text depends on its neighbours (spaces, bytes of one character), so a short window is decoded with and
    without it, as servers do when they stream; bytes of an unfinished character are held back.
    """

    def __init__(self, tokenizer: Any, place: Place) -> None:
        self._tokenizer = tokenizer
        self._wanted = texts_of(place.scopes)
        self._steps = any(scope.steps is not None for scope in place.scopes)
        self._ids: list[int] = []
        self._window, self._read = 0, 0
        self.text = ""
        self._states: list[TextState] = []

    def states(self, ids: Sequence[int]) -> list[TextState]:
        """The state after each of these tokens, which are the answer from its start.

        Tokens that were seen before are not decoded again; another answer than before is read anew.
        """
        if list(ids[: len(self._ids)]) != self._ids[: len(ids)]:
            self._ids, self._window, self._read, self.text, self._states = [], 0, 0, "", []
        for token in ids[len(self._ids) :]:
            self._push(token)
        return self._states[: len(ids)]

    def _push(self, token: int) -> None:
        self._ids.append(token)
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self.text += after[len(before) :]
            self._window, self._read = self._read, len(self._ids)
        done = frozenset(text for text in self._wanted if text in self.text)
        self._states.append(TextState(done, step_of(self.text) if self._steps else None))

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


class Answers:
    """`Said` for the requests of a server; of those not asked about lately, only so many are kept: the others would
    be read anew."""

    def __init__(self, tokenizer: Any, limit: int = 4096) -> None:
        self._tokenizer, self._limit = tokenizer, limit
        self._said: OrderedDict[tuple[str, Place], Said] = OrderedDict()

    def states(
        self, request: str, place: Place, positions: range, prompt_length: int, ids: Sequence[int]
    ) -> list[TextState]:
        """The state at each position of a request.

        Args:
            request: its id.
            positions: absolute, one after another.
            prompt_length: tokens in its prompt.
            ids: the tokens of its answer so far; those up to the last position at least.
        """
        key = (request, place)
        said = self._said.get(key)
        if said is None:
            said = self._said[key] = Said(self._tokenizer, place)
            while len(self._said) > self._limit:
                self._said.popitem(last=False)
        self._said.move_to_end(key)
        states = said.states(ids[: max(0, positions.stop - prompt_length)])
        return [state_at(states, position - prompt_length) for position in positions]


def state_at(states: Sequence[TextState], index: int) -> TextState:
    """The state at the token of an answer with this index; -1 is the last prompt token, which decides."""
    if index >= 0:
        return states[index]
    return TextState(step="decide") if index == -1 else TextState()
