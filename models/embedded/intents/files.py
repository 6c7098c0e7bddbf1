"""Text files: what is asked of them, and what is right to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ..words import path, phrase, word
from .common import Facts, Intent, Recorder, Run, Slots, failed, nothing, with_error
from .todos import added_todo


def _file(rng: random.Random) -> Slots:
    return {"path": path(rng), "content": phrase(rng, 1, 5)}


def _two_files(rng: random.Random) -> Slots:
    first, second = path(rng), path(rng)
    while second == first:
        second = path(rng)
    return {"path": first, "path2": second, "content": phrase(rng, 1, 4), "content2": phrase(rng, 1, 4)}


def _list_files(s: Slots, r: Recorder) -> Facts:
    folder = s.get("folder")
    result = r.one("list_files", folder=folder) if folder else r.one("list_files")
    place, ort = (f"In {folder}", f"In {folder}") if folder else ("In the main folder", "Im Hauptordner")

    def facts(x: dict[str, Any]) -> Facts:
        if not x["files"]:
            none = nothing("files", also=("is empty", "nothing in"))
            return Facts("0 files", f"{place} there are 0 files", "0 Dateien", f"{ort} gibt es 0 Dateien", (none,))
        text = ", ".join(x["files"])
        return Facts(text, f"{place} there is {text}", text, f"{ort} gibt es {text}", tuple(x["files"]))

    return with_error(result, facts)


def _used(r: Recorder) -> str:
    """The path of the last call: that of the request, or the one it turned out to mean."""
    return str(r.calls[-1][1]["path"])


def _read_file(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        text, place = x["content"], _used(r)
        return Facts(text, f"{place} says: {text}", text, f"In {place} steht: {text}", (text,))

    return with_error(r.one("read_file", path=s["path"]), facts)


def _write_file(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        place = x["written"]
        return Facts(
            f"Written to {place}",
            f"The text is now in {place}",
            f"In {place} geschrieben",
            f"Der Text steht jetzt in {place}",
            (place,),
        )

    return with_error(r.one("write_file", path=s["path"], content=s["content"]), facts)


def _delete_file(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        place = x["deleted"]
        return Facts(f"Deleted {place}", f"{place} is deleted", f"{place} gelöscht", f"{place} ist gelöscht", (place,))

    return with_error(r.one("delete_file", path=s["path"]), facts)


def _copy_file(s: Slots, r: Recorder) -> Facts:
    read = r.one("read_file", path=s["path"])
    if "error" in read:
        return failed(read)
    old, new = _used(r), s["path2"]

    def facts(_: dict[str, Any]) -> Facts:
        return Facts(
            f"Copied {old} to {new}",
            f"{new} is now a copy of {old}",
            f"{old} nach {new} kopiert",
            f"{new} ist jetzt eine Kopie von {old}",
            (old, new),
        )

    return with_error(r.one("write_file", path=new, content=read["content"]), facts)


def _move_file(s: Slots, r: Recorder) -> Facts:
    read = r.one("read_file", path=s["path"])
    if "error" in read:
        return failed(read)
    old, new = _used(r), s["path2"]
    written = r.one("write_file", path=new, content=read["content"])
    if "error" in written:
        return failed(written)

    def facts(_: dict[str, Any]) -> Facts:
        return Facts(
            f"Moved {old} to {new}",
            f"{old} is now {new}",
            f"{old} nach {new} verschoben",
            f"{old} ist jetzt {new}",
            (old, new),
        )

    return with_error(r.one("delete_file", path=old), facts)


def _file_to_todo(s: Slots, r: Recorder) -> Facts:
    read = r.one("read_file", path=s["path"])
    if "error" in read:
        return failed(read)
    return with_error(r.one("add_todo", item=read["content"]), lambda x: added_todo(x["added"]))


def _read_two(s: Slots, r: Recorder) -> Facts:
    one, two = r.call(("read_file", {"path": s["path"]}), ("read_file", {"path": s["path2"]}))
    if "error" in one or "error" in two:
        return failed(one if "error" in one else two)
    first, second = one["content"], two["content"]
    both = f"{first}; {second}"
    return Facts(
        both,
        f"{s['path']} says: {first}; {s['path2']} says: {second}",
        both,
        f"In {s['path']} steht: {first}; in {s['path2']} steht: {second}",
        (first, second),
    )


def _this_file(rng: random.Random, s: Slots, run: Run) -> None:
    """The one that the request is about, nine times of ten, and sometimes another."""
    if rng.random() < 0.5:
        other = path(rng)
        if other not in (s["path"], s.get("path2")):
            run("write_file", {"path": other, "content": phrase(rng)})
    if rng.random() < 0.9:
        run("write_file", {"path": s["path"], "content": s["content"]})


def _both_files(rng: random.Random, s: Slots, run: Run) -> None:
    """Both nine times of ten; otherwise one of the two is missing."""
    roll = rng.random()
    if roll >= 0.05:
        run("write_file", {"path": s["path"], "content": s["content"]})
    if roll < 0.95:
        run("write_file", {"path": s["path2"], "content": s["content2"]})


def _some_files(rng: random.Random, s: Slots, run: Run) -> None:
    folder = f"{s['folder']}/" if s.get("folder") else ""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 3))):
        run("write_file", {"path": f"{folder}{word(rng)}.{rng.choice(('txt', 'txt', 'md', 'csv'))}", "content": "x"})


def _look_at(slot: str) -> Callable[[Slots], tuple[str, dict[str, Any]]]:
    def verify(s: Slots) -> tuple[str, dict[str, Any]]:
        return "read_file", {"path": s[slot]}

    return verify


def _look_around(s: Slots) -> tuple[str, dict[str, Any]]:
    """The folder of a file that was deleted."""
    folder = str(s["path"]).rpartition("/")[0]
    return "list_files", {"folder": folder} if folder else {}


def _nothing(rng: random.Random) -> Slots:
    return {}


INTENTS: dict[str, Intent] = {
    "list_files": Intent(lambda r: {"folder": word(r)}, _list_files, _some_files),
    "list_all_files": Intent(_nothing, _list_files, _some_files),
    "read_file": Intent(_file, _read_file, _this_file, typo="path"),
    "write_file": Intent(_file, _write_file, verify=_look_at("path")),
    "delete_file": Intent(
        _file,
        _delete_file,
        _this_file,
        confirm=("delete {path}?", "{path} löschen?"),
        verify=_look_around,
    ),
    "copy_file": Intent(_two_files, _copy_file, _this_file, "chain", verify=_look_at("path2"), typo="path"),
    "move_file": Intent(
        _two_files,
        _move_file,
        _this_file,
        "chain",
        confirm=("move {path} to {path2}?", "{path} nach {path2} verschieben?"),
        verify=_look_at("path2"),
        typo="path",
    ),
    "file_to_todo": Intent(_file, _file_to_todo, _this_file, "chain", typo="path"),
    "read_two": Intent(_two_files, _read_two, _both_files, "chain"),
    "missing.write": Intent(
        _file,
        _write_file,
        group="missing",
        question=("What should {path} say?", "Was soll in {path} stehen?", "content"),
        verify=_look_at("path"),
    ),
    "missing.read": Intent(
        _file, _read_file, _this_file, "missing", question=("Which file should I read?", "Welche Datei?", "path")
    ),
}
