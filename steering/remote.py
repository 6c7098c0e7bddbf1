"""Profiles in a shared place: any folder or URL that fsspec opens (`s3://`, `gs://`, `memory://`, a path).

A remote holds blobs named by the SHA-256 of their bytes, and one manifest a profile that lists its files:

    blobs/<sha256>
    profiles/<name>@<version>.json

A push writes the blobs that are missing, then the manifest, so a profile is there whole or not at all, and profiles
that share an adapter share its bytes. A pull trusts nothing: paths stay inside, every blob is hashed as it arrives,
and the profile must have the identity that the manifest names.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BadInput, NotFound, TrimtabError
from ..home import file_sha256
from .document import FILE, Sha256
from .files import MAX_TEXT, PICKLES, first_problem, inside
from .profile import Profile, load_profile
from .store import ProfileStore, parse_spec, some, version_key

TAKEN = frozenset({".yaml", ".json", ".safetensors", ".md", ".txt"})
"""File endings that travel with a profile."""
MOST_FILES = 1000
AGAIN = "Push the profile again, and ask to replace it"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Blob(_Strict):
    """A file of a profile: the SHA-256 and the number of its bytes."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class Manifest(_Strict):
    """What a remote says of a profile; `sha256` is the profile's identity."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=50)]
    sha256: Sha256
    files: Annotated[dict[str, Blob], Field(min_length=1, max_length=MOST_FILES)]

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(blob.size for blob in self.files.values())


@dataclass(frozen=True)
class Pushed:
    """What a push did: blobs written and their bytes, blobs that were there already; `changed` is False when the very
    profile was there."""

    manifest: Manifest
    written: int
    bytes: int
    there: int
    changed: bool


class Remote:
    """A shared place of profiles."""

    def __init__(self, url: str, **options: Any) -> None:
        """Open a place.

        Args:
            url: a folder's path, or a URL with a protocol that fsspec knows.
            options: of fsspec's file system, such as credentials.

        Raises:
            BadInput: fsspec cannot open such a URL; a package for its protocol may be missing.
        """
        import fsspec

        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **options)
        except Exception as error:  # a file system is anybody's program and raises what it likes
            raise BadInput(
                str(error) or type(error).__name__, where=url, fix="Give a folder or a URL that fsspec opens"
            ) from None

    def ids(self) -> list[str]:
        """The `name@version` of each manifest there is, by name and version. None is read, so some may be broken.

        Raises:
            BadInput: the place cannot be read.
        """
        with _reported(self.url):
            folder = self._path("profiles")
            paths = self._files.ls(folder, detail=False) if self._files.isdir(folder) else []
        files = [str(path).rsplit("/", 1)[-1] for path in paths]
        return sorted((file.removesuffix(".json") for file in files if file.endswith(".json")), key=_order)

    def all(self) -> list[Manifest | BadInput]:
        """The profiles there are, by name and version; one whose manifest is broken comes as its error.

        Raises:
            BadInput: the place cannot be read.
        """
        return [self._checked(key) for key in self.ids()]

    def find(self, spec: str) -> Manifest:
        """The profile `name` (its newest version), `name@version` or `name@sha256:` with at least 8 digits. No manifest
        of another name is read, and by version none of another version.

        Raises:
            NotFound: there is none; some of what there is are listed.
            BadInput: its manifest is broken, or what might be meant by a hash is.
        """
        name, version, sha = parse_spec(spec)
        known = self.ids()
        fitting = [key for key in known if _parts(key)[0] == name and version in (None, _parts(key)[1])]
        if sha is None and fitting:
            return self._manifest(fitting[-1])
        found = [self._checked(key) for key in fitting]
        for manifest in reversed(found):
            if sha is not None and isinstance(manifest, Manifest) and manifest.sha256.startswith(sha):
                return manifest
        for broken in found:
            if isinstance(broken, BadInput):
                raise broken
        raise NotFound(f"unknown profile {spec!r}", where=self.url, fix=f"There is: {some(known) or 'nothing'}")

    def push(self, profile: Profile, *, replace: bool = False) -> Pushed:
        """Put a profile there as it is on disk now, whole or not at all.

        Args:
            replace: whether other content under its name and version may go. Files that are there are then written
                anew, as they may be damaged.

        Raises:
            BadInput: its name and version are taken by other content, or by a broken manifest, and `replace` is not
                set, or the place cannot be written.
        """
        profile = load_profile(profile.directory)  # what travels is what is checked, not what was read some time ago
        manifest = Manifest(name=profile.name, version=profile.version, sha256=profile.sha256, files=_files(profile))
        target = self._path(f"profiles/{manifest.id}.json")
        with _reported(self.url):
            taken = self._files.isfile(target)
        there = self._checked(manifest.id) if taken else None
        if isinstance(there, BadInput):
            if not replace:
                raise there
            there = None  # whatever it was, it goes
        if there is not None and there.sha256 != manifest.sha256 and not replace:
            raise BadInput(
                f"{manifest.id} is there with other content ({there.sha256[:12]}, not {manifest.sha256[:12]})",
                where=self.url,
                fix="Raise the version, or ask to replace it",
            )
        written = size = known = 0
        with _reported(self.url):
            for relative, blob in manifest.files.items():
                place = self._path(f"blobs/{blob.sha256}")
                if not replace and self._files.isfile(place) and self._files.size(place) == blob.size:
                    known += 1
                    continue
                self._put((profile.directory / relative).read_bytes(), place)
                written, size = written + 1, size + blob.size
            changed = there != manifest
            if changed:
                self._put(manifest.model_dump_json(indent=2).encode() + b"\n", target)
        return Pushed(manifest, written, size, known, changed)

    def pull(self, spec: str, store: ProfileStore, *, replace: bool = False) -> Profile:
        """Fetch a profile into a store's first root, whole or not at all.

        Raises:
            NotFound: there is no such profile.
            BadInput: what arrives is not what the manifest says, or the store has other content under that name.
        """
        manifest = self.find(spec)
        with tempfile.TemporaryDirectory(prefix="trimtab-pull-") as folder:
            stage = Path(folder).resolve()
            for relative, blob in manifest.files.items():
                self._fetch(relative, blob, stage)
            try:
                profile = load_profile(stage)
            except BadInput as error:  # name the profile, not the passing place
                place = (error.where or "").replace(str(stage), f"{self.url}: {manifest.id}")
                raise BadInput(error.what, where=place or self.url, fix=error.fix) from None
            if (profile.id, profile.sha256) != (manifest.id, manifest.sha256):
                raise BadInput(
                    f"what arrived is {profile.id} {profile.sha256[:12]}, not {manifest.id} {manifest.sha256[:12]}",
                    where=self.url,
                    fix=AGAIN,
                )
            return store.save(stage, replace=replace)

    def _fetch(self, relative: str, blob: Blob, stage: Path) -> None:
        where = f"{self.url}: {relative}"
        path = inside(stage, relative, where)
        if path.suffix.lower() not in TAKEN or path.suffix.lower() in PICKLES:
            raise BadInput(f"a {path.suffix or 'nameless'} file does not belong to a profile", where=where)
        with _reported(where):
            data: bytes = self._files.cat_file(self._path(f"blobs/{blob.sha256}"), end=blob.size + 1)
        if len(data) != blob.size or hashlib.sha256(data).hexdigest() != blob.sha256:
            raise BadInput("what arrived is not what was pushed", where=where, fix=AGAIN)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:  # a name too long, or of a file and a folder at once; or the disk is full
            raise BadInput(
                f"cannot be written here ({error.strerror})", where=where, fix="Check it, and the disk"
            ) from None

    def _manifest(self, key: str) -> Manifest:
        """The manifest of a `name@version`. Raises BadInput."""
        where = f"{self.url}: {key}.json"
        with _reported(where):
            data: bytes = self._files.cat_file(self._path(f"profiles/{key}.json"), end=MAX_TEXT + 1)
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            raise BadInput(first_problem(error), where=where, fix=AGAIN) from None
        if key != manifest.id:
            raise BadInput(f"is the manifest of {manifest.id}", where=where, fix=AGAIN)
        return manifest

    def _checked(self, key: str) -> Manifest | BadInput:
        try:
            return self._manifest(key)
        except BadInput as error:
            return error

    def _put(self, data: bytes, path: str) -> None:
        """Write a file so that a reader sees all of it or nothing: object stores do so, folders by a rename."""
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if "file" not in _protocols(self._files):
            self._files.pipe_file(path, data)
            return
        passing = f"{path}.{uuid.uuid4().hex}.part"
        try:
            self._files.pipe_file(passing, data)
            os.replace(passing, path)
        finally:
            Path(passing).unlink(missing_ok=True)

    def _path(self, relative: str) -> str:
        return f"{self._root.rstrip('/')}/{relative}"


def _parts(key: str) -> tuple[str, str]:
    """Name and version in `name@version`."""
    name, _, version = key.partition("@")
    return name, version


def _order(key: str) -> tuple[str, list[tuple[int, int, str]]]:
    name, version = _parts(key)
    return name, version_key(version)


def _protocols(files: Any) -> tuple[str, ...]:
    found = files.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _files(profile: Profile) -> Mapping[str, Blob]:
    """The files of a profile that travel, by their paths below its folder: those that it names, and those that lie
    beside them and are not hidden."""
    directory, document = profile.directory, profile.document
    named = {one.file for one in (*document.interventions, document.gate) if one is not None}
    needed = {PurePosixPath(file) for file in named}  # which may be spelt `./v.safetensors`
    found: dict[str, Blob] = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            relative = path.relative_to(directory).as_posix()
            hidden = name.startswith(".") and PurePosixPath(relative) not in needed
            if hidden or path.suffix.lower() not in TAKEN:
                continue
            inside(directory, relative, str(directory / FILE))  # a link out of the profile is refused
            found[relative] = Blob(sha256=file_sha256(path), size=path.stat().st_size)
    if len(found) > MOST_FILES:
        raise BadInput(f"{len(found)} files are too many (at most {MOST_FILES})", where=str(directory))
    return dict(sorted(found.items()))


@contextmanager
def _reported(where: str) -> Iterator[None]:
    """Turns what a file system may raise into BadInput that names the place."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput("a file is missing", where=where, fix="Push the profile again") from None
    except TrimtabError:
        raise
    except Exception as error:  # a file system is anybody's program and raises what it likes
        raise BadInput(f"cannot be used ({error})", where=where, fix="Check the URL and your rights") from None
