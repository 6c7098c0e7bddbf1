"""The algebra of interventions, held to its formulas, to a published implementation's steps, and to itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel
from trimtab.errors import BadInput, LimitExceeded
from trimtab.steering import terms
from trimtab.steering.bank import Bank, terms_needed
from trimtab.steering.entries import GateEntry
from trimtab.steering.hooks import reading, steered
from trimtab.steering.intervention import Gate, Intervention, LowRank, variants
from trimtab.steering.kernel import added
from trimtab.steering.scope import STEPS, Scope, TextState, masks, prompt_end_reach, reachable, step_of
from trimtab.steering.texts import Said

H = 32


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (H,)), generator=torch.Generator().manual_seed(seed))


def apply(term: LowRank, h: torch.Tensor, vector: torch.Tensor | None = None) -> torch.Tensor:
    """h' for a batch of residuals, through the bank and the kernel."""
    parts = [Intervention(0, vector, "all", term)]
    bank = Bank(1, H, 2, columns=term.rank)
    bank.add_variants("x", "x", variants(parts), None)
    return h + added(bank.table(0), torch.ones(len(h), dtype=torch.int64), h)


def test_ablation_leaves_nothing_along_the_directions_and_the_rest_alone() -> None:
    directions, h = draw(0, 3, H), draw(1, 9, H)
    after = apply(terms.ablate(directions), h)
    assert (after @ directions.T).abs().max() < 1e-4
    rest = h - h @ torch.linalg.pinv(directions) @ directions
    torch.testing.assert_close(after, rest, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apply(terms.ablate(directions), after), after, atol=1e-5, rtol=1e-5)
    one = draw(2)
    torch.testing.assert_close(apply(terms.ablate(one), h), h - torch.outer(h @ one, one) / (one @ one))
    with pytest.raises(BadInput, match="hangs on the others"):
        terms.ablate(torch.stack([one, 2 * one]))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.7), (None, 0.2), (1.0, None), (0.3, 0.3)])
def test_a_clamped_projection_is_within_its_bounds(low: float | None, high: float | None) -> None:
    direction, h = draw(3), draw(4, 50, H)
    unit = direction / direction.norm()
    after = apply(terms.clamp(direction, low, high), h)
    torch.testing.assert_close(after @ unit, (h @ unit).clamp(low, high), atol=1e-5, rtol=1e-5)
    side = h - torch.outer(h @ unit, unit)
    torch.testing.assert_close(after - torch.outer(after @ unit, unit), side, atol=1e-5, rtol=1e-5)
    with pytest.raises(BadInput, match="hold nothing in"):
        terms.clamp(direction, 1.0, 0.0)


@pytest.mark.parametrize("threshold", [0.0, 0.8])
def test_a_clamped_feature_equals_the_full_decode_with_its_error(threshold: float) -> None:
    """x' = decode(f with f_i := c) + (x - decode(f)), with a whole autoencoder (section 10 of the method's notes)."""
    width, feature, value = 24, 5, 2.5
    w_enc, w_dec, b_enc, b_dec, x = draw(5, width, H), draw(6, width, H), draw(7, width), draw(8), draw(9, 40, H)
    z = (x - b_dec) @ w_enc.T + b_enc
    f = z * (z > threshold)
    changed = f.clone()
    changed[:, feature] = value
    expected = changed @ w_dec + b_dec + (x - (f @ w_dec + b_dec))
    bias = float(b_enc[feature] - w_enc[feature] @ b_dec)
    vector, term = terms.clamp_feature(w_enc[feature], bias, w_dec[feature], value, threshold)
    torch.testing.assert_close(apply(term, x, vector), expected, atol=2e-4, rtol=1e-4)


def test_loreft_and_reft_r1_equal_their_formulas() -> None:
    rotation = torch.linalg.qr(draw(10, H, 4)).Q.T
    weight, bias, h, w = draw(11, 4, H), draw(12, 4), draw(13, 20, H), draw(14)
    expected = h + (h @ weight.T + bias - h @ rotation.T) @ rotation
    torch.testing.assert_close(apply(terms.loreft(rotation, weight, bias), h), expected, atol=1e-4, rtol=1e-4)
    expected = h + torch.relu(h @ w)[:, None] * w
    torch.testing.assert_close(apply(terms.reft_r1(w), h), expected, atol=1e-4, rtol=1e-4)
    half = apply(terms.reft_r1(w).scaled(0.5), h)
    torch.testing.assert_close(half, (h + expected) / 2, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=5), st.data())
