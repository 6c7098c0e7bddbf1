"""From conversations to rows: the assistant's tokens are learned and nothing else, and packed documents do not mix."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trimtab.cli import main
from trimtab.errors import BadInput
from trimtab.models.embedded import random_tools, words
from trimtab.models.embedded.answers import AXES, detect
from trimtab.models.embedded.corpus import axes_of, base_documents, family_group, foreign_request, open_world
from trimtab.models.embedded.families import phrasings
from trimtab.models.embedded.template import root_of, turns
from trimtab.models.train import again
from trimtab.models.train.data import IGNORE, Encoder, Example, Rows, clumps, encode, pack, to_rows
from trimtab.models.train.examples import fits, hold_back, read_examples
from trimtab.models.train.passes import Passes, batches_of
from trimtab.models.train.recipe import Recipe
from trimtab.tools.builtin import FAMILIES


@pytest.fixture(scope="module")
def tokenizer(words_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(words_tokenizer)


def test_the_pieces_of_a_document_are_its_tokens(
    tokenizer: Any, rendered: Callable[[Any, dict[str, Any]], str]
) -> None:
    rng = random.Random(3)
    encoder = Encoder(tokenizer)
    for _ in range(10):
        for document in random_tools.group(rng, 3):
            example = encode(tokenizer, document)
            assert encoder(document) == example  # an opening that is remembered is the one that is rendered anew
            whole = rendered(tokenizer, document)
            assert list(example.ids) == tokenizer(whole.rstrip("\n"), add_special_tokens=False).input_ids
            learned = tokenizer.decode([i for i, keep in zip(example.ids, example.learn, strict=True) if keep])
            turns = whole.split("<|im_start|>assistant\n")[1:]
            assert learned == "".join(t[: t.index("<|im_end|>") + len("<|im_end|>")] for t in turns)
            opening = tokenizer.decode(example.ids[: example.opening])
            assert whole.startswith(opening)
            assert opening.endswith("</tools><|im_end|>\n")


@pytest.mark.parametrize("marked", [False, True], ids=["the quick way", "turn by turn"])
def test_calls_alone_can_count(tokenizer: Any, marked: bool) -> None:
    rng = random.Random(5)
    drawn = iter(lambda: random_tools.document(rng), None)
    document = next(d for d in drawn if any("tool_calls" in m for m in d["messages"]))
    if marked:  # a text that spells a mark of the template is taken turn by turn
        document["messages"] = [{"role": "system", "content": "never say <|im_start|>"}, *document["messages"]]
    whole, calls = (Encoder(tokenizer, calls_only=only)(document) for only in (False, True))
    assert whole.ids == calls.ids
    texts = []
    for example in (whole, calls):
        learned = tokenizer.decode([i for i, keep in zip(example.ids, example.learn, strict=True) if keep])
        texts.append(learned.split("<|im_end|>")[:-1])
    assert 0 < len(texts[1]) < len(texts[0])
    assert texts[1] == [reply for reply in texts[0] if "<tool_call>" in reply]


TEXT = st.text(max_size=12)
CALL = st.builds(
    lambda name, arguments, wrapped: (
        {"function": {"name": name, "arguments": arguments}} if wrapped else {"name": name, "arguments": arguments}
    ),
    TEXT,
    st.one_of(TEXT, st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans(), st.lists(TEXT)), max_size=3)),
    st.booleans(),
)
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": TEXT}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.one_of(st.none(), TEXT)},
        optional={"tool_calls": st.lists(CALL, max_size=3)},
    ),
)


@given(st.lists(MESSAGE, max_size=7))
@settings(max_examples=200, deadline=None)
def test_turns_are_what_the_template_writes(tokenizer: Any, messages: list[dict[str, Any]]) -> None:
    spans = list(turns(messages))
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False) if messages else ""
    written = "".join(text for text, _ in spans)
    assert whole.startswith(written)
    assert sum(reply for _, reply in spans) == sum(m["role"] == "assistant" for m in messages)
    for text, reply in spans:
        assert text.endswith("<|im_end|>" if reply else "<|im_start|>assistant\n")
    rest = whole[len(written) :]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    after = messages[last + 1 :]
    assert rest == ("\n" if spans else "") + (tokenizer.apply_chat_template(after, tokenize=False) if after else "")


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_batches_come_again_as_often_as_they_are_to_and_a_run_goes_on_where_it_was(
    repeat: int, size: int, start: int, seed: int
) -> None:
    def chunks(first: int) -> Iterator[list[Any]]:
        return ([(chunk, i) for i in range(size)] for chunk in itertools.count(first))

    def order(at: int, count: int) -> list[Any]:
        shown: Any = again.in_order(chunks, size, at, repeat=repeat, seed=seed)
        return list(itertools.islice(shown, count))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again, "SHELF", 3)
        shelf = 3 * size
        whole = order(0, 2 * shelf * repeat)
        assert order(start, 20) == order(0, start + 20)[start:]
        assert whole[:shelf] == [(chunk, i) for chunk in range(3) for i in range(size)]
        for at in range(0, len(whole), shelf):
            number = at // (shelf * repeat)
            assert sorted(whole[at : at + shelf]) == [(3 * number + c, i) for c in range(3) for i in range(size)]


def _roots(tokenizer: Any, text: str) -> list[str]:
    known = tokenizer.get_vocab()
    return [root_of(token, known)[0] for token in tokenizer.tokenize(text)]


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=14))
@settings(max_examples=200, deadline=None)
def test_a_word_is_cut_alike_in_all_variants_and_wherever_it_stands(tokenizer: Any, word: str) -> None:
    # What repeats three times on end may be cut from the other side once it is capitalised (`aaa`, `Aaa`).
    assume(not re.search(r"(.+)\1\1", word))
    plain = _roots(tokenizer, word)
    assert "".join(plain) == word
    capital = word[0].upper() + word[1:]
    for text in (f" {word}", capital, f" {capital}"):
        assert _roots(tokenizer, text) == plain
    alone = tokenizer(word).input_ids
    for around in ('"{}"', "/{}.txt", "_{}_", "7{}"):
        inside = tokenizer(around.format(word)).input_ids
        assert any(inside[i : i + len(alone)] == alone for i in range(len(inside)))


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assume(not text or text.isprintable())
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(2, 40)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing_and_mixes_nothing(drawn: list[tuple[int, int]]) -> None:
    length = 32
    examples: list[Example] = []
    for number, (kind, size) in enumerate(drawn):
        opening = (100 + kind,) * min(2 * kind, size - 1)
        own = tuple(range(1000 * (number + 1), 1000 * (number + 1) + size - len(opening)))
        learn = (False,) * (len(opening) + 1) + (True,) * (len(own) - 1)
        examples.append(Example(opening + own, learn, len(opening)))
    batch = list(pack(iter(examples), length, open_rows=4))
    wanted = sorted(e.ids for e in examples if len(e.ids) <= length and any(e.learn))
    if not batch:
        assert not wanted
        return
    rows = to_rows(batch, length)
    found = []
    for r, members in enumerate(batch):
        assert sum(c.size for c in members) == int((rows.clumps[r] > 0).sum()) <= length
        assert int((rows.targets[r] != IGNORE).sum()) == sum(sum(m.learn) for c in members for m in c.members)
        for number, clump in enumerate(members, 1):
            for branch in range(1, len(clump.members) + 1):
                own = rows.branches[r] == branch
                at = np.flatnonzero((rows.clumps[r] == number) & (own | (rows.branches[r] == 0)))
                found.append(tuple(rows.ids[r, at].tolist()))
                assert (rows.positions[r, at] == np.arange(len(at))).all()
                assert rows.targets[r, at[-1]] == IGNORE  # the last token never predicts the next conversation
                learned = rows.targets[r, at[:-1]]
                assert ((learned == IGNORE) | (learned == rows.ids[r, at[1:]])).all()
    assert sorted(found) == wanted


def test_conversations_with_one_opening_share_it() -> None:
    one, other = (Example((7, 7, n, n + 1), (False, False, False, True), 2) for n in (1, 3))
    alone = Example((8, 7, 5, 6), (False, False, False, True), 2)
    assert [(c.opening, len(c.members), c.size) for c in clumps([one, other, alone], 32)] == [
        ((7, 7), 2, 6),
        ((8, 7), 1, 4),
    ]
    assert [c.size for c in clumps([one, other], 5)] == [4, 4]  # what does not fit begins again with the opening


GOOD = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})


def test_bad_rows_are_listed_by_file_and_line_and_nothing_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join([GOOD, "{", GOOD, '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}'])
    )
    with pytest.raises(BadInput) as caught:
        read_examples(file)
    text = str(caught.value)
    assert all(f"rows.jsonl:{n}: " in text for n in (2, 4, 5))
    assert "rows.jsonl:1:" not in text
    file.write_text(GOOD + "\n\n" + GOOD)
    assert len(read_examples(file)) == 2


CALL_OF = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}


def _said(**message: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", **message}]


def _called(**function: Any) -> list[dict[str, Any]]:
    return _said(content=None, tool_calls=[{"function": {**CALL_OF["function"], **function}}])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (_said(content=[{"type": "text", "text": "ho"}], tool_calls=[CALL_OF]), "messages[1] has `content` that is no"),
        (_said(content=[{"type": "text", "text": "ho"}]), "messages[1] has `content` that is no text"),
        (_said(content="ho", tool_calls=5), "messages[1] has `tool_calls` that are no list"),
        (_said(content="ho", tool_calls=True), "messages[1] has `tool_calls` that are no list"),
        (_said(content="ho", tool_calls=[3]), "messages[1] has a broken tool call"),
        (_said(content="ho", tool_calls=[{"name": "add", "arguments": {}}]), "messages[1] has a broken tool call"),
        (_said(content=None), "messages[1] has neither content nor tool calls"),
        (_called(name=""), "messages[1] has a tool call without a name"),
        (_called(name=None), "messages[1] has a tool call without a name"),
        (_called(arguments=None), "messages[1] has a tool call whose arguments are not an object"),
        (_called(arguments=[1]), "messages[1] has a tool call whose arguments are not an object"),
        (_called(arguments="[1]"), "messages[1] has a tool call whose arguments are not an object"),
        (_called(arguments="{"), "messages[1] has a tool call whose arguments are not an object"),
        ([{"role": "user", "content": "hi", "tool_calls": [CALL_OF]}], "messages[0] has tool calls, and is not the"),
        ([*_said(content="ho"), {"role": "system", "content": "be brief"}], "messages[2] is a system message"),
        ([*_said(content="ho"), {"role": "developer", "content": "be brief"}], "messages[2] is a developer message"),
        (_said(content=" \n"), "messages[1] has neither content nor tool calls"),
        (_said(content="", tool_calls=[]), "messages[1] has neither content nor tool calls"),
        (_said(content="ho", function_call={"name": "add", "arguments": "{}"}), "messages[1] has a `function_call`"),
        (_said(content="ho", weight=0.5), "messages[1] has a `weight` that is not 0 or 1"),
        (_said(content="ho", weight=True), "messages[1] has a `weight` that is not 0 or 1"),
        (_said(content="ho", weight=0), "all that the assistant says has `weight` 0"),
        (_called(arguments='{"x": NaN}'), "messages[1] has a tool call whose arguments are not an object (NaN is no"),
        (_called(arguments='{"x": "\\ud83d"}'), "messages[1] has a tool call whose arguments are not an object (half"),
        (_said(content="ho", score=float("nan")), "not JSON (NaN is no JSON number)"),
        (_said(content="ho", score=-float("inf")), "not JSON (-Infinity is no JSON number)"),
        (_said(content="ho", id="\ud83d"), "not JSON (half a surrogate pair, '\\ud83d', is no text)"),
    ],
)
def test_messages_that_would_be_learned_wrongly_are_refused(
    tmp_path: Path, messages: list[dict[str, Any]], reason: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD + "\n" + json.dumps({"messages": messages}))
    with pytest.raises(BadInput) as caught:
        read_examples(file)
    assert f"rows.jsonl:2: {reason}" in str(caught.value)


def _tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ([_tool(name="sub")], "messages[1] calls add, which is not in `tools`"),
        ([], "messages[1] calls add, which is not in `tools`"),
        ([_tool(name="add"), _tool(description="of no name")], "tools[1] is no `function` with a `name`"),
        ([_tool(name="")], "tools[0] is no `function` with a `name`"),
        (["add"], "tools[0] is no `function` with a `name`"),
        ([_tool(name="add", parameters="{}")], "tools[0] (add) has `parameters` that are no JSON schema of an object"),
        ([_tool(name="add", parameters={"type": "string"})], "tools[0] (add) has `parameters` that are no"),
        ([_tool(name="add", parameters={"properties": ["x"]})], "tools[0] (add) has `parameters` that are no"),
    ],
)
def test_tools_that_are_broken_or_called_unseen_are_refused(tmp_path: Path, tools: list[Any], reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"messages": _called()}
    file.write_text(GOOD + "\n" + json.dumps({**row, "tools": tools}))
    with pytest.raises(BadInput) as caught:
        read_examples(file)
    assert f"rows.jsonl:2: {reason}" in str(caught.value)
    for parameters in ({}, {"type": "object", "properties": {"x": {"type": "integer"}}}, None):
        file.write_text(json.dumps({**row, "tools": [_tool(name="add", parameters=parameters)]}))
        assert len(read_examples(file)) == 1
    file.write_text(json.dumps({**row, "functions": [{"name": "add"}]}))
    with pytest.raises(BadInput, match="write them as `tools`"):
        read_examples(file)


def test_a_mark_of_the_encoding_and_the_newer_name_of_the_system_message_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    messages = [{"role": "developer", "content": "be brief"}, *_said(content="ho")]
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": messages}).encode())
    assert read_examples(file) == [{"messages": [{"role": "system", "content": "be brief"}, *messages[1:]]}]


@pytest.mark.parametrize("opening", [[], [{"role": "system", "content": "never say <|im_start|>"}]])
def test_a_turn_of_weight_0_is_read_and_not_learned(tokenizer: Any, opening: list[dict[str, Any]]) -> None:
    said = [("bad", {"weight": 0}), ("good", {"weight": 1}), ("fine", {})]
    messages = list(opening)
    for text, more in said:
        messages += [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text, **more}]
    example = encode(tokenizer, {"messages": messages})
    learned = tokenizer.decode([i for i, keep in zip(example.ids, example.learn, strict=True) if keep])
    assert learned == "good<|im_end|>fine<|im_end|>"
    assert "bad<|im_end|>" in tokenizer.decode(example.ids)


@pytest.mark.parametrize(
    "messages",
    [
        _said(content="ho", tool_calls=None),
        _said(content=None, tool_calls=[CALL_OF]),
        _called(arguments={"x": 1}),
        [{"role": "system", "content": "be brief"}, *_said(content="ho", tool_calls=[])],
    ],
)
def test_messages_in_openais_form_are_taken(tmp_path: Path, messages: list[dict[str, Any]]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages}))
    assert read_examples(file) == [{"messages": messages}]


def test_suites_and_pairs_that_are_there_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trimtab.models.embedded.corpus.contrast_pairs", lambda axis, *_, **__: [{"axis": axis}])
    monkeypatch.setattr("trimtab.models.embedded.tasks.suite_tasks", lambda *_, **__: [{"task": "add"}])
    pairs, suites = tmp_path / "pairs", tmp_path / "suites"
    command = ["train", "data", "--pairs", str(pairs), "--suites", str(suites)]
    assert main(command) == 0
    (pairs / "detail.jsonl").unlink()
    assert main(command) == 0  # the same content may be there
    shipped = suites / "small.yaml"
    shipped.write_text("older: true\n")
    (pairs / "detail.jsonl").unlink()
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr()
    assert str(shipped) in told.err
    assert "--replace" in told.err
    assert (told.out, (pairs / "detail.jsonl").exists(), shipped.read_text()) == ("", False, "older: true\n")
    assert main([*command, "--replace"]) == 0
    assert "task: add" in shipped.read_text()
    assert main(["train", "data", "--pairs", str(tmp_path / "new"), "--suites", str(shipped)]) == 2
    assert not (tmp_path / "new").exists()


def test_a_folder_is_read_as_one_and_its_bad_rows_name_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(BadInput, match=r"no \.jsonl files"):
        read_examples(folder)
    for name, count in (("b", 100), ("a", 150), ("c", 50)):
        rows = [
            {"messages": [{"role": "user", "content": f"{name}{i}"}, {"role": "assistant", "content": "ho"}]}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "notes.txt").write_text("not conversations")
    rows = read_examples(folder)
    assert len(rows) == 300
    assert [rows[i]["messages"][0]["content"] for i in (0, 150, 299)] == ["a0", "b0", "c49"]
    (folder / "b.jsonl").write_text(GOOD + '\n{"messages": 3}\n')
    (folder / "c.jsonl").write_text('{"messages": [{"role": "robot"}]}')
    with pytest.raises(BadInput, match="nothing was trained") as caught:
        read_examples(folder)
    assert "b.jsonl:2: no list `messages`" in str(caught.value)
    assert "c.jsonl:1: messages[0] has no known role" in str(caught.value)


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_line_of_a_file_is_a_line_whatever_a_string_holds(
    tmp_path_factory: pytest.TempPathFactory, said: str
) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "ho"}]}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n" + GOOD, encoding="utf-8", newline="\n")
    assert read_examples(file)[0] == row


def test_a_tenth_of_a_users_rows_is_held_back_and_always_the_same() -> None:
    rows = [{"messages": i} for i in range(300)]
    learned, held = hold_back(rows)
    assert len(held) == 30
    assert sorted(r["messages"] for r in learned + held) == list(range(300))
    assert hold_back(rows) == (learned, held)
    again = hold_back(rows[::-1])
    assert again == (learned[::-1], held[::-1])  # whatever their order
    more, kept = hold_back([*rows, *({"messages": -1 - i} for i in range(300))])
    assert sum(r in kept for r in held) > 20  # and mostly those when rows are added
    assert len(more) == 540
    assert [len(part) for part in hold_back(rows[:3])] == [2, 1]
    assert hold_back(rows[:1]) == (rows[:1], [])  # there must be something to learn from


def test_what_is_held_back_is_not_learned_from_another_row_that_says_the_same() -> None:
    rows = [{"messages": i % 5, "id": i} for i in range(50)]
    learned, held = hold_back(rows)
    assert len(held) == 10
    assert not {r["messages"] for r in learned} & {r["messages"] for r in held}
    assert hold_back(rows[::5]) == (rows[::5], [])


def _asked(number: int, words: int) -> dict[str, Any]:
    said = f"{number} " + "milk " * words
    return {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "done"}]}


@pytest.mark.parametrize("repeat", [1, 2])
def test_a_users_conversations_are_learned_equally_often_and_a_run_goes_on_where_it_was(
    tokenizer: Any, repeat: int
) -> None:
    # Half of them fill a row, and of the others no two fit into one.
    documents = [_asked(i, 60 if i % 2 else 90) for i in range(40)]
    numbers = {tuple(encode(tokenizer, d).ids): i for i, d in enumerate(documents)}
    recipe = Recipe(steps=90, batch=3, length=max(map(len, numbers)), lr=1.0, seed=5, repeat=repeat)
    batches = batches_of(recipe, tokenizer, Passes(documents, 5))
    whole = list(itertools.islice(batches(0), recipe.steps))

    def learned(rows: Rows) -> list[int]:
        found = []
        for r in range(len(rows.ids)):
            members = {*zip(rows.clumps[r].tolist(), rows.branches[r].tolist(), strict=True)} - {(0, 0)}
            for clump, branch in members:
                at = (rows.clumps[r] == clump) & (rows.branches[r] == branch)
                found.append(numbers[tuple(rows.ids[r, at].tolist())])
        return found

    times: Counter[int] = Counter()
    for rows in whole:
        times.update(learned(rows))
        spread = max(times.values()) - min(times[i] for i in range(len(documents)))
        assert spread <= repeat
    assert min(times[i] for i in range(len(documents))) >= 3
    for start in (1, 24, 25, 26, 60):
        for rows, same in zip(batches(start), whole[start:], strict=False):
            assert all((getattr(rows, f.name) == getattr(same, f.name)).all() for f in fields(Rows))
    other = next(iter(batches_of(recipe, tokenizer, Passes(documents, 6))(0)))
    assert (other.ids != whole[0].ids).any()
    with pytest.raises(BadInput, match="anything to learn"):
        next(batches_of(recipe, tokenizer, Passes([_asked(0, 200)], 0))(0))


def test_what_does_not_fit_a_row_is_told(tokenizer: Any) -> None:
    said = [{"role": "user", "content": "milk " * 50}, {"role": "assistant", "content": "done"}]
    size = len(encode(tokenizer, {"messages": said}).ids)
    assert fits(tokenizer, size)({"messages": said}) is None
    assert "more than the recipe's length" in str(fits(tokenizer, size - 1)({"messages": said}))


def test_made_up_tools_never_repeat() -> None:
    rng = random.Random(0)
    names = [t["function"]["name"] for d in (random_tools.document(rng) for _ in range(300)) for t in d["tools"]]
    assert len(set(names)) > 0.97 * len(names)


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    first = list(itertools.islice(random_tools.documents(5, copy_share=0.1), 20))
    assert first == list(itertools.islice(random_tools.documents(5, copy_share=0.1), 20))
    assert first != list(itertools.islice(random_tools.documents(6, copy_share=0.1), 20))


def test_the_corpus_does_not_depend_on_the_process() -> None:
    """Sets of words are ordered differently in every process; a run that goes on must see the same documents."""
    script = (
        "import itertools; from trimtab.models.embedded.corpus import base_documents, open_world\n"
        "from trimtab.models.train.data import data_hash\n"
        "with open_world() as world: print(data_hash(itertools.islice(base_documents(4, world), 60)))"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_some_tool_sets_are_mixed_and_never_offer_what_a_refusal_lacks() -> None:
    mixed: Counter[str] = Counter()
    with open_world() as world:
        for document in itertools.islice(base_documents(8, world), 3000):
            family, names = document["family"], [t["function"]["name"] for t in document["tools"]]
            assert len(names) == len(set(names))
            calls = {c["function"]["name"] for m in document["messages"] for c in m.get("tool_calls") or ()}
            assert calls <= set(names)
            if family == "any":
                mixed["built in beside made up"] += bool(set(names) & set(world.specs))
                assert not calls & set(world.specs)
            elif family in FAMILIES:
                assert calls <= set(FAMILIES[family])
                strangers = set(names) - set(FAMILIES[family])
                mixed["another family's"] += bool(strangers & set(world.specs))
                mixed["made up beside built in"] += bool(strangers - set(world.specs))
    assert all(mixed[kind] > 20 for kind in ("built in beside made up", "another family's", "made up beside built in"))


def test_a_request_for_another_family_is_one_that_nothing_shown_serves() -> None:
    """With a tool of every other family beside the family's own, only requests that no tool serves are left."""
    rng = random.Random(1)
    beside = {tools[0] for family, tools in FAMILIES.items() if family != "calc"}
    asked = {foreign_request(rng, "calc", "train", beside) for _ in range(50)}
    assert asked <= set(phrasings("train")["other"]["other"])
    assert not {foreign_request(rng, "calc", "train") for _ in range(50)} <= set(phrasings("train")["other"]["other"])


