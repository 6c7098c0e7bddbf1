"""Adapters: one command from a user's rows to a profile, several seeds and how they differ, and where to put one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trimtab.cli import main
from trimtab.errors import BadInput
from trimtab.models.train.adapter import SAMPLE, Start, fresh_adapter, train_adapter
from trimtab.models.train.churn import NEW_TOKENS, calls_in, churn, exact_share, first_calls, replies, said_calls
from trimtab.models.train.data import data_hash
from trimtab.models.train.examples import hold_back
from trimtab.models.train.held import Held, held_loss, packed
from trimtab.models.train.passes import Passes
from trimtab.models.train.place import Arm, judged, placements, shortened
from trimtab.models.train.recipe import Recipe

RECIPE = "{steps: 4, batch: 2, length: 96, lr: 0.01, warmup: 1, decay: 2, rank: 4, alpha: 8}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def _rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"ping {i}"}, {"role": "assistant", "content": f"pong {i}"}]}
        for i in range(start, start + count)
    ]


def _write(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def test_one_command_makes_a_profile_of_a_users_examples(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _write(tmp_path / "mine.jsonl", _rows(30))
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--store", str(tmp_path / "s")]
    options += ["--curve", str(tmp_path / "curve.png"), "--json"]
    arguments = ["train", "adapter", "mine", *options]
    assert main(arguments) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["data"] | {"sha256": "", "sample_sha256": ""} == {
        "file": "mine.jsonl", "rows": 30, "trained_on": 27, "sha256": "", "sample_sha256": "",
    }  # fmt: skip
    assert card["failed"] == []
    assert card["recipe"]["steps"] == 4
    assert card["recipe"].keys() == Recipe.model_fields.keys()
    scores = card["scores"]
    assert scores["held_out"] == {"held_back": 3, "out_of": 30, "documents": 3}
    assert scores["held_loss"] > 0
    assert [s["seed"] for s in scores["seeds"]] == [card["kept_seed"]] == [0]
    assert (scores["churn"], scores["held_loss_sd"]) == (None, None)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--curve", str(tmp_path / "curve.svg")]) == 2
    assert "Name a .png file" in capsys.readouterr().err
    assert "held_loss" in (tmp_path / "s" / "mine@1" / "profile.yaml").read_text()
    data.write_text(data.read_text() + "\n{broken")
    assert main([*arguments[:2], "other", *arguments[3:]]) == 2
    assert not (tmp_path / "s" / "other@1").exists()


def test_a_users_folder_of_three_hundred_conversations(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    for number in range(3):
        _write(folder / f"part-{number}.jsonl", _rows(100, 100 * number))
    options = ["--data", str(folder), "--recipe", str(recipe), "--base", str(tiny_model)]
    assert main(["train", "adapter", "mine", *options, "--out", str(tmp_path / "out"), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["data"]["file"], card["data"]["rows"], card["data"]["trained_on"]) == ("ours", 300, 270)
    assert card["scores"]["held_out"]["held_back"] == 30
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()

    (folder / "part-1.jsonl").write_text(json.dumps(_rows(1)[0]) + "\n" + json.dumps({"messages": []}) + "\n")
    (folder / "part-2.jsonl").write_text("nothing of the kind\n")
    assert main(["train", "adapter", "mine", *options, "--out", str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err
    assert "part-1.jsonl:2: no list `messages`" in told
    assert "part-2.jsonl:1: not JSON" in told
    assert "nothing was trained" in told
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_of_rows_of_which_one_was_edited_is_refused(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows(400)

    def seen() -> str:
        """What the first documents tell."""
        return data_hash(itertools.islice(Passes(hold_back(rows)[0], 0)(0), SAMPLE))

    work = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    options = ["--recipe", str(recipe), "--base", str(tiny_model), *work]
    arguments = ["train", "adapter", "mine", "--data", str(_write(tmp_path / "mine.jsonl", rows)), *options]
    assert main(arguments) == 0
    before = seen()
    for row in rows:
        said = row["messages"][1]
        kept, said["content"] = said["content"], said["content"] + "!"
        if seen() == before:
            break
        said["content"] = kept
    assert seen() == before
    _write(tmp_path / "mine.jsonl", rows)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("My Adapter", [], "profile: name"),
        ("mine", ["--version", "a b"], "profile: version"),
        ("mine", ["--store", "{file}/store"], "--store"),
        ("mine", ["--out", "{file}"], "--out"),
        ("mine", ["--work", "{file}"], "--work"),
        ("mine", ["--curve", "{file}/curve.png"], "--curve"),
    ],
)
def test_what_could_not_be_saved_is_not_trained(
    tmp_path: Path,
    tiny_model: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
    told: str,
) -> None:
    data = _write(tmp_path / "mine.jsonl", _rows(3))
    options = [option.format(file=data) for option in options]
    common = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--store", str(tmp_path / "s")]
    assert main(["train", "adapter", name, *common, *options]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert "tokens/s" not in printed
    assert not (tmp_path / "s").exists()


def test_a_profile_is_replaced_only_where_that_is_asked_for(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, store = _write(tmp_path / "mine.jsonl", _rows(3)), tmp_path / "s"
    common = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--store", str(store)]
    arguments = ["train", "adapter", "mine", *common, "--json", "--threads", "1"]
    file = store / "mine@1" / "adapter" / "adapter_model.safetensors"
    assert main(arguments) == 0
    first = file.read_bytes()
    capsys.readouterr()
    assert main([*arguments, "--seed", "3"]) == 2
    printed = capsys.readouterr().err
    assert "Give another --version, or --replace" in printed
    assert "tokens/s" not in printed
    assert file.read_bytes() == first
    assert main([*arguments, "--seed", "3", "--replace"]) == 0
    assert file.read_bytes() != first
    assert main([*arguments, "--version", "2"]) == 0
    assert sorted(folder.name for folder in store.iterdir()) == ["mine@1", "mine@2"]


def test_an_adapter_that_cannot_be_saved_after_all_is_kept(
    tmp_path: Path,
    tiny_model: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.models.train.profile.save_profile", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = _write(tmp_path / "mine.jsonl", _rows(3))
    common = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--store", str(tmp_path / "s")]
    assert main(["train", "adapter", "mine", *common]) == 1
    (kept,) = tmp_path.glob("trimtab-adapter-*")
    assert f"kept in {kept}" in capsys.readouterr().err
    assert load_file(kept / "adapter_model.safetensors")


def test_a_module_that_the_base_lacks_is_told(tmp_path: Path, tiny_model: Path) -> None:
    for targets in (("nope",), ("q_proj", "nope"), ("q_norm",)):
        recipe = Recipe(steps=1, lr=1e-3, targets=targets)
        with pytest.raises(BadInput, match=r"recipe: targets: the base has no modules .* It has down_proj, "):
            fresh_adapter(tiny_model, recipe, seed=0)


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-0.001"])
def test_a_rate_that_is_none_is_told(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str], rate: str
) -> None:
    data = _write(tmp_path / "mine.jsonl", _rows(12))
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--steps", "2"]
    assert main(["train", "place", *options, "--rates", "1e-3", "2e-3", "4e-3", "8e-3", rate]) == 2
    assert f"--rates: {float(rate)} is not a learning rate" in capsys.readouterr().err


def test_an_example_longer_than_a_row_is_named_and_nothing_is_trained(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"messages": [{"role": "user", "content": "milk " * 500}, {"role": "assistant", "content": "done"}]}
    data = _write(tmp_path / "mine.jsonl", [*_rows(1), long, *_rows(1)])
    options = ["--recipe", str(recipe), "--base", str(tiny_model), "--store", str(tmp_path / "s")]
    assert main(["train", "adapter", "mine", "--data", str(data), *options]) == 2
    said = capsys.readouterr().err
    assert "mine.jsonl:2: " in said
    assert "tokens, more than the recipe's length of 96" in said
    assert "mine.jsonl:1" not in said
    assert not (tmp_path / "s").exists()


def test_an_adapter_that_fails_is_tried_from_other_seeds_and_then_refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, store = tmp_path / "wild.yaml", tmp_path / "s"
    data = _write(tmp_path / "mine.jsonl", _rows(1))
    recipe.write_text("{steps: 60, batch: 1, length: 32, lr: 1.0e+4, warmup: 1, clip: 1.0e+9}")
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--store", str(store)]
    assert main(["train", "adapter", "mine", *options]) == 7
    told = capsys.readouterr().err
    assert "starting again from seed 1" in told
    assert "starting again from seed 2" in told
    assert "failed from 3 seeds" in told
    assert not store.exists()


def test_of_several_seeds_the_first_is_kept_and_the_card_says_how_they_differ(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _write(tmp_path / "mine.jsonl", _rows(30))
    cards = []
    for seeds in (1, 3):
        options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--seed", "5"]
        options += ["--seeds", str(seeds), "--out", str(tmp_path / f"of-{seeds}"), "--work", str(tmp_path / "work")]
        assert main(["train", "adapter", "mine", *options, "--json"]) == 0
        cards.append(json.loads(capsys.readouterr().out))
    one, three = cards
    assert one["sha256"] == three["sha256"]  # and it is not trained again: its checkpoint is there
    scores = three["scores"]
    assert [s["seed"] for s in scores["seeds"]] == [5, 6, 7]
    losses = [s["held_loss"] for s in scores["seeds"]]
    assert len(set(losses)) == 3
    assert scores["held_loss"] == losses[0] == one["scores"]["held_loss"]
    mean = sum(losses) / 3
    assert scores["held_loss_mean"] == pytest.approx(mean, abs=1e-4)
    assert scores["held_loss_sd"] == pytest.approx((sum((v - mean) ** 2 for v in losses) / 2) ** 0.5, abs=1e-4)
    assert scores["churn"] is None  # nobody calls a tool here
    other = _write(tmp_path / "other.jsonl", _rows(30, start=30))
    assert main(["train", "adapter", "mine", *options, "--data", str(other)]) == 2
    assert "other data" in capsys.readouterr().err  # what was trained on other rows is not taken for these
    assert main(["train", "adapter", "mine", *options, "--seeds", "2"]) == 0
    assert "2 seeds: " in capsys.readouterr().out


def test_churn_is_the_mean_share_of_calls_that_differ_over_pairs_of_seeds() -> None:
    a, b, none = (("add", '{"x": 1}'),), (("add", '{"x": 2}'),), ()
    assert churn([[a, a, none, none]]) is None
    assert churn([[none], [none]]) is None
    assert churn([[a, b], [a, b]]) == 0
    assert churn([[a, a, a, none], [a, b, a, none]]) == 0.25
    assert churn([[a, a], [a, b], [b, b]]) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert churn([[a], [none]]) == 1
    assert churn([[a, None, a, a], [b, a, None, a]]) == 0.5  # of the turns that are known of both
    assert churn([[a, None], [None, a]]) is None


def test_calls_are_compared_as_values() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>'
    assert calls_in(call % '{"x": 1.0, "y": "a"}') == calls_in(call % '{"y": "a", "x": 1}')
    assert calls_in(call % '{"x": 1}') != calls_in(call % '{"x": true}')
    assert calls_in(call % '{"x": "1"}') != calls_in(call % '{"x": 1}')
    assert calls_in("no call") == calls_in(call % '{"x": broken') == ()
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"y": "a", "x": 1}'}}]}
    documents = [{"messages": [{"role": "user", "content": "go"}, turn]}, *_rows(1)]
    assert first_calls(documents[0]) == calls_in(call % '{"x": 1, "y": "a"}')
    assert exact_share([first_calls(documents[0]), ()], documents) == 1
    assert exact_share([(), ()], documents) == 0
    assert exact_share([()], _rows(1)) is None
    assert exact_share([None, ()], documents) is None
    assert exact_share([None, first_calls(documents[0])], [documents[0]] * 2) == 1


def test_the_first_answer_is_the_first_that_a_user_asked_for_and_that_is_learned() -> None:
    def turn(number: int, **more: Any) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"x": number}}}], **more}

    user, result = {"role": "user", "content": "go"}, {"role": "tool", "content": "1"}
    for messages, wanted in (
        ([user, turn(1), result, turn(2)], 1),
        ([{"role": "system", "content": "be brief"}, turn(1), user, turn(2)], 2),
        ([turn(1), result, user, turn(2)], 2),
        ([user, turn(1, weight=0), user, turn(2, weight=1)], 2),
    ):
        assert first_calls({"messages": messages}) == (("add", f'{{"x": {wanted}}}'),)
    assert first_calls({"messages": [turn(1)]}) == first_calls({"messages": [user, turn(1, weight=0)]}) == ()


class _Repeats:
    """A model that says what it was given, whatever it is asked."""

    training, device = False, "cpu"

    def __init__(self, tokenizer: Any, said: Sequence[str]) -> None:
        self.pad = tokenizer.pad_token_id
        self.said = [tokenizer(text + tokenizer.eos_token, add_special_tokens=False).input_ids for text in said]

    def eval(self) -> None: ...

    def train(self, training: bool) -> None: ...

    def generate(self, *, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        rows = [said[:max_new_tokens] for said in self.said]
        width = max(map(len, rows))
        return torch.cat([input_ids, torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])], 1)


def test_long_calls_are_read_to_their_end_and_a_reply_without_one_is_not_known(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def text(number: int, words: int) -> str:
        arguments = json.dumps({"body": f"{number} " + "please add milk " * words})
        return f'<tool_call>\n{{"name": "send", "arguments": {arguments}}}\n</tool_call>'

    documents = []
    for i in range(3):
        call = {"function": json.loads(text(i, 30).removeprefix("<tool_call>").removesuffix("</tool_call>"))}
        turns = [{"role": "user", "content": "send"}, {"role": "assistant", "tool_calls": [call]}]
        documents.append({"messages": turns})
    right = said_calls(_Repeats(tokenizer, [text(i, 30) for i in range(3)]), tokenizer, documents)
    assert exact_share(right, documents) == 1
    other = said_calls(_Repeats(tokenizer, [text(i + 5, 30) for i in range(3)]), tokenizer, documents)
    assert exact_share(other, documents) == 0
    assert churn([right, other]) == 1
    endless = said_calls(_Repeats(tokenizer, [text(0, 30), text(1, 30), text(2, 90)]), tokenizer, documents)
    assert endless == [*right[:2], None]


def test_conversations_that_open_with_a_greeting_are_scored(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows(30)
    for row in rows:
        row["messages"].insert(0, {"role": "assistant", "content": "hello"})
    data = _write(tmp_path / "mine.jsonl", rows)
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--json"]
    assert main(["train", "adapter", "mine", *options, "--seeds", "2", "--out", str(tmp_path / "out")]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["held_loss"] > 0
    assert scores["unscored"] == []
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_adapter_that_cannot_be_scored_is_saved_and_its_card_says_why(
    tmp_path: Path,
    tiny_model: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seeds: int,
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("the template has no such turn")

    where = "trimtab.models.train.held.held_loss" if seeds == 1 else "trimtab.models.train.churn.replies"
    monkeypatch.setattr(where, broken)
    data = _write(tmp_path / "mine.jsonl", _rows(30))
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--store", str(tmp_path / "s")]
    command = ["train", "adapter", "mine", *options, "--seeds", str(seeds)]
    assert main([*command, "--json"]) == 0
    told = capsys.readouterr()
    scores = json.loads(told.out)["scores"]
    assert "seed 0 is trained, but could not be scored" in told.err
    why = "ValueError: the template has no such turn"
    assert scores["unscored"] == [{"seed": seed, "why": why} for seed in range(seeds)]
    assert (scores["first_calls"], scores["churn"], scores["first_answers_known"]) == (None, None, None)
    assert (scores["held_loss"] is None) == (seeds == 1)
    assert (tmp_path / "s" / "mine@1" / "adapter" / "adapter_model.safetensors").exists()
    assert main([*command, "--replace"]) == 0
    assert f"could not be scored: {why}" in capsys.readouterr().out


def test_replies_in_batches_are_those_asked_for_one_by_one(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    documents = [
        {"messages": [{"role": "user", "content": "milk " * (1 + 3 * i)}, {"role": "assistant", "content": "ok"}]}
        for i in (4, 0, 2, 1)
    ]
    drawn = []
    for document in documents:
        prompt = tokenizer.apply_chat_template(document["messages"][:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        start = ids.shape[1]
        for _ in range(NEW_TOKENS):  # no cache, no padding
            with torch.inference_mode():
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
        drawn.append(ids[0, start:].tolist())
    # A random model never ends by itself: let something that it says in some of them be the end.
    end = next(token for token in drawn[0] if not all(token in said for said in drawn))
    model.generation_config.eos_token_id = [end]
    alone = [tokenizer.decode(said[: said.index(end)]) if end in said else None for said in drawn]
    assert replies(model, tokenizer, documents) == alone
    assert None in alone
    assert len({*alone}) > 1


def test_the_held_out_loss_is_the_mean_over_learned_tokens(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.models.train.loop.bfloat16_is_fast", lambda: False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = fresh_adapter(tiny_model, Recipe(steps=1, lr=1e-3), seed=0)
    held = Held(tuple(_rows(7)))
    whole = packed(tokenizer, held, 64, batch=100)
    parts = packed(tokenizer, held, 16, batch=1)  # rows as long as the longest conversation needs
    assert len(parts) > 1
    assert held_loss(model, whole) == pytest.approx(held_loss(model, parts), abs=1e-4)
    assert held_loss(model, []) is None
    assert packed(tokenizer, Held(()), 64) == []


def test_a_placement_adapts_what_it_names_and_no_other_layer(tiny_model: Path) -> None:
    recipe = Recipe(steps=1, lr=1e-3, rank=2)
    for name, fields in placements(3).items():
        model = fresh_adapter(tiny_model, recipe.model_copy(update=fields), seed=0)
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        modules = {n.split(".lora_")[0].split(".layers.")[1] for n in trained}
        layers = {int(m.split(".")[0]) for m in modules}
        assert layers == ({1, 2} if name == "top" else {0, 1, 2}), name
        assert {m.split(".")[-1] for m in modules} == set(fields["targets"]), name
    with pytest.raises(BadInput, match="3 layers, 0 to 2"):
        fresh_adapter(tiny_model, recipe.model_copy(update={"layers_from": 3}), seed=0)


def test_an_adapter_is_trained_further_into_its_next_version(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s"
    data = _write(tmp_path / "mine.jsonl", _rows(30))
    options = ["--data", str(data), "--base", str(tiny_model), "--store", str(store), "--json"]
    assert main(["train", "adapter", "mine", *options, "--recipe", str(recipe)]) == 0
    first = json.loads(capsys.readouterr().out)
    # Of another rank, and hardly a step: what comes out is what it started from.
    gentle = tmp_path / "gentle.yaml"
    gentle.write_text("{steps: 1, batch: 2, length: 96, lr: 1.0e-9, rank: 2, alpha: 2, targets: [q_proj]}")
    more = [*options, "--recipe", str(gentle)]
    assert main(["train", "adapter", "mine", *more, "--go-on-from", "mine", "--seeds", "2"]) == 0
    second = json.loads(capsys.readouterr().out)
    before, after = (load_file(store / f"mine@{v}" / "adapter" / "adapter_model.safetensors") for v in (1, 2))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.allclose(before[name], after[name], rtol=0, atol=1e-7), name
    assert [second["recipe"][key] for key in ("rank", "alpha", "seed")] == [4, 8, 1]
    assert second["recipe"]["targets"] == sorted(first["recipe"]["targets"])
    assert second["before"]["profile"] == "mine@1"
    assert second["before"]["tokens"] == first["tokens"]
    assert second["scores"]["held_loss"] == pytest.approx(first["scores"]["held_loss"], abs=1e-4)
    # The rows are not those that it began with, nor the same for both seeds.
    assert len({first["first_loss"], *(s["final_loss"] for s in second["scores"]["seeds"])}) == 3
    for spec, found in (("mine", "mine@2"), ("mine@1", "mine@1")):  # no version is replaced
        assert main(["train", "adapter", "mine", *more, "--go-on-from", spec]) == 0
        assert json.loads(capsys.readouterr().out)["before"]["profile"] == found
    assert main(["train", "adapter", "mine", *more, "--go-on-from", "mine@2"]) == 0
    third = json.loads(capsys.readouterr().out)
    assert (third["before"]["profile"], third["recipe"]["seed"]) == ("mine@2", 2)
    assert main(["train", "adapter", "other", *more, "--go-on-from", "mine@1"]) == 0
    made = sorted(folder.name for folder in store.iterdir())
    assert made == [*(f"mine@{version}" for version in range(1, 6)), "other@1"]
    assert main(["train", "adapter", "mine", *more, "--go-on-from", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_each_of_several_seeds_is_what_it_would_be_alone(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _write(tmp_path / "mine.jsonl", _rows(30))
    common = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--json"]
    arguments = ["train", "adapter", "mine", *common, "--out"]
    alone = []
    for seed in ("0", "1"):
        work = ["--seed", seed, "--work", str(tmp_path / "work")]
        assert main([*arguments, str(tmp_path / seed), *work]) == 0
        alone.append(json.loads(capsys.readouterr().out))
    for work in ([], ["--work", str(tmp_path / "work")]):  # trained anew, and taken from the checkpoints
        assert main([*arguments, str(tmp_path / "both"), "--seeds", "2", *work]) == 0
        both = json.loads(capsys.readouterr().out)
        assert both["sha256"] == alone[0]["sha256"]
        assert both["scores"]["seeds"] == [card["scores"]["seeds"][0] for card in alone]
    assert alone[0]["data"]["sample_sha256"] != alone[1]["data"]["sample_sha256"]


def test_an_adapter_trained_further_keeps_its_scaling(tmp_path: Path, tiny_model: Path) -> None:
    recipe = Recipe(steps=1, batch=2, length=96, lr=1e-3, rank=4, alpha=8)
    rows = partial(Passes, _rows(4))
    train_adapter(tiny_model, "tiny", rows, {}, recipe, tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"use_rslora": True}
    file.write_text(json.dumps(config))
    start = Start(tmp_path / "a", {"sha256": "of a"})
    train_adapter(tiny_model, "tiny", rows, {}, recipe.model_copy(update={"rank": 2}), tmp_path / "b", start=start)
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text()) == config


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_adapter_of_the_top_layers_is_one_that_peft_and_the_engine_load(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    from peft import PeftModel

    recipe = tmp_path / "top.yaml"
    recipe.write_text(RECIPE.replace("}", f", layers_from: 1, optimizer: {optimizer}}}"))
    data = _write(tmp_path / "mine.jsonl", _rows(12))
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--out", str(tmp_path / "top")]
    assert main(["train", "adapter", "mine", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["layers_from"] == 1
    tensors = load_file(tmp_path / "top" / "adapter_model.safetensors")
    assert {name.split(".layers.")[1][0] for name in tensors} == {"1", "2"}
    assert all(tensor.any() for tensor in tensors.values())  # B is zero until it is trained
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "top").state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor), name


def _arm(name: str, pair: tuple[float, float] | None, parameters: int) -> Arm:
    return Arm(name, ("q_proj",), None, {1e-3: 1.0}, 1e-3, False, pair, None, parameters, 1.0)


def test_a_difference_inside_the_noise_is_not_called_one() -> None:
    far = judged([_arm("a", (1.0, 1.02), 10), _arm("b", (2.0, 2.02), 5)], {}, 1)
    assert (far.best, far.alike, far.smallest) == ("a", ("a",), "a")
    assert far.noise == pytest.approx(0.01)  # sd of a seed 0.02 / sqrt 2, of a mean of two 0.01
    near = judged([_arm("a", (1.0, 1.02), 10), _arm("b", (1.03, 1.01), 5), _arm("c", None, 1)], {}, 1)
    assert (near.best, near.alike, near.smallest) == ("a", ("a", "b"), "b")
    assert judged([_arm("c", None, 1)], {}, 1).best is None


def test_a_shorter_run_keeps_the_shape_of_its_schedule() -> None:
    short = shortened(Recipe(steps=200, warmup=20, decay=100, lr=1.0), 40)
    assert (short.steps, short.warmup, short.decay) == (40, 4, 20)


def test_placements_are_compared_by_one_command(
    tmp_path: Path, tiny_model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _write(tmp_path / "mine.jsonl", _rows(12))
    options = ["--data", str(data), "--recipe", str(recipe), "--base", str(tiny_model), "--steps", "2"]
    options += ["--rates", "1e-3", "2e-3", "4e-3", "8e-3", "--plot", str(tmp_path / "place.png")]
    assert main(["train", "place", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in found["arms"]] == ["qv", "attention", "mlp", "all", "top"]
    for arm in found["arms"]:
        losses = {float(rate): loss for rate, loss in arm["losses"].items()}
        assert losses.keys() == {1e-3, 2e-3, 4e-3, 8e-3}
        assert losses[arm["rate"]] == min(losses.values()) == arm["pair"][0]
        assert arm["loss"] == pytest.approx(sum(arm["pair"]) / 2)
        assert arm["at_edge"] == (arm["rate"] in (1e-3, 8e-3))
        assert arm["parameters"] > 0 < arm["seconds"]
    assert found["best"] == min(found["arms"], key=lambda arm: arm["loss"])["name"]
    assert found["best"] in found["alike"]
    assert found["smallest"] in found["alike"]
    assert (tmp_path / "place.png").read_bytes().startswith(b"\x89PNG")
    assert main(["train", "place", *options[:-4], "4e-3"]) == 2
    assert "at least 4 different learning rates" in capsys.readouterr().err
