"""A store of ten thousand profiles: what is asked for is read, and nothing else. Work is counted, not time."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from trimtab.cli import main
from trimtab.errors import BadInput, NotFound
from trimtab.models.card import find_model
from trimtab.models.engines.vllm import SPARE_TERMS, Needs, needs
from trimtab.steering.document import Document
from trimtab.steering.profile import Profile, save_profile
from trimtab.steering.promotion import FOLDER
from trimtab.steering.store import ProfileStore
from trimtab.steering.vllm.launch import DEFAULT_ROWS, FULL_AFTER, LIVE_VARIABLE, ROWS_VARIABLE

NAMES, VERSIONS = 9_000, 1_000
Opened = Callable[[Path], list[str]]


ADD = {"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 2.0, "tokens": "all"}


def _source(folder: Path, *entries: dict[str, Any]) -> Profile:
    data: dict[str, Any] = {"format": 1, "name": "source", "base": {"model": "m", "sha256": "a" * 64}}
    document = Document.model_validate({**data, "interventions": list(entries) or [ADD]})
    return save_profile(folder, document, tensors={"v.safetensors": {"v": torch.ones(8)}})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, fill_store: Any) -> Path:
    folder = tmp_path_factory.mktemp("large")
    source = _source(folder / "source").directory
    fill_store(folder / "profiles", source, ((f"p{n:04d}", "1") for n in range(NAMES)))
    fill_store(folder / "profiles", source, (("many", str(n)) for n in range(1, VERSIONS + 1)))
    return folder


@pytest.fixture
def store(home: Path) -> ProfileStore:
    return ProfileStore(home / "profiles", home / "nothing")


def test_listing_names_reads_no_file(store: ProfileStore, opened_below: Opened) -> None:
    assert len(store.names()) == NAMES + 1
    ids = store.ids()
    assert (len(ids), ids[-1]) == (NAMES + VERSIONS, f"p{NAMES - 1:04d}@1")
    assert len(store.ids("p00*")) == 100
    assert store.ids("many@99*") == ["many@99", *(f"many@{n}" for n in range(990, 1000))]
    with pytest.raises(NotFound) as raised:
        store.get("nobody")
    assert len(str(raised.value)) < 1000, "not ten thousand names"
    assert f"and {NAMES - 19:,} more" in str(raised.value)
    with pytest.raises(NotFound, match=r"versions of many: 1, 2, 3.* more"):
        store.get("many@0")
    assert opened_below(store.roots[0]) == []


def test_finding_one_reads_that_one(store: ProfileStore, opened_below: Opened) -> None:
    for spec, found in (("p4321@1", "p4321@1"), ("p4321", "p4321@1"), ("many@77", "many@77"), ("many", "many@1000")):
        assert store.get(spec).id == found
        assert opened_below(store.roots[0]) == [found]
    sha256 = store.get("many@998").sha256
    opened_below(store.roots[0])
    assert store.get(f"many@sha256:{sha256}").id == "many@998"
    assert opened_below(store.roots[0]) == ["many@1000", "many@998", "many@999"], "the newest first, until it is found"


def test_promoting_and_saving_read_that_one(store: ProfileStore, opened_below: Opened, tmp_path: Path) -> None:
    root = store.roots[0]
    for version in ("7", "8"):
        assert store.promote(f"many@{version}").version == version
        assert opened_below(root) == [FOLDER, f"many@{version}"]
    assert store.get("many").version == "8"
    assert opened_below(root) == [FOLDER, "many@8"]
    assert store.rollback("many").version == "7"
    assert opened_below(root) == [FOLDER, "many@7"]
    made = save_profile(
        tmp_path / "made",
        store.get("many@9").document.model_copy(update={"version": "9b"}),
        tensors={"v.safetensors": {"v": torch.ones(8)}},
    )
    opened_below(root)
    saved = store.save(made.directory)
    assert {name.removeprefix(".").partition(".")[0] for name in opened_below(root)} == {"many@9b"}
    assert store.get("many").version == "7"
    store.remove(saved.id)
    assert len(store.ids()) == NAMES + VERSIONS


def test_a_server_makes_room_for_what_it_makes_live(
    tiny_model: Path, fill_store: Any, opened_below: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = replace(find_model(tiny_model), sha256="a" * 64)
    ablated = {"kind": "ablate", "layer": 1, "file": "v.safetensors", "tensor": "v"}
    source = _source(tmp_path / "source", ablated, {**ablated, "layer": 0}).directory
    fill_store(tmp_path / "store", source, ((f"p{n:04d}", "1") for n in range(300)))
    fill_store(tmp_path / "store", _source(tmp_path / "added").directory, [("a", "1")])
    store = ProfileStore(tmp_path / "store")
    opened_below(store.roots[0])
    monkeypatch.setenv(ROWS_VARIABLE, "5")
    assert needs(card, store) == Needs(terms=3 + SPARE_TERMS)
    assert opened_below(store.roots[0]) == ["a@1", *(f"p{n:04d}@1" for n in range(3 + FULL_AFTER))]
    assert needs(replace(card, sha256="b" * 64), store) == Needs()
    opened_below(store.roots[0])
    monkeypatch.setenv(LIVE_VARIABLE, "p0299, nobody")
    assert needs(card, store) == Needs(terms=1 + SPARE_TERMS)
    assert opened_below(store.roots[0]) == ["p0299@1"], "what is asked for, wherever it stands"
    monkeypatch.delenv(LIVE_VARIABLE)
    monkeypatch.setenv(ROWS_VARIABLE, "many")
    with pytest.raises(BadInput, match="no number of rows"):
        needs(card, store)
    monkeypatch.delenv(ROWS_VARIABLE)
    assert needs(card, store).terms == DEFAULT_ROWS - 2 + SPARE_TERMS


def test_all_of_it_is_never_in_memory(store: ProfileStore, opened_below: Opened) -> None:
    seen = [weakref.ref(profile) for profile in islice(store.each("p*"), 50)]
    assert opened_below(store.roots[0]) == [f"p{n:04d}@1" for n in range(50)]
    assert sum(ref() is not None for ref in seen) <= 1


def test_the_list_command(
    home: Path, opened_below: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(home))

    def said(*words: str) -> Any:
        assert main(["profiles", "list", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["profiles"]

    assert len(said("--ids")) >= NAMES + VERSIONS
    assert opened_below(home / "profiles") == []
    assert [row["name"] for row in said("p000?")] == [f"p000{n}" for n in range(10)]
    assert len(opened_below(home / "profiles")) == 10


def test_a_folder_that_is_called_after_another_profile_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    _source(root / "source@2")
    with pytest.raises(BadInput, match="called '2' and the profile '1'"):
        ProfileStore(root).get("source@2")
    with pytest.raises(NotFound):
        ProfileStore(root).get("source@1")
    assert [isinstance(found, BadInput) for found in ProfileStore(root).each()] == [True]