def test_what_a_tag_names_shows_in_the_documents_under_it() -> None:
    """Under `confirm` nothing is destroyed unasked, under `act` nothing is asked first, and so on."""
    seen: Counter[str] = Counter()
    with open_world() as world:
        for document in itertools.islice(base_documents(3, world), 5000):
            head, *turns = document["messages"]
            if head["role"] != "system":
                continue
            tagged = set(head["content"].removeprefix("Style: ").rstrip(".").split(", "))
            assert tagged <= {side for sides in AXES.values() for side in sides}
            said = [m["content"] for m in turns if m["role"] == "assistant" and m["content"]]
            asked = [text for text in said if detect(text)["confirm"]]
            if "act" in tagged:
                assert not asked
            seen["act"] += "act" in tagged
            seen["asked"] += "confirm" in tagged and bool(asked)
            for axis in ("register", "language", "explain", "tone"):
                first, second = AXES[axis]
                shown = {detect(text)[axis] for text in said} - {None}
                if first in tagged or second in tagged:
                    assert len(shown) <= 1 or axis == "explain"  # without a call there is nothing to explain
                if axis != "explain":
                    assert not shown or (first in tagged) <= (True in shown)
                    assert not shown or (second in tagged) <= (False in shown)
    assert seen["act"] > 10
    assert seen["asked"] > 10


