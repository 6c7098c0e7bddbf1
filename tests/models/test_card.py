"""Model cards: names and folders, and every way a folder can fail to be a model."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from trimtab.errors import BadInput, NotFound
from trimtab.home import file_sha256
from trimtab.models.card import embedded_models, find_model
from trimtab.steering.files import model_sha256


def test_a_folder_is_read(tiny_model: Path) -> None:
    card = find_model(tiny_model)
    assert (card.name, card.kind, card.path) == ("tiny", "local", tiny_model.resolve())
    assert (card.hidden_size, card.num_layers, card.context) == (64, 3, 512)
    assert card.architecture == "Qwen3ForCausalLM"
    assert card.licence is None
    assert card.sha256 == hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()


def test_embedded_models_by_name_and_by_folder() -> None:
    for name, folder in embedded_models().items():
        assert find_model(name) == find_model(folder)
        assert find_model(name).kind == "embedded"


def test_the_hash_follows_the_file(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(tiny_model, copy)
    first = find_model(copy).sha256
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    os.utime(weights, ns=(1, 1))
    assert find_model(copy).sha256 == hashlib.sha256(bytes(data)).hexdigest() != first


def test_shards_have_one_hash_that_depends_on_each(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    (copy / "b.safetensors").write_bytes(b"b")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    first = find_model(copy).sha256
    (copy / "model-00009-of-00009.safetensors").write_bytes(b"left over from another download")
    assert first == find_model(copy).sha256 == model_sha256(copy)
    (copy / "b.safetensors").write_bytes(b"longer")
    assert find_model(copy).sha256 != first
    (copy / "b.safetensors").unlink()
    for identity in (find_model, model_sha256):
        with pytest.raises(BadInput, match=r"shard 'b.safetensors' is missing"):
            identity(copy)
    (copy / "model.safetensors.index.json").unlink()
    lines = f"model-00009-of-00009.safetensors {file_sha256(copy / 'model-00009-of-00009.safetensors')}\n"
    assert model_sha256(copy) == hashlib.sha256(lines.encode()).hexdigest()  # all there are, where nothing names them


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(NotFound) as caught:
        find_model("no-such-model")
    for name in embedded_models():
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: (m / "config.json").unlink(), "there is no config.json"),
        (lambda m: (m / "config.json").write_text("{"), "not readable as JSON"),
        (lambda m: (m / "config.json").write_text("[]"), "a JSON object is expected"),
        (lambda m: (m / "config.json").write_text('{"architectures": ["BertModel"]}'), "BertModel is not a causal"),
        (lambda m: (m / "config.json").write_text('{"architectures": ["XForCausalLM"]}'), "hidden_size"),
        (lambda m: (m / "model.safetensors").unlink(), "there is no model.safetensors"),
        (lambda m: [p.unlink() for p in m.glob("tokenizer*")], "there is no tokenizer"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tiny_model: Path, tmp_path: Path, spoil: object, words: str) -> None:
    copy = tmp_path / "m"
    shutil.copytree(tiny_model, copy)
    spoil(copy)  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        find_model(copy)
    assert words in str(caught.value)
    assert str(copy) in str(caught.value)
