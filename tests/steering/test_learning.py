"""Learning from contrast pairs, through the functions and through the commands."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel
from trimtab.errors import BadInput, EngineRefused, EngineUnavailable, NotFound, TrimtabError
from trimtab.steering.commands import add_commands
from trimtab.steering.document import Document
from trimtab.steering.hooks import adapted, reading, steered
from trimtab.steering.intervention import Intervention
from trimtab.steering.methods.difference_of_means import check, learn, log_margins
from trimtab.steering.pairs import Encoded, Pair, encode, read_pairs, split
from trimtab.steering.profile import load_profile, save_profile
from trimtab.steering.scope import Scope
from trimtab.steering.store import ProfileStore

LAYERS = [0, 2]
CALL = {"id": "1", "type": "function", "function": {"name": "calculate", "arguments": '{"expression": "2+2"}'}}


def example(number: int) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"What is {number} + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": f'{{"result": {number + 2}}}'},
    ]
    tools = [{"type": "function", "function": {"name": "calculate"}}]
    return {"messages": messages, "tools": tools, "positive": f"{number + 2}!", "negative": f"It is {number + 2}."}


def pairs_file(tmp_path: Path, count: int = 8) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(example(n)) + "\n" for n in range(count)))
    return path


@pytest.fixture
def encoded(base: Path) -> list[Encoded]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return [encode(Pair.model_validate(example(n)), tokenizer) for n in range(6)]


@pytest.fixture
def plain(new_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return new_model()


def test_equals_the_mean_difference_by_hand(plain: PreTrainedModel, encoded: list[Encoded]) -> None:
    for read, pick in {"mean": lambda h: h.mean(0), "last": lambda h: h[-1], "first": lambda h: h[0]}.items():
        found = learn(plain, encoded, LAYERS, read=read)
        for layer in LAYERS:
            sides = []
            for part in ("positive", "negative"):
                rows = []
                for pair in encoded:
                    ids = torch.tensor([pair.prompt + getattr(pair, part)])
                    with torch.inference_mode(), reading(plain, [layer]) as seen:
                        plain(input_ids=ids)
                    rows.append(pick(seen[layer][0, len(pair.prompt) :].double()))
                sides.append(torch.stack(rows).mean(0))
            difference = sides[0] - sides[1]  # mean of differences == difference of means
            torch.testing.assert_close(found.vectors[layer].double(), difference, atol=1e-5, rtol=1e-5)
            assert found.norms[layer] == pytest.approx(float(difference.norm()), rel=1e-4)


def test_swapping_negates_and_duplicating_changes_nothing(plain: PreTrainedModel, encoded: list[Encoded]) -> None:
    once = learn(plain, encoded, LAYERS)
    swapped = learn(plain, [Encoded(p.prompt, p.negative, p.positive, p.end) for p in encoded], LAYERS)
    doubled = learn(plain, encoded * 2, LAYERS)
    for layer in LAYERS:
        assert torch.equal(swapped.vectors[layer], -once.vectors[layer])
        torch.testing.assert_close(doubled.vectors[layer], once.vectors[layer], atol=1e-6, rtol=1e-6)
        assert swapped.split_half[layer] == pytest.approx(once.split_half[layer])
        assert once.relative[layer] is not None
    same = learn(plain, [Encoded(p.prompt, p.positive, p.positive, p.end) for p in encoded], LAYERS)
    assert all(not vector.any() for vector in same.vectors.values())
    assert set(same.split_half.values()) == {None}  # no direction, no cosine
    assert learn(plain, encoded[:1], LAYERS).split_half[0] is None


def test_one_pair_patches_the_read_position(plain: PreTrainedModel) -> None:
    """CAA, check i: one pair, read at one token, added there, makes a(p, c-) into a(p, c+)."""
    pair = Encoded([5, 9, 33], [70], [71], None)
    for layer in range(3):
        found = learn(plain, [pair], [layer], read="last")
        with torch.inference_mode():
            wanted = plain(input_ids=torch.tensor([[5, 9, 33, 70]])).logits[0, -1]
            with steered(plain, [Intervention(layer, found.vectors[layer], "generated")], 3):
                patched = plain(input_ids=torch.tensor([[5, 9, 33, 71]])).logits[0, -1]
        torch.testing.assert_close(patched, wanted, atol=1e-4, rtol=1e-4)


def test_margin_is_the_difference_of_log_probabilities(plain: PreTrainedModel, encoded: list[Encoded]) -> None:
    pair = encoded[0]
    total = {}
    for part in ("positive", "negative"):
        ids = [*pair.prompt, *getattr(pair, part), pair.end]
        value = 0.0
        for position in range(len(pair.prompt), len(ids)):
            with torch.inference_mode():
                logits = plain(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
            value += float(torch.log_softmax(logits, -1)[ids[position]])
        total[part] = value
    assert log_margins(plain, [pair], [])[0] == pytest.approx(total["positive"] - total["negative"], abs=1e-3)


def test_check_reports_both_signs_and_controls(plain: PreTrainedModel, encoded: list[Encoded]) -> None:
    vectors = learn(plain, encoded, LAYERS).vectors
    found = check(plain, encoded, vectors, -0.5, "all", controls=2, seed=1)
    assert found is not None
    assert [point["strength"] for point in found["points"]] == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    zero = log_margins(plain, encoded, [])
    assert found["points"][3]["margin"] == pytest.approx(sum(zero) / len(zero))
    assert len(found["random_shift"]) == 2
    assert found == check(plain, encoded, vectors, 0.5, "all", controls=2, seed=1)
    assert check(plain, [], vectors, 1.0, "all") is None
    json.dumps(found, allow_nan=False)


def test_split_keeps_prompts_together(tmp_path: Path) -> None:
    pairs, digest = read_pairs(pairs_file(tmp_path))
    assert len(digest) == 64
    doubled = pairs * 2
    learn_from, check_with = split(doubled, 0.25, 7)
    assert (len(learn_from), len(check_with)) == (12, 4)
    assert not {p.prompt for p in learn_from} & {p.prompt for p in check_with}
    assert split(doubled, 0.25, 7) == (learn_from, check_with)
    assert split(doubled, 0.25, 8)[1] != check_with
    assert split(pairs[:1], 0.9, 0) == (pairs[:1], [])
    with pytest.raises(BadInput, match="share"):
        split(pairs, 1.0, 0)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ("[]", "line 2"),
        ('{"messages": [], "positive": "a", "negative": "b"}', "messages"),
        ('{"messages": [{"role": "user"}], "positive": "a"}', "negative"),
        ('{"messages": [{"role": "user"}], "positive": "a", "negative": "a"}', "the same"),
        ('{"messages": [{"role": "user"}], "positive": "a", "negative": "b", "x": 1}', "x:"),
        ('{"messages": [{"role": "user", "n": NaN}], "positive": "a", "negative": "b"}', "not JSON"),
        ("\ufffe\udcff", "not JSON"),
        (
            '{"messages": [{"role": "user", "content": "\\udc80"}], "positive": "a", "negative": "b"}',
            "half a surrogate",
        ),
    ],
)
def test_bad_pairs_name_the_line(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes((json.dumps(example(1)) + "\n" + line).encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match="line 2") as caught:
        read_pairs(path)
    assert what in str(caught.value)
    with pytest.raises(NotFound):
        read_pairs(tmp_path / "none.jsonl")


def test_a_conversation_the_template_refuses(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    broken = {**CALL, "function": {"name": "x", "arguments": "{"}}
    message = {"role": "assistant", "content": None, "tool_calls": [broken]}
    with pytest.raises(BadInput, match="chat template refuses"):
        encode(Pair.model_validate({"messages": [message], "positive": "a", "negative": "b"}), tokenizer)


def test_what_a_template_refuses_is_named_by_its_line(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    broken = {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}], "positive": "a", "negative": "b"}
    path.write_text("\n".join([json.dumps(example(1)), "", json.dumps(broken)]))
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(BadInput, match="chat template refuses") as caught:
        _ = [encode(pair, tokenizer) for pair in read_pairs(path)[0]]
    assert caught.value.where == f"{path}: line 3: messages"


# -- the commands ------------------------------------------------------------------------------------------------


def command(*words: object, store: ProfileStore | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.set_defaults(default_store=lambda: store)
    add_commands(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return int(args.handler(args))


def test_learn_means_writes_a_profile(
    tmp_path: Path, base: Path, make_adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, adapter = ProfileStore(tmp_path / "store"), make_adapter("a", 1)
    words = ["steer", "learn", "means", "--base", base, "--pairs", pairs_file(tmp_path), "--layers", "0,2"]
    words += ["--strength", 2, "--adapter", adapter, "--tokens", "generated", "--json"]
    drawn, again = tmp_path / "check.png", tmp_path / "again.png"
    assert command(*words, "--name", "terse", "--plot", drawn, store=store) == 0
    out = json.loads(capsys.readouterr().out)
    profile = store.get("terse")
    assert command("profiles", "show", "terse", "--plot", again, store=store) == 0
    capsys.readouterr()
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert drawn.read_bytes() == again.read_bytes()
    assert out["sha256"] == profile.sha256
    assert set(out["layers"]) == {"0", "2"}
    assert profile.document.provenance is not None
    assert profile.document.provenance["seed"] == 0
    assert profile.document.calibration is not None
    assert profile.document.calibration["check"]["pairs"] == 2  # type: ignore[index,call-overload]
    assert profile.layers == (0, 2)
    assert profile.adapter is not None
    assert command(*words, "--name", "wordy", "--negate", "--out", tmp_path / "wordy", store=store) == 0
    opposite = load_profile(tmp_path / "wordy")
    for a, b in zip(profile.interventions, opposite.interventions, strict=True):
        assert a.vector is not None
        assert b.vector is not None
        assert torch.equal(a.vector, -b.vector)
        assert a.scope == Scope("generated")
    with pytest.raises(BadInput, match="already exists"):
        command(*words, "--name", "terse", store=store)


def test_a_base_whose_weights_are_cut_short(tmp_path: Path, base: Path) -> None:
    cut = Path(shutil.copytree(base, tmp_path / "cut"))
    os.truncate(cut / "model.safetensors", 2000)
    words = ["steer", "learn", "means", "--base", cut, "--pairs", pairs_file(tmp_path), "--layers", 1]
    with pytest.raises(BadInput, match="the base model does not load") as caught:
        command(*words, "--strength", 1, "--name", "x", store=ProfileStore(tmp_path / "store"))
    assert caught.value.where == str(cut)


def test_a_check_that_was_not_made_is_said(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steer", "learn", "means", "--base", base, "--layers", 1, "--strength", 1, "--name", "x", "--replace"]
    for prompts in (2, 3):  # a quarter of 2 prompts is none of them
        pairs = pairs_file(tmp_path, prompts)
        assert command(*words, "--pairs", pairs, store=ProfileStore(tmp_path / "store")) == 0
        assert ("nothing was checked" in capsys.readouterr().out) == (prompts == 2)


def test_completions_that_do_not_differ_where_they_are_read(tmp_path: Path, base: Path) -> None:
    store = ProfileStore(tmp_path / "store")
    made = [{**example(n), "positive": f"Well, {n}!", "negative": f"Well, that is {n}."} for n in range(4)]
    both = made + [{**one, "positive": one["negative"], "negative": one["positive"]} for one in made]
    words = ["steer", "learn", "means", "--base", base, "--name", "x", "--layers", "0,2", "--strength", 1]
    for read, examples, fix in (("first", made, "read the mean or the last"), ("mean", both, "differ in the same way")):
        path = tmp_path / f"{read}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in examples))
        with pytest.raises(BadInput, match=rf"{read}.jsonl: the completions do not differ at layer 0.*{fix}"):
            command(*words, "--pairs", path, "--read", read, "--held-out", 0, store=store)
    assert store.names() == []


def test_numbers_that_nothing_can_be_learned_with_are_found_before_any_work(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, plot = ProfileStore(tmp_path / "store"), tmp_path / "x.png"
    words = ["steer", "learn", "means", "--base", base, "--name", "x", "--layers", 1]
    many, one = pairs_file(tmp_path), tmp_path / "one.jsonl"
    one.write_text(json.dumps(example(1)))
    cases: list[tuple[list[object], str]] = [
        (["--pairs", many, "--strength", "nan"], "nan is no strength"),
        (["--pairs", many, "--strength", "inf"], "inf is no strength"),
        (["--pairs", many, "--strength", 1, "--seed", 10**23], "too large a seed"),
        (["--pairs", many, "--strength", 1, "--held-out", 0, "--plot", plot], "leaves no pair to check with"),
        (["--pairs", one, "--strength", 1, "--plot", plot], "leaves no pair to check with"),
        (["--pairs", many, "--strength", 1, "--tokens", "prompt", "--steps", "answer"], "no token can ever be in"),
        (["--pairs", many, "--strength", 1, "--out", "."], "has no name of its own"),
    ]
    for more, what in cases:
        with pytest.raises(BadInput, match=what):
            command(*words, *more, store=store)
    for layers in ("0-9999999", f"0-{10**30}", "0-600,0-600"):
        with pytest.raises(SystemExit):
            command(*words, "--pairs", many, "--strength", 1, "--layers", layers, store=store)
    assert store.names() == []
    assert command(*words, "--pairs", many, "--strength", 0, "--plot", plot, store=store) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        ({"check": 5}, "check"),
        ({"check": {"points": [], "pairs": 2}}, "check.points"),
        ({"check": {"points": [{"strength": "x"}], "pairs": 2}}, "check.points.0.strength"),
        ({"layers": 3}, "layers"),
        (None, "no check"),
    ],
)
def test_a_calibration_that_cannot_be_drawn_is_one_clear_error(tmp_path: Path, calibration: Any, says: str) -> None:
    data = {"format": 1, "name": "x", "base": {"model": "m", "sha256": "a" * 64}, "calibration": calibration}
    save_profile(tmp_path / "store" / "x", Document.model_validate(data))
    with pytest.raises(BadInput, match=says):
        command("profiles", "show", "x", "--plot", tmp_path / "x.png", store=ProfileStore(tmp_path / "store"))


def test_a_profile_can_be_held_to_the_answer(
    tmp_path: Path, base: Path, plain: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steer", "learn", "means", "--base", base, "--pairs", pairs_file(tmp_path), "--layers", 1, "--strength", 2]
    assert command(*words, "--name", "late", "--steps", "answer", "--out", tmp_path / "late", "--json") == 0
    assert command(*words, "--name", "whole", "--out", tmp_path / "whole", "--json") == 0
    late, whole = load_profile(tmp_path / "late"), load_profile(tmp_path / "whole")
    assert late.document.steps == ["answer"]
    assert [part.scope for part in late.interventions] == [Scope(steps=frozenset({"answer"}))]
    assert torch.equal(late.interventions[0].vector, whole.interventions[0].vector)
    assert late.document.calibration != whole.document.calibration  # checked as it is served
    assert command("profiles", "show", "late", store=ProfileStore(tmp_path)) == 0
    assert "to answer" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(*words, "--name", "x", "--steps", "sleep")


def test_the_adapter_is_applied_while_reading(
    tmp_path: Path, base: Path, make_adapter: Callable[..., Path], encoded: list[Encoded], plain: PreTrainedModel
) -> None:
    adapter = make_adapter("a", 1)
    words = ["steer", "learn", "means", "--base", base, "--pairs", pairs_file(tmp_path, 6), "--layers", 1]
    words += ["--strength", 1, "--held-out", 0, "--name", "x"]
    command(*words, "--out", tmp_path / "with", "--adapter", adapter)
    command(*words, "--out", tmp_path / "without")
    with adapted(plain, adapter) as wrapped:
        expected = learn(wrapped, encoded, [1]).vectors[1]
    read_with, read_without = (load_profile(tmp_path / n).interventions[0].vector for n in ("with", "without"))
    torch.testing.assert_close(read_with, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read_without, learn(plain, encoded, [1]).vectors[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(read_with, read_without)


def test_learn_weights_make_list_and_show(
    tmp_path: Path, base: Path, make_adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store = ProfileStore(tmp_path / "store")
    adapter, plus, minus = (make_adapter(name, seed) for seed, name in enumerate("apm", 1))
    words = ["--base", base, "--adapter", adapter]
    assert command("profiles", "make", *words, "--name", "calc", "--temperature", 0, store=store) == 0
    words += ["--plus", plus, "--minus", minus, "--strength", 1.5]
    assert command("steer", "learn", "weights", *words, "--name", "casual", store=store) == 0
    assert "casual@1" in capsys.readouterr().out
    assert store.get("casual").deltas[0].strength == 1.5
    assert store.get("calc").decoding.temperature == 0
    assert command("profiles", "list", "--json", store=store) == 0
    listed = json.loads(capsys.readouterr().out)["profiles"]
    assert [row["name"] for row in listed] == ["calc", "casual"]
    assert command("profiles", "list", store=store) == 0
    assert command("profiles", "show", "casual", store=store) == 0
    assert store.get("casual").sha256 in capsys.readouterr().out
    assert command("profiles", "show", "casual@1", "--json", store=store) == 0
    assert json.loads(capsys.readouterr().out)["document"]["provenance"]["method"] == "weight_arithmetic"
    with pytest.raises(NotFound, match="Known profiles: calc, casual"):
        command("profiles", "show", "nobody", store=store)


def test_bad_arguments_are_one_clear_error(
    tmp_path: Path, base: Path, make_adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, pairs = ProfileStore(tmp_path / "store"), pairs_file(tmp_path)
    words = ["steer", "learn", "means", "--pairs", pairs, "--strength", 1]
    cases: list[tuple[list[object], type[TrimtabError], str]] = [
        (["--base", "nowhere", "--layers", 1, "--name", "x"], BadInput, "is not a folder"),
        (["--base", "~nosuch/x", "--layers", 1, "--name", "x"], BadInput, "below no user's folder"),
        (["--base", base, "--layers", "0-3", "--name", "x"], BadInput, "not all among 0 to 2"),
        (["--base", base, "--layers", 1, "--name", "X!"], BadInput, "profile: name"),
        (["--base", base, "--layers", 1, "--name", "x", "--adapter", tmp_path], BadInput, "safetensors is missing"),
        (["--base", tmp_path, "--layers", 1, "--name", "x"], NotFound, r"no model\.safetensors"),
        (["--base", base, "--layers", 1, "--name", "x", "--plot", "x.pdf"], BadInput, "drawn as PNG"),
    ]
    for more, kind, what in cases:
        with pytest.raises(kind, match=what):
            command(*words, *more, store=store)
    with pytest.raises(SystemExit):
        command(*words, "--base", base, "--layers", "two", "--name", "x", store=store)
    assert "'two' is not a list of layers" in capsys.readouterr().err
    assert store.names() == []
    other = make_adapter("wide", 1, target_modules=["gate_proj"])
    config = json.loads((base / "config.json").read_text())
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    (small / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match="2 layers"):
        command("profiles", "make", "--base", small, "--adapter", other, "--name", "x", store=store)
    assert store.names() == []


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A server that knows one profile, `terse`, and notes what it was asked."""
    asked: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if body["name"] == "locked" and self.headers["x-trimtab-admin-key"] != "hush":
                self.send_response(403)
                self.end_headers()
                return
            known = body["name"] in ("terse", "locked")
            answer = {"name": "terse"} if known else {"error": {"message": "unknown profile"}}
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_load_and_unload_talk_to_the_server(
    server: tuple[str, list[tuple[str, Any]]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    with pytest.raises(EngineRefused, match="HTTP 403"):
        command("profiles", "load", "locked", "--url", url)
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "hush")
    assert command("profiles", "load", "locked", "--url", url, "--json") == 0
    for key in ("hüsh", "hush\n"):
        monkeypatch.setenv("TRIMTAB_ADMIN_KEY", key)
        with pytest.raises(BadInput, match="TRIMTAB_ADMIN_KEY"):
            command("profiles", "load", "locked", "--url", url)
    monkeypatch.delenv("TRIMTAB_ADMIN_KEY")
    asked.clear()
    capsys.readouterr()
    assert command("profiles", "load", "terse", "--url", url) == 0
    assert command("profiles", "unload", "terse", "--url", f"{url}/v1", "--json") == 0
    assert asked == [
        ("/v1/trimtab/profiles/load", {"name": "terse"}),
        ("/v1/trimtab/profiles/unload", {"name": "terse"}),
    ]
    assert capsys.readouterr().out == 'terse: loaded\n{"name": "terse"}\n'
    with pytest.raises(EngineRefused, match="HTTP 404: unknown profile"):
        command("profiles", "load", "nobody", "--url", url)
    with pytest.raises(EngineUnavailable, match="trimtab serve"):
        command("profiles", "load", "terse", "--url", "http://127.0.0.1:1")