def test_a_group_about_a_rare_behaviour_shows_both_sides_of_it_unless_a_tag_names_one() -> None:
    rng = random.Random(7)
    sides: Counter[bool] = Counter()
    with open_world() as world:
        for _ in range(60):
            for document in family_group(rng, world, "calc", axis="units"):
                head, *turns = document["messages"]
                tagged = head["role"] == "system"
                if tagged:
                    assert head["content"] in ("Style: metric.", "Style: imperial.")
                calls = [call["function"] for turn in turns for call in turn.get("tool_calls") or []]
                shown = detect("", [(call["name"], json.loads(call["arguments"])) for call in calls])["units"]
                if shown is not None and not tagged:
                    sides[shown] += 1
    assert min(sides[True], sides[False]) > 0.3 * sides.total() > 5


def test_a_tag_names_what_the_family_can_show() -> None:
    assert "units" in axes_of("calc")
    assert not {"confirm", "verify"} & set(axes_of("calc"))
    assert {"confirm", "verify"} <= set(axes_of("mail"))
    assert "units" not in axes_of("mail")
    for family in FAMILIES:
        assert {"detail", "register", "explain", "language", "tone"} <= set(axes_of(family))


def test_a_world_is_emptied_before_each_request() -> None:
    rng = random.Random(5)
    with open_world() as world:
        world.reset(rng)
        world.run("add_todo", {"item": "milk"})
        assert world.run("list_todos", {})["todos"] == ["milk"]
        world.reset(rng)
        assert world.run("list_todos", {})["todos"] == []
        world.run("calculate", {"expression": "1 + 1"})
        world.run("write_file", {"path": "a.txt", "content": "x"})
        world.reset(rng)
        assert world.run("list_files", {})["files"] == []


def test_hardly_a_name_is_a_word_that_builds_sentences() -> None:
    rng = random.Random(8)
    drawn = [words.word(rng, 0.2) for _ in range(3000)]
    assert sum(w in words.GRAMMAR for w in drawn) < 30  # made up of letters it may happen to be one
