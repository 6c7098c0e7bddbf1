"""Profiles travel between stores whole or not at all, and a bare name stands for what was promoted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.cli import main
from trimtab.errors import BadInput, NotFound
from trimtab.home import file_sha256
from trimtab.steering.adapter import WEIGHTS, read_adapter
from trimtab.steering.diff import AdapterChange, diff, table
from trimtab.steering.document import Document
from trimtab.steering.profile import Profile, load_profile, save_profile
from trimtab.steering.promotion import FOLDER
from trimtab.steering.remote import Manifest, Remote
from trimtab.steering.store import ProfileStore


def _write(folder: Path, version: str = "1", *, add: tuple[float, ...] = (1.0, 0.0), name: str = "terse") -> Profile:
    """A profile that adds `add` (padded to 8) at layer 1."""
    entry = {"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 2.0, "tokens": "all"}
    data: dict[str, Any] = {"format": 1, "name": name, "version": version, "base": {"model": "m", "sha256": "a" * 64}}
    vector = torch.zeros(8)
    vector[: len(add)] = torch.tensor(add)
    document = Document.model_validate({**data, "interventions": [entry]})
    return save_profile(folder, document, tensors={"v.safetensors": {"v": vector}})


@pytest.fixture
def store(tmp_path: Path) -> ProfileStore:
    store = ProfileStore(tmp_path / "mine")
    for version in ("1", "2", "3"):
        store.save(_write(tmp_path / "made" / version, version, add=(float(version),)).directory)
    return store


def test_a_bare_name_stands_for_the_newest_until_one_is_promoted(store: ProfileStore, tmp_path: Path) -> None:
    assert store.get("terse").version == "3"
    assert store.history("terse") == ()
    assert store.promote("terse@1").id == "terse@1"
    assert store.get("terse").version == "1"
    assert store.get("terse@3").version == "3"
    newest = store.save(_write(tmp_path / "made" / "4", "4", add=(4.0,)).directory)
    assert store.get("terse").version == "1"  # a new version changes nothing for those who ask by name
    assert store.get(f"terse@sha256:{newest.sha256[:12]}").version == "4"
    store.promote("terse@4")
    store.promote("terse@4")
    assert store.history("terse") == ("1", "4")
    assert store.rollback("terse").id == "terse@1"
    assert ProfileStore(store.roots[0]).get("terse").version == "1"
    assert store.rollback("terse").id == "terse@4"  # before its first promotion it was the newest
    assert store.history("terse") == ()
    assert ProfileStore(store.roots[0]).get("terse").version == "4"
    with pytest.raises(BadInput, match="no version of terse is promoted"):
        store.rollback("terse")
    with pytest.raises(BadInput, match="no version of calm"):
        store.rollback("calm")
    with pytest.raises(NotFound):
        store.promote("terse@9")


def test_what_is_forgotten_is_not_taken_for_the_newest(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.steering.promotion.KEPT", 2)
    for version in ("1", "2", "1"):
        store.promote(f"terse@{version}")
    assert store.rollback("terse").version == "2"
    with pytest.raises(BadInput, match="what was promoted before terse@2 is forgotten"):
        store.rollback("terse")
    assert store.get("terse").version == "2"


def test_what_was_promoted_and_is_gone_is_an_error_and_not_another_version(store: ProfileStore) -> None:
    store.promote("terse@1")
    store.promote("terse@2")
    store.remove("terse@1")
    with pytest.raises(NotFound, match="terse@1"):
        store.rollback("terse")
    assert store.get("terse").version == "2"
    store.remove("terse@2")
    with pytest.raises(BadInput, match="terse@2 was promoted and is gone"):
        store.get("terse")
    assert store.get("terse@3").version == "3"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"versions": 3}', '{"format": 2, "versions": []}', "\0"])
def test_a_broken_record_names_its_file(store: ProfileStore, text: str) -> None:
    (store.roots[0] / FOLDER).mkdir()
    (store.roots[0] / FOLDER / "terse.json").write_text(text)
    with pytest.raises(BadInput, match=r"terse\.json"):
        store.get("terse")
    assert store.get("terse@2").version == "2"
    assert store.names() == ["terse"]


@pytest.mark.parametrize("scheme", ["folder", "file", "memory"])
def test_there_and_back(store: ProfileStore, tmp_path: Path, scheme: str) -> None:
    url = {
        "folder": str(tmp_path / "shared"),
        "file": f"file://{tmp_path}/shared",
        "memory": f"memory://{tmp_path.name}",
    }[scheme]
    remote = Remote(url)
    assert remote.all() == []
    first = remote.push(store.get("terse@1"))
    assert (first.written, first.there, first.changed) == (2, 0, True)
    again = remote.push(store.get("terse@1"))
    assert (again.written, again.there, again.changed) == (0, 2, False)
    remote.push(store.get("terse@3"))
    assert remote.ids() == [m.id for m in remote.all() if isinstance(m, Manifest)] == ["terse@1", "terse@3"]

    other = ProfileStore(tmp_path / "other")
    assert Remote(url).pull("terse", other).id == "terse@3"
    assert Remote(url).pull("terse@1", other).sha256 == store.get("terse@1").sha256
    assert Remote(url).pull(f"terse@sha256:{first.manifest.sha256[:10]}", other).id == "terse@1"  # it is there already
    assert sorted(p.name for p in other.roots[0].iterdir()) == ["terse@1", "terse@3"]
    with pytest.raises(NotFound, match=r"There is: terse@1, terse@3"):
        Remote(url).pull("calm", other)


def test_profiles_share_what_they_have_in_common(store: ProfileStore, tmp_path: Path) -> None:
    remote = Remote(str(tmp_path / "shared"))
    remote.push(store.get("terse@1"))
    twin = _write(tmp_path / "twin", name="twin")
    assert (remote.push(twin).written, remote.push(twin).there) == (1, 2)  # the YAML differs, the tensors do not


def test_other_content_under_a_name_needs_a_word(store: ProfileStore, tmp_path: Path) -> None:
    remote, other = Remote(str(tmp_path / "shared")), ProfileStore(tmp_path / "other")
    remote.push(store.get("terse@1"))
    remote.pull("terse@1", other)
    changed = _write(tmp_path / "changed", add=(0.0, 5.0))
    with pytest.raises(BadInput, match="other content"):
        remote.push(changed)
    remote.push(changed, replace=True)
    with pytest.raises(BadInput, match="already in the store with other content"):
        remote.pull("terse@1", other)
    assert other.get("terse@1").sha256 == store.get("terse@1").sha256
    assert remote.pull("terse@1", other, replace=True).sha256 == changed.sha256


def _manifest(shared: Path) -> Path:
    return next((shared / "profiles").glob("*.json"))


def test_a_push_cut_short_is_not_there(store: ProfileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    remote = Remote(str(shared))
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("trimtab.steering.remote.os.replace", full)
    with pytest.raises(BadInput, match="No space left"):
        remote.push(store.get("terse@1"))
    assert remote.all() == []
    assert not list(shared.rglob("*.part"))
    monkeypatch.undo()
    assert remote.push(store.get("terse@1")).there == 2


def test_what_arrives_is_checked(store: ProfileStore, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    remote, other = Remote(str(shared)), ProfileStore(tmp_path / "other")
    manifest = remote.push(store.get("terse@1")).manifest
    blob = shared / "blobs" / manifest.files["v.safetensors"].sha256
    good, text = blob.read_bytes(), _manifest(shared).read_text()

    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BadInput, match=r"v\.safetensors: what arrived is not what was pushed"):
        remote.pull("terse", other)
    blob.write_bytes(good + b"more")
    with pytest.raises(BadInput, match="what arrived is not what was pushed"):
        remote.pull("terse", other)
    blob.unlink()
    with pytest.raises(BadInput, match="missing"):
        remote.pull("terse", other)
    blob.write_bytes(good)
    _manifest(shared).write_text(text.replace(manifest.sha256, "0" * 64))
    with pytest.raises(BadInput, match="what arrived is terse@1"):
        remote.pull("terse", other)
    _manifest(shared).write_text(text.replace('"version": "1"', '"version": "2"'))
    with pytest.raises(BadInput, match="is the manifest of terse@2"):
        remote.pull("terse", other)
    _manifest(shared).write_text("{}")
    (broken,) = remote.all()
    assert isinstance(broken, BadInput)
    assert broken.where == f"{shared}: terse@1.json"
    assert not other.roots[0].exists() or list(other.roots[0].iterdir()) == []


def test_a_damaged_file_is_repaired_by_pushing_again(store: ProfileStore, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    remote, other = Remote(str(shared)), ProfileStore(tmp_path / "other")
    blob = shared / "blobs" / remote.push(store.get("terse@1")).manifest.files["v.safetensors"].sha256
    good = blob.read_bytes()
    blob.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(BadInput, match="ask to replace it"):
        remote.pull("terse@1", other)
    assert remote.push(store.get("terse@1")).written == 0
    again = remote.push(store.get("terse@1"), replace=True)
    assert (again.written, again.there, again.changed) == (2, 0, False)
    assert remote.pull("terse@1", other).sha256 == store.get("terse@1").sha256


def test_what_is_pushed_is_what_lies_on_disk(tmp_path: Path) -> None:
    remote, other = Remote(str(tmp_path / "shared")), ProfileStore(tmp_path / "other")
    loaded = _write(tmp_path / "made")
    (loaded.directory / "v.safetensors").rename(loaded.directory / ".v.safetensors")
    (loaded.directory / ".notes.txt").write_text("private")
    text = (loaded.directory / "profile.yaml").read_text()
    text = text.replace("strength: 2.0", "strength: 3.0").replace("file: v.safetensors", "file: ./.v.safetensors")
    (loaded.directory / "profile.yaml").write_text(text)
    assert set(remote.push(loaded).manifest.files) == {"profile.yaml", ".v.safetensors"}
    (part,) = remote.pull("terse", other).interventions
    assert part.vector is not None
    assert part.vector[0] == 3.0


def test_a_profile_that_arrives_broken_is_named(store: ProfileStore, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    remote = Remote(str(shared))
    remote.push(store.get("terse@1"))
    data = json.loads(_manifest(shared).read_text())
    del data["files"]["v.safetensors"]
    _manifest(shared).write_text(json.dumps(data))
    with pytest.raises(BadInput, match="is missing") as caught:
        remote.pull("terse", ProfileStore(tmp_path / "other"))
    assert caught.value.where == f"{shared}: terse@1/profile.yaml: interventions.0.file"


@pytest.mark.parametrize("names", [["a.json", "a.json/b.json"], ["a" * 300 + ".json"], ["d/" + "a/" * 3000 + "x.json"]])
def test_names_that_no_disk_takes(tmp_path: Path, names: list[str]) -> None:
    remote = Remote(str(tmp_path / "shared"))
    remote.push(_write(tmp_path / "made"))
    data = json.loads(_manifest(tmp_path / "shared").read_text())
    data["files"] |= dict.fromkeys(names, data["files"]["profile.yaml"])
    _manifest(tmp_path / "shared").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="cannot be"):
        remote.pull("terse", ProfileStore(tmp_path / "other"))


def test_a_broken_manifest_hides_no_other_and_can_be_replaced(store: ProfileStore, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    remote, other = Remote(str(shared)), ProfileStore(tmp_path / "other")
    first = remote.push(store.get("terse@1")).manifest
    for garbage in ("bad@1", "terse@2", "odd@²", "nameless"):
        (shared / "profiles" / f"{garbage}.json").write_text("garbage")
    assert [isinstance(found, BadInput) for found in remote.all()] == [True, True, True, False, True]
    assert remote.pull("terse@1", other).id == "terse@1"
    assert remote.find(f"terse@sha256:{first.sha256[:8]}") == first
    for spec in ("terse", "terse@2", "terse@sha256:00000000"):  # never another version in its place
        with pytest.raises(BadInput, match=r"terse@2\.json"):
            remote.find(spec)
    with pytest.raises(BadInput, match="ask to replace it"):
        remote.push(store.get("terse@2"))
    assert remote.push(store.get("terse@2"), replace=True).changed
    assert remote.find("terse").id == "terse@2"


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            ["../x.json", "/tmp/x.json", "a/../../x.json", "~/x.json", "x.bin", "evil.pt", ".", "v\0.json"]
        ),
    )
)
def test_no_manifest_writes_outside_or_brings_a_pickle(tmp_path_factory: pytest.TempPathFactory, relative: str) -> None:
    place = tmp_path_factory.mktemp("hostile")
    remote = Remote(str(place / "shared"))
    remote.push(_write(place / "made"))
    data = json.loads(_manifest(place / "shared").read_text())
    data["files"][relative] = data["files"]["profile.yaml"]
    _manifest(place / "shared").write_text(json.dumps(data))
    before = {p for p in place.rglob("*") if "other" not in p.parts}
    try:
        profile = remote.pull("terse", ProfileStore(place / "other"))
    except BadInput:
        assert not any((place / "other").rglob("*"))
    else:
        assert all(
            p.suffix in (".yaml", ".json", ".safetensors", ".md", ".txt") for p in profile.directory.rglob("*.*")
        )
    assert {p for p in place.rglob("*") if "other" not in p.parts} == before


@pytest.mark.parametrize(("url", "says"), [("teleport://x", "teleport"), ("reference://a", "missing 1 required")])
def test_a_url_that_nothing_opens_is_refused(url: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Remote(url)


def test_what_differs(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", add=(1.0, 0.0)), _write(tmp_path / "b", "2", add=(1.0, 1.0))
    found = diff(first, second)
    assert not found.same
    assert [(c.field, c.before, c.after) for c in found.fields] == [("version", "1", "2")]
    (vector,) = found.vectors
    assert (vector.layer, vector.tokens) == (1, "all")
    assert vector.norm_before == pytest.approx(2.0)  # at strength 2
    assert vector.norm_after == pytest.approx(8**0.5)
    assert vector.cosine == pytest.approx(0.5**0.5)
    assert found.adapter is None
    same = diff(first, first)
    assert (same.same, same.fields, same.vectors, same.adapter) == (True, (), (), None)
    assert (same.terms, same.gate, same.deltas) == ((), None, ())


def test_what_only_tensors_change_is_told(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    """One document, other tensors: directions that are taken out, a trained bias, a condition, a weight delta."""
    file = {"layer": 1, "file": "v.safetensors"}
    data: dict[str, Any] = {"format": 1, "name": "x", "base": {"model": "m", "sha256": "a" * 64}}
    data["interventions"] = [
        {**file, "kind": "ablate", "tensor": "out"},
        {**file, "kind": "loreft", "rotation": "r", "weight": "w", "bias": "b", "tokens": "generated"},
    ]
    data["gate"] = {**file, "tensor": "gate", "threshold": 0.1}
    data["weight_deltas"] = [{"plus": "plus", "minus": "minus", "strength": 2.0}]
    tensors = {"out": torch.eye(32)[0], "gate": torch.eye(32)[1], "b": torch.zeros(2)}
    tensors |= {"r": torch.eye(32)[:2], "w": torch.eye(32)[2:4]}
    folders = [make_adapter(name, seed) for seed, name in enumerate(("plus", "minus", "other"))]

    def made(name: str, minus: int = 1, **changed: torch.Tensor) -> Profile:
        adapters = {"plus": folders[0], "minus": folders[minus]}
        files = {"v.safetensors": tensors | changed}
        return save_profile(tmp_path / name, Document.model_validate(data), tensors=files, adapters=adapters)

    first = made("first")
    out = diff(first, made("out", out=torch.eye(32)[4]))
    assert table(out) == "layer 1, all: terms 1 -> 1, differs by 141.4% of its norm"
    assert out.terms[0].relative == pytest.approx(2**0.5)
    bias = diff(first, made("bias", b=torch.ones(2)))
    assert table(bias) == "layer 1, generated: terms 2 -> 2, differs in biases or bounds alone"
    gate = diff(first, made("gate", gate=torch.eye(32)[1] + torch.eye(32)[2]))
    assert table(gate) == "gate: another vector, cosine 0.707"
    delta = diff(first, made("delta", minus=2))
    plus, minus, other = (
        torch.cat([(b @ a).flatten() for a, b in read_adapter(folder).modules.values()]) for folder in folders
    )
    wanted = float((minus - other).norm() / (plus - minus).norm())
    assert delta.deltas[0].relative == pytest.approx(wanted, rel=1e-4)
    assert table(delta).startswith("weight_deltas.0: the direction differs by ")
    assert json.loads(json.dumps(delta.to_json()))["deltas"][0]["number"] == 0


def test_what_differs_by_little_does_not_look_the_same(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", "1"), _write(tmp_path / "b", "2")
    text = (second.directory / "profile.yaml").read_text()
    (second.directory / "profile.yaml").write_text(text.replace("strength: 2.0", "strength: 2.00001"))
    said = table(diff(first, load_profile(second.directory)))
    assert "interventions.0.strength: 2.0 -> 2.00001" in said
    assert "norm 2 -> 2.00001" in said


def test_profiles_of_different_width_differ_by_what_is_unknown(
    tmp_path: Path, make_adapter: Callable[..., Path], edit: Callable[..., None]
) -> None:
    data: dict[str, Any] = {"format": 1, "name": "x", "base": {"model": "m", "sha256": "a" * 64}}
    data["interventions"] = [{"layer": 1, "file": "v.safetensors", "tensor": "v", "strength": 1.0, "tokens": "all"}]
    made = []
    for width in (32, 48):
        adapter = make_adapter(f"wide{width}", seed=1)

        def widen(found: dict[str, torch.Tensor], width: int = width) -> None:
            found.update({key: a.repeat(1, 2)[:, :width].contiguous() for key, a in found.items() if "lora_A" in key})

        edit(adapter / WEIGHTS, widen)
        data["adapter"] = {"path": "adapter", "sha256": file_sha256(adapter / WEIGHTS)}
        tensors = {"v.safetensors": {"v": torch.ones(width)}}
        folder = tmp_path / str(width)
        made.append(save_profile(folder, Document.model_validate(data), tensors=tensors, adapters={"adapter": adapter}))
    found = diff(*made)
    (vector,) = found.vectors
    assert vector.norm_before == pytest.approx(32**0.5)
    assert vector.norm_after == pytest.approx(48**0.5)
    assert vector.cosine is None
    assert found.adapter == AdapterChange(True, True, None)
    said = table(found)
    assert "cosine unknown" in said
    assert "adapter: the update differs, by how much of its norm is unknown" in said


def test_how_far_adapters_are_apart(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    tiny_adapters = (make_adapter("plus", seed=1), make_adapter("minus", seed=2))

    def profile(name: str, adapter: Path | None) -> Profile:
        data: dict[str, Any] = {"format": 1, "name": name, "base": {"model": "m", "sha256": "a" * 64}}
        if adapter is not None:
            data["adapter"] = {"path": "adapter", "sha256": file_sha256(adapter / WEIGHTS)}
        copies = {} if adapter is None else {"adapter": adapter}
        return save_profile(tmp_path / name, Document.model_validate(data), adapters=copies)

    one, two = (profile(name, folder) for name, folder in zip(("one", "two"), tiny_adapters, strict=True))
    (before, after) = (read_adapter(folder).modules for folder in tiny_adapters)
    wholes = [torch.cat([(m[k][1] @ m[k][0]).flatten() for k in sorted(before)]) for m in (before, after)]
    change = diff(one, two).adapter
    assert change is not None
    assert change.relative == pytest.approx(float((wholes[1] - wholes[0]).norm() / wholes[0].norm()), rel=1e-5)
    assert diff(one, profile("same", tiny_adapters[0])).adapter is None
    gone = diff(one, profile("bare", None)).adapter
    assert gone is not None
    assert (gone.before, gone.after, gone.relative) == (True, False, None)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    mine = ProfileStore(tmp_path / "home" / "profiles")
    for version in ("1", "2"):
        mine.save(_write(tmp_path / "made" / version, version, add=(float(version), 1.0), name="mine").directory)
    shared = str(tmp_path / "shared")

    def said(*words: str) -> Any:
        assert main(["profiles", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert said("diff", "mine@1", "mine@2")["vectors"][0]["layer"] == 1
    assert said("promote", "mine@1")["history"] == ["1"]
    assert said("promote", "mine@2")["history"] == ["1", "2"]
    assert said("rollback", "mine")["profile"] == "mine@1"
    assert main(["profiles", "rollback", "mine"]) == 0
    assert capsys.readouterr().out == "mine is mine@2 again; the newest version, as none is promoted\n"
    assert said("promote", "mine@1")["history"] == ["1"]
    assert said("push", "mine", shared)["profile"] == "mine@1"
    assert [m["version"] for m in said("remote", shared)["profiles"]] == ["1"]
    (tmp_path / "shared" / "profiles" / "bad@1.json").write_text("garbage")
    assert said("remote", shared)["profiles"][0]["broken"]
    assert main(["profiles", "remote", shared]) == 0
    assert capsys.readouterr().out.startswith(f"broken  {shared}: bad@1.json: ")
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "elsewhere"))
    assert said("pull", shared, "mine")["version"] == "1"
    assert main(["profiles", "show", "mine"]) == 0
    assert "mine@1" in capsys.readouterr().out
    assert main(["profiles", "pull", shared, "nobody"]) == 2
    assert "There is: bad@1, mine@1" in capsys.readouterr().err
