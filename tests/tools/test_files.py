"""Deleting a file, and the name of the file that a misspelled path means. (More on files in `test_office`.)"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from trimtab.models.embedded.intents.common import SUGGESTION
from trimtab.tools import ToolFailure, Toolset
from trimtab.tools.builtin.files import DEEPEST, LOOKED_AT, file_tools


class Files:
    """The tools on a folder of their own, called by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools = Toolset(file_tools(root))

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        return self.tools[name].function(**arguments)

    def error(self, name: str, path: str) -> str:
        with pytest.raises(ToolFailure) as caught:
            self(name, path=path)
        return caught.value.what


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A root with links of every kind that lead out, and a secret outside."""
    root, outside = tmp_path / "files", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (root / "notes").mkdir(parents=True)
    (root / "in.txt").write_text("inside")
    (root / "notes" / "garden plan.md").write_text("roses")
    (root / "notes" / "budget_2027.txt").write_text("1")
    (root / "link").symlink_to(outside)
    (root / "file-link.txt").symlink_to(outside / "secret.txt")
    (root / "good-link.txt").symlink_to(root / "in.txt")
    (root / "gone-link.txt").symlink_to(root / "nothing.txt")
    (root / "folder-link").symlink_to(root / "notes")
    (root / "loop").symlink_to(root / "loop")
    (root / ".hidden").write_text("hidden")
    os.mkfifo(root / "pipe")
    return Files(root)


def everything(files: Files) -> set[str]:
    base = files.root.parent
    return {str(p.relative_to(base)) for p in base.rglob("*")}


def test_a_file_is_deleted(files: Files) -> None:
    before = everything(files)
    assert files("delete_file", path="./notes//budget_2027.txt") == {"deleted": "./notes//budget_2027.txt"}
    assert before - everything(files) == {"files/notes/budget_2027.txt"}
    assert files.error("delete_file", "notes/budget_2027.txt") == "no file named 'notes/budget_2027.txt'"
    files("delete_file", path="folder-link/garden plan.md")
    assert files("list_files", folder="notes") == {"files": []}
    assert files.tools["delete_file"].destructive


OUT = ["..", "../outside/secret.txt", "link/secret.txt", "file-link.txt", "/etc/passwd", "~/x", "C:x", "..\\x", "a\nb"]
ODD = ["", ".", "notes", "notes/", "in.txt/", "pipe", "loop", "link", "good-link.txt", "gone-link.txt", "folder-link"]


@pytest.mark.parametrize("path", [*OUT, *ODD, ".hidden", "in.txt\0", "x" * 300, "a/" * 20 + "b", "\ud800", "in.txt/x"])
def test_nothing_else_is(files: Files, path: str) -> None:
    before = everything(files)
    error = files.error("delete_file", path)
    assert "\n" not in error
    assert str(files.root) not in error
    assert everything(files) == before


@pytest.mark.parametrize("name", ["read_file", "delete_file"])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("inn.txt", "in.txt"),
        ("notes/gadren plan.md", "notes/garden plan.md"),
        ("ntoes/budget_2027.txt", "notes/budget_2027.txt"),
        ("notes/budget-2027.txt", "notes/budget_2027.txt"),
        ("out.txt", None),
        ("notes/car.md", None),
        ("hidden", None),
        ("file-lnik.txt", None),
        ("link2/secret.txt", None),
    ],
)
def test_a_near_path_is_named(files: Files, name: str, wrong: str, right: str | None) -> None:
    error = files.error(name, wrong)
    hint = SUGGESTION.fullmatch(error)
    if right is None:
        assert error == f"no file named '{wrong}'"
    else:
        assert hint is not None
        assert hint["what"] == f"no file named {wrong}"
        assert hint["right"] == right


def test_the_search_for_a_near_path_is_bounded(files: Files) -> None:
    deep = files.root / "/".join("d" * (DEEPEST + 4))
    deep.mkdir(parents=True)
    (deep / "bottom.txt").touch()
    assert files.error("read_file", "/".join("d" * 12) + "/bottm.txt").startswith("no file named '")
    for n in range(LOOKED_AT + 10):
        (files.root / f"n{n}").touch()
    assert files.error("read_file", "x" * 190).startswith("no file named '")
    assert files.error("read_file", "y" * 150 + "/" + "z" * 150).startswith("no file named '")
