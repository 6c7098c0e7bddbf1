"""The profile store: folders of profiles, found by name, version or hash."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import BadInput, NotFound
from .document import FILE, read_document
from .profile import Profile, load_profile, staged
from .promotion import promote, promoted, rollback

_SPEC = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?:sha256:(?P<sha>[0-9a-f]{8,64})|(?P<version>[^@:/\s]+)))?$")

WHOLE = 64
"""Digits of a whole hash: the first profile that has it is the one."""

SHOWN = 20
"""Names that an error lists at most."""


def parse_spec(spec: str) -> tuple[str | None, str | None, str | None]:
    """Name, version and first digits of the hash in `name`, `name@version` or `name@sha256:...`; all None for other
    text."""
    match = _SPEC.match(spec)
    return (None, None, None) if match is None else (match["name"], match["version"], match["sha"])


class ProfileStore:
    """Profiles below some roots, each in a folder `<name>` or `<name>@<version>`, thousands of them if need be.

    The first root takes new profiles; later ones (such as those shipped with the package) are only read. An earlier
    root hides the same name and version in a later one.
    """

    def __init__(self, *roots: Path) -> None:
        if not roots:
            raise BadInput("a profile store needs at least one folder", where="ProfileStore")
        self.roots = tuple(Path(root) for root in roots)

    def names(self) -> list[str]:
        """The names there are, sorted, broken profiles included. No file is read."""
        return sorted({folder.name.partition("@")[0] for folder in self._folders()})

    def folders(self) -> dict[str, Path]:
        """The folder of each `name@version`, sorted. Only a folder without a version in its name is read for it; where
        that fails, it stands there under its name alone."""
        out: dict[str, Path] = {}
        for folder in self._folders():
            out.setdefault(_claimed(folder), folder)
        return {key: out[key] for key in sorted(out)}

    def ids(self, pattern: str = "*") -> list[str]:
        """Every `name@version`, sorted; nothing is read that `folders` does not read.

        Args:
            pattern: of names, or of `name@version`, as in a shell.
        """
        return [key for key in self.folders() if _like(key, pattern)]

    def each(self, pattern: str = "*") -> Iterator[Profile | BadInput]:
        """Every profile of every name and version, sorted, one at a time: a large store is never in memory as a whole.
        One that does not load comes as its error, whatever is wrong with it.

        Args:
            pattern: as for `ids`; other profiles are not read.
        """
        for key, folder in self.folders().items():
            if _like(key, pattern):
                yield _loaded(folder)

    def all(self) -> list[Profile | BadInput]:
        """As `each`, all at once."""
        return list(self.each())

    def get(self, spec: str) -> Profile:
        """The profile that `find` finds, loaded. Raises NotFound or BadInput."""
        return load_named(self.find(spec))

    def find(self, spec: str) -> Path:
        """The folder of the profile named `name` (the promoted version, else the newest), `name@version` or
        `name@sha256:` with at least 8 digits. Only what may be meant is read: of other names nothing, of other versions
        nothing but by hash.

        Raises:
            NotFound: nothing answers to it; some known names are listed.
            BadInput: a short hash fits several, or what might be meant by a hash does not load, or the promoted version
                is gone.
        """
        name, version, sha = parse_spec(spec)
        if name is None:
            raise NotFound(f"unknown profile {spec!r}", where="profile", fix=self._known())
        in_use = None if version or sha else next(iter(self.history(name)[-1:]), None)
        if (wanted := version or in_use) is not None and (folder := self._at(name, wanted)) is not None:
            return folder
        versions = self._versions(name)
        newest_first = [versions[v] for v in sorted(versions, key=version_key, reverse=True)]
        if in_use is not None and versions:
            raise BadInput(
                f"{name}@{in_use} was promoted and is gone",
                where=f"profile {name}",
                fix="Promote a version that is there, or put it back",
            )
        if sha is not None:
            hits = (folder for folder in newest_first if load_named(folder).sha256.startswith(sha))
            found = list(itertools.islice(hits, 1 if len(sha) == WHOLE else None))
            if len(found) > 1:
                raise BadInput(f"{spec!r} fits {len(found)} profiles", where="profile", fix="Give more digits")
            if found:
                return found[0]
        elif version is None and newest_first:
            return newest_first[0]
        have = f" (versions of {name}: {some(sorted(versions, key=version_key))})" if versions else ""
        raise NotFound(f"unknown profile {spec!r}{have}", where="profile", fix=self._known())

    def save(self, directory: Path, *, replace: bool = False) -> Profile:
        """Check the profile in `directory` and copy it, whole or not at all, into the first root.

        Raises:
            BadInput: it does not load, or its name and version are taken there by other content.
        """
        profile = load_profile(directory)
        target = self.place(profile.name, profile.version)
        if not replace and (target / FILE).is_file():
            there = load_profile(target)
            if there.sha256 == profile.sha256:
                return there
            raise BadInput(
                f"{profile.id} is already in the store with other content",
                where=str(target),
                fix="Raise the version, or ask to replace it",
            )
        with staged(target, replace=replace) as stage:
            shutil.copytree(directory, stage, dirs_exist_ok=True)
        return load_profile(target)

    def place(self, name: str, version: str) -> Path:
        """The folder that `save` uses for a name and version: the one that has them already, where there is one."""
        return self._at(name, version, self.roots[:1]) or self.roots[0] / f"{name}@{version}"

    def history(self, name: str) -> tuple[str, ...]:
        """The promoted versions of a name, the one in use last; empty where the newest version is in use."""
        return promoted(self.roots[0], name)

    def promote(self, spec: str) -> Profile:
        """Let a profile's bare name stand for this version from now on. Raises NotFound or BadInput."""
        profile = self.get(spec)
        promote(self.roots[0], profile.name, profile.version)
        return profile

    def rollback(self, name: str) -> Profile:
        """Let a name stand for what it stood for before its last promotion: the one promoted before that, or the newest
        version if none was. Raises NotFound or BadInput."""
        before = self.history(name)
        if len(before) > 1:
            self.get(f"{name}@{before[-2]}")  # what is gone cannot be gone back to
        elif before and (versions := self._versions(name)):
            load_named(versions[max(versions, key=version_key)])
        now = rollback(self.roots[0], name)
        return self.get(f"{name}@{now[-1]}" if now else name)

    def remove(self, spec: str) -> None:
        """Take a profile out of the first root. Raises NotFound, or BadInput when it is in a read-only root."""
        profile = self.get(spec)
        if profile.directory.parent != self.roots[0]:
            raise BadInput(
                f"{profile.id} is in a read-only store",
                where=str(profile.directory),
                fix="Save another version over it",
            )
        aside = profile.directory.with_name(f".{profile.directory.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        profile.directory.rename(aside)  # gone at once, even when deleting is cut short
        shutil.rmtree(aside, ignore_errors=True)

    def _at(self, name: str, version: str, roots: Sequence[Path] | None = None) -> Path | None:
        """The folder of a name and version, looked for where it must be in these roots, by default all."""
        for root in self.roots if roots is None else roots:
            bare, full = root / name, root / f"{name}@{version}"
            if os.path.isfile(bare / FILE) and read_document(bare).version == version:
                return bare
            if os.path.isfile(full / FILE):
                return full
        return None

    def _versions(self, name: str) -> dict[str, Path]:
        out: dict[str, Path] = {}
        for folder in self._folders(name):
            _, at, version = folder.name.partition("@")
            out.setdefault(version if at else read_document(folder).version, folder)
        return out

    def _folders(self, name: str | None = None) -> Iterator[Path]:
        for root in self.roots:
            if not root.is_dir():
                continue
            there = (one for one in os.listdir(root) if not one.startswith("."))
            for folder in sorted(one for one in there if name is None or one.partition("@")[0] == name):
                if os.path.isfile(root / folder / FILE):
                    yield root / folder

    def _known(self) -> str:
        names = self.names()
        return f"Known profiles: {some(names)}" if names else "There are no profiles yet: learn or load one"


def _like(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern) or fnmatchcase(key.partition("@")[0], pattern)


def _claimed(folder: Path) -> str:
    """The `name@version` that a folder must hold; its name alone where that has none and its document none either."""
    if "@" in folder.name:
        return folder.name
    try:
        return f"{folder.name}@{read_document(folder).version}"
    except BadInput:
        return folder.name


def load_named(folder: Path, **base: Any) -> Profile:
    """The profile in a folder of a store, provided that it is the one that the folder's name says.

    Args:
        base: the base model it must fit, as for `load_profile`.

    Raises:
        BadInput: it is another, or does not load.
    """
    profile = load_profile(folder, **base)
    name, at, version = folder.name.partition("@")
    claims = [("name", name, profile.name)] + ([("version", version, profile.version)] if at else [])
    for field, claimed, found in claims:
        if claimed != found:
            raise BadInput(
                f"the folder is called {claimed!r} and the profile {found!r}",
                where=f"{folder / FILE}: {field}",
                fix="Rename one of them",
            )
    return profile


def _loaded(folder: Path) -> Profile | BadInput:
    try:
        return load_named(folder)
    except BadInput as error:
        return error
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        # Nothing foresaw this one, and still it must not hide the others.
        return BadInput(f"cannot be read ({type(error).__name__}: {error})", where=str(folder), fix="Make it anew")


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """The first names of many, in words."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


_CANDIDATES = ("dev", "alpha", "beta", "pre", "preview", "rc")
"""Words of a version that is older than the one without them, the oldest first."""


def version_key(version: str) -> list[tuple[int, int, str]]:
    """Versions order as people read them: 2 before 10, 1.0 before 1.0.1, and 1.0-rc1 before 1.0."""
    key = []
    for part in re.findall(r"\d+|[^\d.]+", version):
        word = part.strip("+_-").lower()
        if part.isdecimal():
            key.append((1, int(part), ""))
        elif word in _CANDIDATES:
            key.append((-2, _CANDIDATES.index(word), part))
        else:
            key.append((0, 0, part))
    return [*key, (-1, 0, "")]  # the end: after candidates, before all else that may follow
