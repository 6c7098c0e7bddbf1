"""The profile format: identity, every kind of bad profile, atomic saving."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.home import file_sha256
from trimtab.steering.document import Document, dump_document, parse_document
from trimtab.steering.profile import load_profile, save_profile

BASE = "ab" * 32


def fields(**more: Any) -> dict[str, Any]:
    vectors = [
        {"site": "resid_post", "layer": 1, "kind": "add", "file": "vectors.safetensors", "tensor": "layer_1"},
        {"layer": 2, "file": "vectors.safetensors", "tensor": "layer_2", "tokens": "generated"},
    ]
    for vector in vectors:
        vector["strength"] = 4.0
    return {"format": 1, "name": "terse", "base": {"model": "tiny", "sha256": BASE}, "interventions": vectors, **more}


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {"vectors.safetensors": {f"layer_{n}": torch.randn(32, generator=generator) for n in (1, 2)}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_adapter: Callable[..., Path]) -> Path:
    """A whole profile: vectors, adapter, weight delta."""
    tmp_path = tmp_path_factory.mktemp("whole")
    adapter = write_adapter(tmp_path / "a", 1)
    entry = {"path": "adapter", "sha256": file_sha256(adapter / "adapter_model.safetensors")}
    delta = {"plus": "deltas/x/plus", "minus": "deltas/x/minus", "strength": 1.0}
    document = Document.model_validate(fields(adapter=entry, weight_deltas=[delta], decoding={"temperature": 0.0}))
    parts = {
        "adapter": adapter,
        "deltas/x/plus": write_adapter(tmp_path / "p", 2),
        "deltas/x/minus": write_adapter(tmp_path / "m", 3),
    }
    save_profile(tmp_path / "terse", document, tensors=tensors(), adapters=parts)
    return tmp_path / "terse"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "terse"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    data = yaml.safe_load((folder / "profile.yaml").read_text())
    edit(data)
    (folder / "profile.yaml").write_text(yaml.safe_dump(data))


def test_loads_what_was_saved(folder: Path) -> None:
    profile = load_profile(folder, hidden_size=32, num_layers=3, base_sha256=BASE)
    assert (profile.id, profile.base_model, profile.layers) == ("terse@1", "tiny", (1, 2))
    assert profile.adapter == folder.resolve() / "adapter"
    assert profile.decoding.temperature == 0.0
    assert profile.decoding.top_p is None
    assert [str(part.scope) for part in profile.interventions] == ["all", "generated"]
    assert torch.equal(profile.interventions[0].vector, tensors()["vectors.safetensors"]["layer_1"] * 4.0)
    assert profile.deltas[0].strength == 1.0


def test_identity_is_the_content_and_not_its_spelling_or_place(folder: Path, tmp_path: Path) -> None:
    sha = load_profile(folder).sha256
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    change(other, lambda d: d.update(steps=["answer", "decide", "arguments"], description=""))  # only spelling
    assert load_profile(other).sha256 == sha


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(version="2"),
        lambda d: d["interventions"][0].update(strength=4.5),
        lambda d: d["interventions"][0].update(tokens="prompt"),
        lambda d: d["interventions"][0].update(layer=0),
        lambda d: d["weight_deltas"][0].update(strength=-1.0),
        lambda d: d["decoding"].update(temperature=0.1),
        lambda d: d.update(provenance={"seed": 1}),
    ],
)
def test_every_field_counts_for_the_identity(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    sha = load_profile(folder).sha256
    change(folder, edit)
    assert load_profile(folder).sha256 != sha


def test_tensor_and_adapter_bytes_count_for_the_identity(folder: Path, edit: Callable[..., None]) -> None:
    seen = [load_profile(folder).sha256]

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] * 1.001

    for part in ("vectors.safetensors", "deltas/x/minus/adapter_model.safetensors"):
        edit(folder / part, nudge)
        seen.append(load_profile(folder).sha256)
    config = folder / "deltas/x/plus/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 16}))
    seen.append(load_profile(folder).sha256)
    assert len(set(seen)) == 4


def feature(value: float) -> dict[str, Any]:
    """An entry that sets a feature."""
    file = {"layer": 1, "file": "vectors.safetensors"}
    return {"kind": "clamp_feature", "encoder": "layer_1", "decoder": "layer_2", "value": value, **file}


# Each bad profile: how to spoil a good one, and what the one error must name.
BAD_FIELDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "unknown key": (lambda d: d.update(strenght=2), "profile.yaml: strenght", "Extra inputs"),
    "unknown inner key": (lambda d: d["interventions"][1].update(at=1), "interventions.1.at", "Extra inputs"),
    "missing field": (lambda d: d.pop("base"), "profile.yaml: base", "required"),
    "format": (lambda d: d.update(format=2), "profile.yaml: format", "1"),
    "name": (lambda d: d.update(name="Terse!"), "profile.yaml: name", "pattern"),
    "version as number": (lambda d: d.update(version=1), "profile.yaml: version", "quotes"),
    "base hash": (lambda d: d["base"].update(sha256="cd" * 32), "base.sha256", "made for base model"),
    "site": (lambda d: d["interventions"][0].update(site="mlp_out"), "interventions.0.site", "resid_post"),
    "scope": (lambda d: d["interventions"][0].update(tokens="last"), "interventions.0.tokens", "generated"),
    "steps": (lambda d: d.update(steps=["think"]), "profile.yaml: steps", "arguments"),
    "no steps": (lambda d: d.update(steps=[]), "profile.yaml: steps", "names no step"),
    "no such kind": (lambda d: d["interventions"][0].update(kind="multiply"), "interventions.0", "multiply"),
    "a field of another kind": (lambda d: d["interventions"][0].update(low=1.0), "interventions.0.low", "Extra inputs"),
    "scope without condition": (lambda d: d["interventions"][0].update(tokens={}), "interventions.0.tokens", "phase"),
    "last of the answer": (
        lambda d: d["interventions"][0].update(tokens={"phase": "generated", "last": 2}),
        "interventions.0.tokens",
        "counts prompt tokens",
    ),
    "after the prompt, in it": (
        lambda d: d["interventions"][0].update(tokens={"phase": "prompt", "after": "x"}),
        "interventions.0.tokens",
        "no token can ever be in the scope",
    ),
    "the prompt's end until a text": (
        lambda d: d["interventions"][0].update(tokens={"last": 2, "until": "x"}),
        "interventions.0.tokens",
        "no token can ever be in the scope",
    ),
    "a place beyond the first": (
        lambda d: d["interventions"][0].update(tokens={"phase": "prompt", "first": 2, "at": [7]}),
        "interventions.0.tokens",
        "no token can ever be in the scope",
    ),
    "before and after one text": (
        lambda d: d["interventions"][0].update(tokens={"after": "</think>", "until": "think"}),
        "interventions.0.tokens",
        "no token can ever be in the scope",
    ),
    "the first token of all, in an answer": (
        lambda d: d["interventions"][0].update(tokens={"phase": "generated", "at": [0]}),
        "interventions.0.tokens",
        "no token can ever be in the scope",
    ),
    "the answer in the prompt": (
        lambda d: (d["interventions"][1].update(tokens="prompt"), d.update(steps=["answer"])),
        "interventions.1.tokens",
        "no token can ever be in the scope `prompt, to answer`",
    ),
    "overflow of what a term adds": (
        lambda d: d["interventions"][0].update(kind="ablate", strength=1e39),
        "interventions.0.strength",
        "overflow at this strength",
    ),
    "overflow of a trained term": (
        lambda d: d["interventions"][0].update(kind="reft_r1", strength=-1e39),
        "interventions.0.strength",
        "overflow at this strength",
    ),
    "overflow of a feature": (
        lambda d: d["interventions"].append(feature(1e39)),
        "interventions.2.value",
        "overflows at this value",
    ),
    "a gate that comes too late": (
        lambda d: d.update(gate={"layer": 2, "file": "vectors.safetensors", "tensor": "layer_1", "threshold": 0.5}),
        "profile.yaml: gate.layer",
        "before the condition is read",
    ),
    "no such layer": (lambda d: d["interventions"][0].update(layer=3), "interventions.0.layer", "layers 0 to 2"),
    "negative layer": (lambda d: d["interventions"][0].update(layer=-1), "interventions.0.layer", "greater"),
    "strength NaN": (lambda d: d["interventions"][0].update(strength=float("nan")), "interventions.0.str", "finite"),
    "overflow": (lambda d: d["interventions"][0].update(strength=1e308), "interventions.0.strength", "overflows"),
    "no such tensor": (lambda d: d["interventions"][0].update(tensor="l9"), "interventions.0", "missing"),
    "no such file": (lambda d: d["interventions"][0].update(file="v.safetensors"), "interventions.0.file", "missing"),
    "path up": (lambda d: d["interventions"][0].update(file="../v.safetensors"), "interventions.0.file", "outside"),
    "absolute": (lambda d: d["adapter"].update(path="/etc"), "adapter.path", "outside"),
    "itself": (lambda d: d["adapter"].update(path="."), "adapter.path", "outside"),
    "NUL": (lambda d: d["adapter"].update(path="a\0b"), "adapter.path", "outside"),
    "too long a path": (lambda d: d["adapter"].update(path="a" * 5000), "adapter.path", "cannot be read"),
    "adapter hash": (lambda d: d["adapter"].update(sha256="0" * 64), "adapter.sha256", "SHA-256"),
    "no such adapter": (lambda d: d["adapter"].update(path="lora"), "adapter.path", "missing"),
    "delta": (lambda d: d["weight_deltas"][0].update(plus="x/y"), "weight_deltas.0.plus", "missing"),
    "temperature": (lambda d: d["decoding"].update(temperature=-1), "decoding.temperature", "greater"),
    "date in provenance": (lambda d: d.update(provenance={"day": __import__("datetime").date.today()}), "prov", "JSON"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_fields(folder: Path, case: str) -> None:
    spoil, where, what = BAD_FIELDS[case]
    change(folder, spoil)
    with pytest.raises(BadInput) as caught:
        load_profile(folder, hidden_size=32, num_layers=3, base_sha256=BASE)
    assert where in (caught.value.where or "")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def spoil_tensor(folder: Path, edit: Callable[..., None], value: torch.Tensor) -> None:
    edit(folder / "vectors.safetensors", lambda tensors: tensors.update(layer_1=value))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.full((32,), float("nan")), "NaN or infinity"),
        (torch.full((32,), float("inf")), "NaN or infinity"),
        (torch.zeros(31), "shape [31], not [32]"),
        (torch.zeros(1, 32), "shape [1, 32], not [32]"),
        (torch.zeros(0), "shape [0], not [32]"),
        (torch.zeros(32, dtype=torch.int64), "not a floating type"),
    ],
)
def test_bad_vectors(folder: Path, edit: Callable[..., None], value: torch.Tensor, what: str) -> None:
    spoil_tensor(folder, edit, value)
    with pytest.raises(BadInput) as caught:
        load_profile(folder, hidden_size=32)
    assert what in str(caught.value)
    assert "interventions.0" in str(caught.value)


def test_a_decoder_of_another_width_than_its_encoder(folder: Path, edit: Callable[..., None]) -> None:
    change(folder, lambda d: d.update(interventions=[feature(1.0)]))
    edit(folder / "vectors.safetensors", lambda tensors: tensors.update(layer_2=torch.ones(16)))
    with pytest.raises(BadInput, match=r"tensor 'layer_2' has shape \[16\], and the encoder \[32\]") as caught:
        load_profile(folder)
    assert "interventions.0.decoder" in (caught.value.where or "")


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [
        ("prompt", ["decide"]),
        ({"first": 2}, ["answer"]),
        ({"at": [0]}, ["decide"]),
        ({"at": [0, 1], "phase": "generated"}, ["answer"]),
        ({"last": 64, "at": [63]}, ["decide", "arguments", "answer"]),
        ({"after": "a", "until": "ab"}, ["answer"]),
        ({"first": 2, "after": "a"}, ["decide"]),
    ],
)
def test_what_can_act_is_not_refused(folder: Path, tokens: Any, steps: list[str]) -> None:
    change(
        folder, lambda d: (d["interventions"][0].update(tokens=tokens), d["interventions"].pop(), d.update(steps=steps))
    )
    assert len(load_profile(folder).interventions) == 1


def test_half_precision_vectors_are_fine(folder: Path, edit: Callable[..., None]) -> None:
    spoil_tensor(folder, edit, torch.full((32,), 0.5, dtype=torch.bfloat16))
    assert load_profile(folder).interventions[0].vector.dtype is torch.float32


def test_broken_files(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"profile\.yaml is missing"):
        load_profile(folder / "adapter")
    (folder / "vectors.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        load_profile(folder)
    (folder / "profile.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-8"):
        load_profile(folder)
    (folder / "profile.yaml").write_text("#" * (2 << 20))
    with pytest.raises(BadInput, match="too many"):
        load_profile(folder)


def test_links_out_are_refused(folder: Path, tmp_path: Path) -> None:
    target = folder / "vectors.safetensors"
    shutil.move(target, tmp_path / "v.safetensors")
    target.symlink_to(tmp_path / "v.safetensors")
    with pytest.raises(BadInput, match="points outside the profile"):
        load_profile(folder)
    target.unlink()
    target.symlink_to(target)
    with pytest.raises(BadInput, match=r"cannot be followed|missing|outside"):
        load_profile(folder)
    target.unlink()
    shutil.copy(tmp_path / "v.safetensors", target)
    weights = folder / "deltas/x/plus/adapter_model.safetensors"
    shutil.move(weights, tmp_path / "w.safetensors")
    weights.symlink_to(tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"weight_deltas\.0\.plus.*outside"):
        load_profile(folder)


@pytest.mark.parametrize("name", ["vectors.pt", "adapter/adapter_model.bin", "deltas/x/optimizer.pkl"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match="never loaded") as caught:
        load_profile(folder)
    assert name in str(caught.value)


def test_adapter_without_safetensors(folder: Path) -> None:
    (folder / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors is missing"):
        load_profile(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("alpha_pattern", {"q_proj": 2}),
        ("peft_type", "IA3"),
        ("fan_in_fan_out", True),
        ("r", 0),
        ("r", 8),
        ("lora_alpha", None),
        ("lora_alpha", 10**400),
        ("lora_bias", True),
    ],
)
def test_adapter_features_that_are_not_supported(folder: Path, field: str, value: object) -> None:
    config = folder / "adapter/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), field: value}))
    with pytest.raises(BadInput, match=r"adapter_config\.json") as caught:
        load_profile(folder)
    assert len(caught.value.what) < 200


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda t: t.update(extra=torch.zeros(2)), "not a LoRA A or B"),
        (lambda t: t.pop(min(t)), "no other half"),
        (lambda t: t.update({min(t): torch.zeros(3, t[min(t)].shape[1])}), "ranks differ"),
        (lambda t: t.update({min(t): torch.full_like(t[min(t)], float("nan"))}), "NaN"),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_adapter_tensors(folder: Path, edit: Callable[..., None], spoil: Callable[..., Any], what: str) -> None:
    edit(folder / "deltas/x/plus/adapter_model.safetensors", spoil)
    with pytest.raises(BadInput, match=what):
        load_profile(folder)


def test_adapters_of_another_model(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"has width 32, the base model 64|shape"):
        load_profile(folder, hidden_size=64)
    with pytest.raises(BadInput, match=r"the base model has 2 layers|layers 0 to 1"):
        load_profile(folder, num_layers=2)


# -- the parser, against anything at all -------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
documents = st.fixed_dictionaries(
    {"format": st.just(1), "name": names, "base": st.just({"model": "tiny", "sha256": BASE})},
    optional={
        "version": names,
        "description": texts,
        "interventions": st.lists(
            st.fixed_dictionaries(
                {
                    "layer": st.integers(0, 99),
                    "file": names,
                    "tensor": names,
                    "strength": finite,
                    "tokens": st.sampled_from(["all", "prompt", "generated"]),
                }
            ),
            max_size=3,
        ),
        "weight_deltas": st.lists(
            st.fixed_dictionaries({"plus": names, "minus": names, "strength": finite}), max_size=2
        ),
        "decoding": st.fixed_dictionaries(
            {}, optional={"temperature": st.floats(0, 2), "max_tokens": st.integers(1, 99)}
        ),
        "provenance": st.dictionaries(names, json_values, max_size=3),
    },
)


@settings(max_examples=60, deadline=None)
@given(documents)
def test_round_trip(data: dict[str, Any]) -> None:
    document = Document.model_validate(data)
    again = parse_document(dump_document(document), "profile.yaml")
    # nulls inside provenance are dropped by the dump; everything else survives
    assert again.model_dump(exclude={"provenance"}) == document.model_dump(exclude={"provenance"})
    assert parse_document(dump_document(again), "profile.yaml") == again


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_text_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    text = dump_document(Document.model_validate(fields(provenance={"seed": 1})))
    odd = ["!!int ''", "!!timestamp ''", "&a [*a]", "{", "!!python/object:os.system", "2026-99-99", "1" * 5000, ".nan"]
    odd += ["\0", "\ud800", "- - -", "? ", "null", "!!binary x", "[" * 2000, "'", "%", "\t", "0x_", "!!set {a}", "a: a"]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.sampled_from(odd) | st.text(max_size=4)) + text[end:]
    refused = None
    try:
        parse_document(text, "profile.yaml")
    except BadInput as error:  # anything else fails the test
        refused = error
    assert refused is None or "profile.yaml" in (refused.where or "")


def test_repeated_keys_and_aliases_are_refused() -> None:
    text = dump_document(Document.model_validate(fields()))
    with pytest.raises(BadInput, match="twice"):
        parse_document(text + "name: other\n", "profile.yaml")
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(BadInput, match="aliases"):
        parse_document("a0: &a0 [x]\n" + bomb, "profile.yaml")


# -- saving ------------------------------------------------------------------------------------------------------


def test_save_refuses_a_profile_that_would_not_load(tmp_path: Path) -> None:
    document = Document.model_validate(fields())
    with pytest.raises(BadInput) as caught:
        save_profile(tmp_path / "p", document, tensors={"vectors.safetensors": {"layer_1": torch.zeros(32)}})
    assert str(tmp_path / "p") in str(caught.value) or "interventions.1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_save_does_not_overwrite_unless_told(tmp_path: Path) -> None:
    document = Document.model_validate(fields())
    first = save_profile(tmp_path / "p", document, tensors=tensors())
    with pytest.raises(BadInput, match="already exists"):
        save_profile(tmp_path / "p", document, tensors=tensors())
    second = save_profile(
        tmp_path / "p", document.model_copy(update={"description": "new"}), tensors=tensors(), replace=True
    )
    assert second.sha256 != first.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="is not a profile"):
        save_profile(tmp_path / "mine", document, tensors=tensors(), replace=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def cannot_swap(*_: Path) -> None:
    """As `swap_folders` on a disk that cannot do it."""
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("one_step", [False, True])
def test_a_crash_leaves_the_old_profile_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, taken: bool, one_step: bool
) -> None:
    """The disk fails at the n-th sync or rename: what was there is still there, and nothing lies around."""
    document = Document.model_validate(fields())
    before = save_profile(tmp_path / "p", document, tensors=tensors()).sha256 if taken else None
    done = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal done
            done += 1
            if done == call + 1:
                raise OSError(28, "No space left on device")
            return real(*args)

        return run

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    if not one_step:  # as on a disk that cannot swap two folders
        monkeypatch.setattr("trimtab.steering.profile.swap_folders", cannot_swap)
    changed = document.model_copy(update={"description": "new"})
    try:
        after = save_profile(tmp_path / "p", changed, tensors=tensors(), replace=True).sha256
    except OSError:
        after = before
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["p"] if after is not None else [])
    if after is not None:
        assert load_profile(tmp_path / "p").sha256 == after


def test_a_replaced_profile_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = Document.model_validate(fields())
    save_profile(tmp_path / "p", document, tensors=tensors())

    def killed(*_: Any) -> None:
        raise AssertionError("two renames: killed between them, there would be no profile")

    monkeypatch.setattr(os, "rename", killed)
    changed = document.model_copy(update={"description": "new"})
    assert save_profile(tmp_path / "p", changed, tensors=tensors(), replace=True).document.description == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
