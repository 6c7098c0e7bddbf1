"""Model cards: which model is meant, where it lies, and which bytes it is made of.

A model is named by an embedded name (`trimtab-nano`, `trimtab-large`) or by the path of a folder that holds a Hugging
Face causal language model with safetensors weights. Code that comes with a model is never run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import BadInput, NotFound
from ..home import expanded, file_sha256, indexed_shards, listed_sha256

_hashes: dict[tuple[str, int, int], str] = {}
"""SHA-256 by (path, modification time in ns, size): a model is hashed once per process, and again when it changes."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a base model.

    Attributes:
        name: the id under which it is served.
        path: the folder with config, weights, tokenizer and chat template.
        sha256: of `model.safetensors`; of the sorted lines `name sha256` where the weights come in shards.
        architecture: such as `Qwen3ForCausalLM`, as `config.json` says.
        context: longest sequence in tokens, prompt and answer together; None where the config does not say.
        licence: SPDX id, or None where unknown.
        kind: `embedded` in this package, or `local`, a folder of the user's.
    """

    name: str
    path: Path
    sha256: str
    architecture: str
    hidden_size: int
    num_layers: int
    context: int | None
    licence: str | None
    kind: Literal["embedded", "local"]


def embedded_models() -> dict[str, Path]:
    """The models in this package, by name."""
    root = Path(__file__).parent / "embedded" / "weights"
    if not root.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}


def find_model(name_or_path: str | Path) -> ModelCard:
    """The card of a model.

    Args:
        name_or_path: an embedded name, or the path of a folder.

    Raises:
        NotFound: no such name and no such folder.
        BadInput: the folder does not hold a causal language model with safetensors weights.
    """
    embedded = embedded_models()
    text = str(name_or_path)
    if text in embedded:
        return _read(embedded[text], text, "embedded")
    path = expanded(text, "model")
    if path.is_dir():
        path = path.resolve()
        known = path in embedded.values()
        return _read(path, path.name, "embedded" if known else "local")
    known_names = ", ".join(embedded) or "none in this installation"
    raise NotFound(
        f"unknown model {text!r}",
        fix=f"Known models: {known_names}; or give the folder of a Hugging Face causal language model",
    )


def _read(path: Path, name: str, kind: Literal["embedded", "local"]) -> ModelCard:
    config = _json(path / "config.json")
    architectures = config.get("architectures") or []
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if not architecture.endswith("ForCausalLM"):
        raise BadInput(
            f"{architecture or 'no architecture'} is not a causal language model",
            where=f"{path / 'config.json'}: architectures",
            fix="Give the folder of a model whose architecture ends in ForCausalLM",
        )
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
        raise BadInput("there is no tokenizer", where=str(path), fix="Save the tokenizer beside the weights")
    description = _json(path / "card.json") if (path / "card.json").is_file() else {}
    licence = description.get("licence") or description.get("license")
    context = config.get("max_position_embeddings")
    return ModelCard(
        name=name,
        path=path,
        sha256=weights_sha256(path),
        architecture=architecture,
        hidden_size=_positive(config, "hidden_size", path),
        num_layers=_positive(config, "num_hidden_layers", path),
        context=context if isinstance(context, int) else None,
        licence=str(licence) if licence else None,
        kind=kind,
    )


def weights_sha256(path: Path) -> str:
    """The SHA-256 that stands for a model's weights (see `ModelCard.sha256`).

    Raises:
        BadInput: there are no safetensors weights, or shards named in the index are missing.
    """
    single = path / "model.safetensors"
    if single.is_file():
        return _cached_sha256(single)
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        raise BadInput(
            "there is no model.safetensors",
            where=str(path),
            fix="Only safetensors weights are loaded; convert others with `save_pretrained`",
        )
    weight_map = _json(index).get("weight_map")
    shards = indexed_shards(index, weight_map if isinstance(weight_map, dict) else {})
    if not shards:
        raise BadInput("the index names no shards", where=f"{index}: weight_map")
    return listed_sha256(shards, _cached_sha256)


def _cached_sha256(path: Path) -> str:
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size)
    if key not in _hashes:
        _hashes[key] = file_sha256(path)
    return _hashes[key]


def _positive(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise BadInput(f"{value!r} is not a positive whole number", where=f"{path / 'config.json'}: {key}")
    return value


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"there is no {path.name}", where=str(path.parent), fix="Give the folder of a Hugging Face model"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"not readable as JSON ({error})", where=str(path)) from None
    if not isinstance(data, dict):
        raise BadInput("a JSON object is expected", where=str(path))
    return data