def test_a_mixed_batch_gives_each_token_its_own_profile_only(
    profiles: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Profiles of several ranks and scopes side by side, some dropped again, against each one's formula alone."""
    bank = Bank(1, H, 32, columns=24)
    made: dict[str, tuple[list[Intervention], Any]] = {}
    for n, (rank, scoped) in enumerate(profiles):
        parts = [Intervention(0, draw(100 + n), "prompt" if scoped else "all")]
        if rank:
            parts.append(Intervention(0, None, "generated", terms.ablate(draw(200 + n, rank, H))))
        made[str(n)] = (parts, bank.add_variants(str(n), str(n), variants(parts), None))
    for name in data.draw(st.sets(st.sampled_from(sorted(made)))):
        bank.drop(name)
        del made[name]
    h = draw(7, 2 * len(made) + 1, H)
    rows, expected = [0], [h[0]]
    for i, (parts, place) in enumerate(made.values()):
        for side, phase in enumerate(("prompt", "generated")):
            here, out = h[1 + 2 * i + side], h[1 + 2 * i + side].clone()
            for part in parts:
                if part.tokens in ("all", phase):
                    out = out + (0 if part.vector is None else part.vector)
                    if part.low_rank is not None:
                        out = out - part.low_rank.read.T @ (part.low_rank.read @ here)
            rows.append(int(place.rows_of(np.array([side]), 1)[0]))
            expected.append(out)
    after = h + added(bank.table(0), torch.tensor(rows), h)
    torch.testing.assert_close(after, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert torch.equal(after[0], h[0])


def test_a_bank_without_room_for_terms_says_so_and_changes_nothing() -> None:
    parts = [Intervention(0, draw(1), "all", terms.ablate(draw(2, 3, H)))]
    assert terms_needed(variants(parts)) == 3
    bank = Bank(2, H, 4, columns=2)
    with pytest.raises(LimitExceeded, match="2 of the bank's 2 rank-1 terms are free at layer 0, 3 are needed"):
        bank.add_variants("x", "x", variants(parts), None)
    assert bank.rows_used == 0
    assert not bank.add.any()
    with pytest.raises(BadInput, match="no room for a condition"):
        bank.add_variants("x", "x", variants([Intervention(0, draw(1))]), Gate(0, draw(3), 0.0))


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def test_front_injection_turns_one_prompt_into_another(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """ActAdd's patch identity: p- plus (H+ - H-) at every position of the prompt is p+, to the last logit."""
    other = ids.flip(1)
    with torch.inference_mode(), reading(model, [0]) as seen:
        model(input_ids=ids)
        plus = seen[0][0]
        model(input_ids=other)
        minus = seen[0][0]
    parts = [Intervention(0, (plus - minus)[i], Scope(at=(i,))) for i in range(ids.shape[1])]
    plain = logits(model, ids)
    with steered(model, parts, ids.shape[1]) as run:
        torch.testing.assert_close(logits(model, other), plain, atol=1e-4, rtol=1e-4)
    assert run.edited == ids.shape[1]


def test_ablating_a_direction_leaves_nothing_of_it_in_the_model(model: PreTrainedModel, ids: torch.Tensor) -> None:
    direction = draw(20)
    with steered(model, [Intervention(1, None, "all", terms.ablate(direction))], 4), reading(model, [1]) as seen:
        logits(model, ids)
        assert (seen[1] @ direction).abs().max() < 1e-4


@pytest.mark.parametrize("above", [True, False])
def test_a_gate_asks_each_token(model: PreTrainedModel, ids: torch.Tensor, above: bool) -> None:
    condition, vector = draw(21), draw(22)
    with torch.inference_mode(), reading(model, [0]) as seen:
        model(input_ids=ids)
        cosine = torch.cosine_similarity(seen[0][0], condition[None])
    threshold = float(cosine.sort().values[5:7].mean())  # between two tokens
    open_ = (cosine > threshold) == above

    def by_hand(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output + open_[None, :, None] * vector

    handle = model.model.layers[1].register_forward_hook(by_hand)
    expected = logits(model, ids)
    handle.remove()
    with steered(model, [Intervention(1, vector)], 4, gate=Gate(0, condition, threshold, above)) as run:
        torch.testing.assert_close(logits(model, ids), expected)
    assert run.edited == int(open_.sum())


@pytest.mark.parametrize("passing", [True, False])
def test_a_held_gate_is_decided_once_at_the_prompts_end(
    model: PreTrainedModel, ids: torch.Tensor, passing: bool
) -> None:
    condition, vector, prompt = draw(23), draw(24), 6
    with torch.inference_mode(), reading(model, [0]) as seen:
        model(input_ids=ids)
        here = float(torch.cosine_similarity(seen[0][0, prompt - 1], condition, dim=0))
    gate = Gate(0, condition, here - 0.01 if passing else here + 0.01, hold=True)
    with steered(model, [Intervention(1, vector)], prompt, gate=gate):
        whole = logits(model, ids)
        with torch.inference_mode():  # and in pieces, with a cache, the same
            first = model(input_ids=ids[:, : prompt + 1], use_cache=True)
            rest = model(input_ids=ids[:, prompt + 1 :], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-4, rtol=1e-4)
    at = Scope(at=tuple(range(prompt - 1, ids.shape[1])))
    with steered(model, [Intervention(1, vector, at)] if passing else [], prompt):
        torch.testing.assert_close(whole, logits(model, ids))


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_a_condition_has_a_direction_whatever_its_length(size: float) -> None:
    entry = GateEntry(layer=0, file="v.safetensors", tensor="v", threshold=0.5)
    units = []
    for vector in (draw(3), draw(3) * size):
        bank = Bank(1, H, 2, gated=True)
        bank.add_variants("x", "x", variants([Intervention(0, draw(4))]), entry.gate(vector))
        table = bank.table(0).gates
        assert table is not None
        units.append(table.vector[1])
    torch.testing.assert_close(units[0].norm(), torch.tensor(1.0))
    torch.testing.assert_close(units[1], units[0])


SCOPES = (
    Scope("all"), Scope("prompt"), Scope("generated"), Scope(first=2), Scope("generated", first=3), Scope(last=2),
    Scope("prompt", first=1, last=4), Scope(at=(0, 3)), Scope(after="b"), Scope(until="b"),
    Scope("all", after="a", until="b"),
    Scope(steps=frozenset({"answer"})), Scope("generated", steps=frozenset({"decide", "arguments"})),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(SCOPES), min_size=1, max_size=5, unique=True),
    st.integers(1, 12),
    st.integers(0, 12),
    st.lists(st.tuples(st.sets(st.sampled_from("ab")), st.sampled_from(STEPS)), min_size=12, max_size=12),
)
def test_every_combination_that_occurs_is_known_beforehand(
    scopes: list[Scope], prompt: int, answer: int, said: list[tuple[set[str], Any]]
) -> None:
    positions = np.arange(prompt + answer)
    states = [TextState(step="decide" if p == prompt - 1 else None) for p in range(prompt)]
    states += [TextState(frozenset(done), step) for done, step in said[:answer]]
    found = masks(scopes, positions, prompt, states)
    assert set(found.tolist()) - {0} <= set(reachable(scopes))
    for p, mask in enumerate(found.tolist()):  # and each bit is what its scope says alone
        for bit, scope in enumerate(scopes):
            alone = masks([scope], positions[p : p + 1], prompt, states[p : p + 1])
            assert alone[0] == mask >> bit & 1


SOME = st.none() | st.integers(1, 5)
TEXT = st.sampled_from([None, None, "a", "b"])


@st.composite
def any_scope(draw: st.DrawFn) -> Scope:
    phase = draw(st.sampled_from(["all", "prompt", "generated"]))
    at = draw(st.none() | st.sets(st.integers(0, 6), min_size=1, max_size=3))
    steps = draw(st.sampled_from([None, None, frozenset({"answer"}), frozenset({"decide"})]))
    places = None if at is None else tuple(sorted(at))
    return Scope(phase, draw(SOME), draw(SOME), places, draw(TEXT), draw(TEXT), steps)


@settings(max_examples=60, deadline=None)
@given(st.lists(any_scope(), min_size=1, max_size=4, unique=True))
def test_the_combinations_are_those_of_trying_every_token(scopes: list[Scope]) -> None:
    said = [TextState(frozenset(done), step) for done in ("", "a", "b", "ab") for step in STEPS]
    tried: set[int] = set()
    for prompt in range(1, 16):
        places = np.arange(prompt)
        states = [TextState(step="decide" if p == prompt - 1 else None) for p in range(prompt)]
        tried.update(masks(scopes, places, prompt, states).tolist())
        after = np.repeat(np.arange(prompt, prompt + 8), len(said))
        tried.update(masks(scopes, after, prompt, said * 8).tolist())
    assert set(reachable(scopes)) == tried - {0}


def test_the_end_of_a_long_prompt_may_lie_beyond_a_place() -> None:
    """Position 5 is among the last 5 tokens of a prompt of 8 and not of one of 11: both are steered."""
    scopes = (Scope("prompt", at=(5,)), Scope(last=5))
    assert reachable(scopes) == (1, 2, 3)


def test_scopes_say_what_they_mean() -> None:
    def on(scope: Scope, prompt: int = 4, count: int = 8, states: list[TextState] | None = None) -> list[int]:
        return np.flatnonzero(masks([scope], np.arange(count), prompt, states)).tolist()

    assert on(Scope(first=2)) == [0, 1]
    assert on(Scope("generated", first=2)) == [4, 5]
    assert on(Scope(last=1)) == [3]
    assert on(Scope("prompt", last=9)) == [0, 1, 2, 3]
    assert on(Scope(at=(6, 1))) == [1, 6]
    states = [TextState()] * 4 + [TextState(frozenset("x" * (n > 1))) for n in range(4)]
    assert on(Scope(after="x"), states=states) == [6, 7]
    assert on(Scope(until="x"), states=states) == [4, 5]
    with pytest.raises(BadInput, match="needs the generated text"):
        on(Scope(after="x"))
    assert [prompt_end_reach([s]) for s in (Scope(), Scope("prompt"), Scope(last=3), Scope(at=(1,)))] == [0, 1, 4, 0]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", "decide"), (" \n", "decide"), ("<tool", "decide"), ("<tool_call>", "arguments"),
        ('<tool_call>\n{"name": "a"', "arguments"), ("<tool_call>x</tool_call>", "decide"),
        ("<tool_call>x</tool_call>\n<tool_call>", "arguments"), ("Sure", "answer"), ("<b>", "answer"),
        ("Sure. <tool_call>", "arguments"), ("<tool_call>x</tool_call> Done", "answer"),
        ("Let me look.\n<tool_", "decide"), ("x <", "decide"), ("x <b", "answer"), ("<tool_\n", "answer"),
    ],
)  # fmt: skip
def test_what_a_model_is_about_shows_in_what_it_said(text: str, step: str) -> None:
    assert step_of(text) == step


class Letters:
    """A tokenizer of single bytes, so that characters and markers span tokens."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode(errors="replace")


def test_an_answer_is_read_token_by_token_and_grows_only() -> None:
    scopes = (Scope(after="é!"), Scope(steps=frozenset({"answer"})))
    place = Bank(1, H, 9).add_variants("x", "x", variants([Intervention(0, draw(1), s) for s in scopes]), None)
    ids = list("<tool_call>1</tool_call>né!".encode())
    said = Said(Letters(), place)
    whole = said.states(ids)
    steps = ["".join((state.step or "?")[0] for state in whole)]
    assert steps == ["d" * 10 + "a" * 13 + "d" + "aaaa"]
    assert [state.done for state in whole] == [frozenset()] * (len(ids) - 1) + [frozenset({"é!"})]
    pieces = Said(Letters(), place)
    assert [pieces.states(ids[: n + 1])[-1] for n in range(len(ids))] == whole
    assert Said(Letters(), place).states(ids[:5]) == whole[:5]
    assert said.states(list(b"No")) == [TextState(step="answer")] * 2  # another answer is read anew


@pytest.mark.parametrize("step", STEPS)
def test_a_step_can_be_steered_alone(model: PreTrainedModel, step: Any) -> None:
    """Against hooks that know the border: the tokens at which the model is about one thing."""
    text = "ab<tool_call>1</tool_call>no"
    ids, prompt = torch.tensor([list(text.encode())]), 2
    about = ["none", *(step_of(text[prompt:end]) for end in range(prompt, len(text) + 1))]
    at = tuple(i for i, one in enumerate(about[: ids.shape[1]]) if one == step)
    vector = draw(30)
    with steered(model, [Intervention(1, vector, Scope(at=at))], prompt):
        expected = logits(model, ids)
    parts = [Intervention(1, vector, Scope(steps=frozenset({step})))]
    with steered(model, parts, prompt, tokenizer=Letters()):
        torch.testing.assert_close(logits(model, ids), expected)
    with pytest.raises(BadInput, match="Give the model's tokenizer"), steered(model, parts, prompt):
        pass


def test_the_order_of_interventions_does_not_matter(model: PreTrainedModel, ids: torch.Tensor) -> None:
    parts = [
        Intervention(1, draw(1), "all", terms.ablate(draw(2))),
        Intervention(1, None, "prompt", terms.clamp(draw(3), None, 0.1)),
        Intervention(1, draw(4), Scope(last=2)),
    ]
    found = []
    for order in itertools.permutations(parts):
        with steered(model, list(order), 5):
            found.append(logits(model, ids))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], atol=1e-5, rtol=1e-5)
