"""From conversations to rows: the assistant's tokens are learned and nothing else, and packed documents do not mix."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trimtab.errors import BadInput
from trimtab.models.embedded import MODELS, SMALL, random_tools
from trimtab.models.train.adapter import read_examples
from trimtab.models.train.data import IGNORE, Example, encode, pack, to_rows


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(MODELS / SMALL)


def test_the_pieces_of_a_document_are_its_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(3)
    for _ in range(30):
        document = random_tools.document(rng)
        example = encode(tokenizer, document)
        messages = []
        for m in document["messages"]:
            calls = [
                {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
                for c in m.get("tool_calls") or []
            ]
            messages.append({**m, "tool_calls": calls} if calls else m)
        whole = tokenizer.apply_chat_template(messages, tools=document["tools"], tokenize=False)
        assert list(example.ids) == tokenizer(whole.rstrip("\n"), add_special_tokens=False).input_ids
        learned = tokenizer.decode([i for i, keep in zip(example.ids, example.learn, strict=True) if keep])
        turns = whole.split("<|im_start|>assistant\n")[1:]
        assert learned == "".join(t[: t.index("<|im_end|>") + len("<|im_end|>")] for t in turns)


def test_words_are_one_token_wherever_they_stand(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for text in ("calendar", "photograph", "zorblax"):
        alone = tokenizer(text).input_ids
        for around in (" {} ", '"{}"', "/{}.txt", "_{}_"):
            inside = tokenizer(around.format(text)).input_ids
            assert any(inside[i : i + len(alone)] == alone for i in range(len(inside)))


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_packing_loses_nothing_and_mixes_nothing(sizes: list[int]) -> None:
    length = 32
    examples = [Example(tuple(range(1, n + 1)), (False,) + (True,) * (n - 1)) for n in sizes]
    batch = list(pack(iter(examples), length, open_rows=4))
    kept = sorted(len(e.ids) for members in batch for e in members)
    assert kept == sorted(n for n in sizes if n <= length)
    if not batch:
        return
    rows = to_rows(batch, length)
    for r in range(len(batch)):
        for number in range(1, int(rows.documents[r].max()) + 1):
            at = np.flatnonzero(rows.documents[r] == number)
            assert (rows.positions[r, at] == np.arange(len(at))).all()
            assert rows.targets[r, at[-1]] == IGNORE  # the last token never predicts the next document
            assert (rows.targets[r, at[:-1]] == rows.ids[r, at[1:]]).all()


def test_bad_rows_are_listed_by_line_and_nothing_is_read(tmp_path: Path) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join([good, "{", good, '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}'])
    )
    with pytest.raises(BadInput) as caught:
        read_examples(file)
    text = str(caught.value)
    assert all(f"line {n}" in text for n in (2, 4, 5))
    assert "line 1:" not in text
    file.write_text(good + "\n\n" + good)
    assert len(read_examples(file)) == 2


def test_made_up_tools_never_repeat() -> None:
    rng = random.Random(0)
    names = [t["function"]["name"] for d in (random_tools.document(rng) for _ in range(300)) for t in d["tools"]]
    assert len(set(names)) > 0.97 * len(names)


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    first = list(itertools.islice(random_tools.documents(5, 0.1), 20))
    assert first == list(itertools.islice(random_tools.documents(5, 0.1), 20))
    assert first != list(itertools.islice(random_tools.documents(6, 0.1), 20))
