"""The store finds profiles by name, version and hash; the bank keeps them in static rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput, LimitExceeded, NotFound
from trimtab.steering.bank import Bank
from trimtab.steering.document import Document
from trimtab.steering.listing import print_list
from trimtab.steering.profile import Profile, load_profile, save_profile
from trimtab.steering.store import ProfileStore, version_key


def write(
    folder: Path, name: str, version: str = "1", *, seed: int = 0, tokens: str = "all", layer: int = 1
) -> Profile:
    entry = {"layer": layer, "file": "v.safetensors", "tensor": "v", "strength": 2.0, "tokens": tokens}
    data = {"format": 1, "name": name, "version": version, "base": {"model": "m", "sha256": "a" * 64}}
    vector = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    document = Document.model_validate({**data, "interventions": [entry]})
    return save_profile(folder, document, tensors={"v.safetensors": {"v": vector}})


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    shipped = tmp_path / "shipped"
    write(shipped / "terse", "terse")
    write(shipped / "calm", "calm")
    return ProfileStore(tmp_path / "mine", shipped)


def test_versions_order_as_people_read_them() -> None:
    order = "0.9 1.0-dev 1.0-alpha 1.0.beta.2 1.0-rc2 1.0-rc10 1.0 1.0b 1.0.1 2-rc1 2 10".split()
    assert sorted({*order}, key=version_key) == order


def test_a_candidate_does_not_take_the_place_of_what_came_out(store: ProfileStore, tmp_path: Path) -> None:
    for version in ("20", "20-rc1"):
        store.save(write(tmp_path / version, "terse", version).directory)
    assert store.get("terse").version == "20"


def test_names_versions_and_hashes(store: ProfileStore, tmp_path: Path) -> None:
    assert store.names() == ["calm", "terse"]
    first = store.get("terse")
    for version in ("2", "10"):
        store.save(write(tmp_path / version, "terse", version, seed=int(version)).directory)
    assert store.get("terse").version == "10"
    assert store.get("terse@2").version == "2"
    assert store.get("terse@1").sha256 == first.sha256
    assert store.get(f"terse@sha256:{first.sha256}").id == "terse@1"
    assert store.get(f"terse@sha256:{first.sha256[:8]}").id == "terse@1"
    assert [p.id for p in store.all() if isinstance(p, Profile)] == ["calm@1", "terse@1", "terse@10", "terse@2"]


@pytest.mark.parametrize(
    "spec", ["nobody", "terse@9", "terse@sha256:00000000", "terse@sha256:0", "", "../terse", "Terse", "terse@", "a@b@c"]
)
def test_unknown_profiles_list_the_known(store: ProfileStore, spec: str) -> None:
    with pytest.raises(NotFound, match="Known profiles: calm, terse"):
        store.get(spec)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_found_or_not_found(tmp_path_factory: pytest.TempPathFactory, spec: str) -> None:
    with pytest.raises(NotFound, match="no profiles yet"):
        ProfileStore(tmp_path_factory.getbasetemp() / "none").get(spec)


def test_save_keeps_what_is_there(store: ProfileStore, tmp_path: Path) -> None:
    source = write(tmp_path / "new", "new", seed=1)
    saved = store.save(source.directory)
    assert saved.sha256 == source.sha256
    assert saved.directory.parent == store.roots[0]
    assert store.save(source.directory).sha256 == source.sha256  # the same again is no change
    other = write(tmp_path / "other", "new", seed=2)
    with pytest.raises(BadInput, match="Raise the version"):
        store.save(other.directory)
    assert store.get("new").sha256 == source.sha256
    assert store.save(other.directory, replace=True).sha256 == other.sha256
    store.remove("new")
    assert store.names() == ["calm", "terse"]
    with pytest.raises(BadInput, match="read-only"):
        store.remove("terse")


def test_a_broken_profile_hides_no_other(store: ProfileStore) -> None:
    (store.roots[1] / "calm" / "profile.yaml").write_text("format: [")
    assert store.get("terse").id == "terse@1"
    assert [isinstance(p, BadInput) for p in store.all()] == [True, False]
    with pytest.raises(BadInput, match="not valid YAML"):
        store.get("calm")
    (store.roots[1] / "terse").rename(store.roots[1] / "other")
    with pytest.raises(BadInput, match="called 'other'"):
        store.get("other")


def test_one_broken_profile_never_hides_the_others(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(folder: Path, **base: object) -> Profile:
        if folder.name == "calm":
            raise OverflowError("nobody foresaw this")
        return load_profile(folder)

    monkeypatch.setattr("trimtab.steering.store.load_profile", load)
    broken, terse = store.each()
    assert isinstance(broken, BadInput)
    assert broken.where == str(store.roots[1] / "calm")
    assert isinstance(terse, Profile)
    print_list(store, as_json=False)
    out = capsys.readouterr().out
    assert "terse@1" in out
    assert f"broken {broken.where}: cannot be read (OverflowError: nobody foresaw this)" in out


def test_a_list_is_whole_in_a_pipe_and_on_any_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ProfileStore(tmp_path / "mine")
    profile = store.save(write(tmp_path / "long", "long" * 20, "1.2.3-rc4").directory)
    for screen in (False, True):
        monkeypatch.setenv("TERM", "dumb")  # 80 columns, no colours
        monkeypatch.setattr("rich.console.Console.is_terminal", screen)
        print_list(store, as_json=False)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.split()[:3] == [profile.id, "m", "1"]
        assert profile.sha256[:12] in line


def test_bank_rows(tmp_path: Path) -> None:
    both = write(tmp_path / "a", "a", layer=0)
    late = write(tmp_path / "b", "b", seed=1, tokens="generated", layer=2)
    bank = Bank(3, 8, 3)
    address = bank.add.data_ptr()
    assert bank.put(both.sha256, both).by_phase == (1, 1)
    assert bank.put(late.sha256, late).by_phase == (0, 2)
    assert bank.put(both.sha256, both).by_phase == (1, 1)
    assert torch.equal(bank.table(0).add[1], both.interventions[0].vector)
    assert torch.equal(bank.table(2).add[2], late.interventions[0].vector)
    assert not bank.table(0).add[2].any()
    assert not bank.add[:, 0].any()
    third = write(tmp_path / "c", "c", seed=2)
    before = bank.add.clone()
    with pytest.raises(LimitExceeded, match="0 of the bank's 2 rows"):
        bank.put(third.sha256, third)
    with pytest.raises(NotFound, match="not live"):
        bank.place(third.sha256)
    assert torch.equal(bank.add, before)
    bank.drop(both.sha256)
    assert bank.rows_used == 1
    assert bank.put(third.sha256, third).by_phase == (1, 1)
    assert not bank.table(0).add[1].any()  # nothing of the former tenant is left
    assert set(bank.live()) == {late.sha256, third.sha256}
    assert bank.add.data_ptr() == address == bank.table(0).add.data_ptr()


def test_reserved_room_is_taken_and_holds_nothing_until_it_is_written(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", "a"), write(tmp_path / "b", "b", seed=1)
    bank = Bank(3, 8, 2)
    reserved = bank.reserve(one.sha256, one)
    assert not bank.add.any()
    assert bank.rows_used == 1
    with pytest.raises(LimitExceeded):
        bank.put(other.sha256, other)
    with pytest.raises(BadInput, match="has its place"):
        bank.reserve(one.sha256, one)
    bank.write(reserved)
    assert bank.add.any()
    assert bank.place(one.sha256) is reserved.held.place
    bank.drop(one.sha256)
    bank.reserve(other.sha256, other)
    bank.drop(other.sha256)  # never written
    assert not bank.add.any()
    assert bank.rows_used == 0


def test_bank_refuses_what_does_not_fit(tmp_path: Path) -> None:
    deep = write(tmp_path / "a", "a", layer=3)
    for bank in (Bank(3, 8, 2), Bank(4, 16, 2)):
        with pytest.raises(BadInput, match="does not fit"):
            bank.put(deep.sha256, deep)
        assert bank.live() == {}
    with pytest.raises(BadInput, match="holds nothing"):
        Bank(3, 8, 1)
