"""The profile store: folders of profiles, found by name, version or hash."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import BadInput, NotFound
from .document import FILE, read_document
from .profile import Profile, load_profile, staged
from .promotion import promote, promoted, rollback

_SPEC = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?:sha256:(?P<sha>[0-9a-f]{8,64})|(?P<version>[^@:/\s]+)))?$")


def parse_spec(spec: str) -> tuple[str | None, str | None, str | None]:
    """Name, version and first digits of the hash in `name`, `name@version` or `name@sha256:...`; all None for other
    text."""
    match = _SPEC.match(spec)
    return (None, None, None) if match is None else (match["name"], match["version"], match["sha"])


class ProfileStore:
    """Profiles below some roots, each in a folder `<name>` or `<name>@<version>`.

    The first root takes new profiles; later ones (such as those shipped with the package) are only read. An earlier
    root hides the same name and version in a later one.
    """

    def __init__(self, *roots: Path) -> None:
        if not roots:
            raise BadInput("a profile store needs at least one folder", where="ProfileStore")
        self.roots = tuple(Path(root) for root in roots)

    def names(self) -> list[str]:
        """The names there are, sorted, broken profiles included."""
        return sorted({folder.name.partition("@")[0] for folder in self._folders()})

    def all(self) -> list[Profile | BadInput]:
        """Every profile of every name and version, sorted; one that does not load stands there as its error."""
        out: dict[str, Profile | BadInput] = {}
        for folder in self._folders():
            try:
                profile = load_profile(folder)
                out.setdefault(profile.id, profile)
            except BadInput as error:
                out.setdefault(str(folder), error)
        return [out[key] for key in sorted(out)]

    def get(self, spec: str) -> Profile:
        """The profile named `name` (the promoted version, else the newest), `name@version` or `name@sha256:` with at
        least 8 digits.

        Raises:
            NotFound: nothing answers to it; the known names are listed.
            BadInput: it is there and does not load, or a short hash fits several, or the promoted version is gone.
        """
        name, version, sha = parse_spec(spec)
        if name is None:
            raise NotFound(f"unknown profile {spec!r}", where="profile", fix=self._known())
        versions: dict[str, Path] = {}
        for folder in self._folders(name):
            document = read_document(folder)
            if document.name != name:
                raise BadInput(
                    f"the folder is called {name!r} and the profile {document.name!r}",
                    where=f"{folder / FILE}: name",
                    fix="Rename one of them",
                )
            versions.setdefault(document.version, folder)
        if version is None and sha is None and (in_use := self.history(name)[-1:]):
            version = in_use[0]
            if versions and version not in versions:
                raise BadInput(
                    f"{name}@{version} was promoted and is gone",
                    where=f"profile {name}",
                    fix="Promote a version that is there, or put it back",
                )
        if version is not None:
            chosen = [versions[version]] if version in versions else []
        else:
            chosen = [versions[v] for v in sorted(versions, key=version_key, reverse=True)]
        if sha is None:
            if chosen:
                return load_profile(chosen[0])
        else:
            found = [p for p in map(load_profile, chosen) if p.sha256.startswith(sha)]
            if len(found) > 1:
                raise BadInput(f"{spec!r} fits {len(found)} profiles", where="profile", fix="Give more digits")
            if found:
                return found[0]
        have = f" (versions of {name}: {', '.join(sorted(versions, key=version_key))})" if versions else ""
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
        """The folder that `save` uses for a name and version."""
        return self.roots[0] / f"{name}@{version}"

    def history(self, name: str) -> tuple[str, ...]:
        """The promoted versions of a name, the one in use last; empty where the newest version is in use."""
        return promoted(self.roots[0], name)

    def promote(self, spec: str) -> Profile:
        """Let a profile's bare name stand for this version from now on. Raises NotFound or BadInput."""
        profile = self.get(spec)
        promote(self.roots[0], profile.name, profile.version)
        return profile

    def rollback(self, name: str) -> Profile:
        """Let a name stand for what it stood for before its last promotion. Raises NotFound or BadInput."""
        before = self.history(name)
        if len(before) > 1:
            self.get(f"{name}@{before[-2]}")  # what is gone cannot be gone back to
        return self.get(f"{name}@{rollback(self.roots[0], name)[-1]}")

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

    def _folders(self, name: str | None = None) -> Iterator[Path]:
        for root in self.roots:
            if not root.is_dir():
                continue
            for folder in sorted(root.iterdir()):
                shown = not folder.name.startswith(".") and (folder / FILE).is_file()
                if shown and (name is None or folder.name.partition("@")[0] == name):
                    yield folder

    def _known(self) -> str:
        names = self.names()
        return f"Known profiles: {', '.join(names)}" if names else "There are no profiles yet: learn or load one"


def version_key(version: str) -> list[tuple[int, int, str]]:
    """Versions order as people read them: 2 before 10, 1.0 before 1.0.1."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
