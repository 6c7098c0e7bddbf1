"""Where Trimtab keeps what it writes, and how it writes: whole files or nothing."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BadInput


def home() -> Path:
    """The folder for journals, logs, downloaded and learned profiles: `TRIMTAB_HOME`, or the user's data folder."""
    chosen = os.environ.get("TRIMTAB_HOME")
    if chosen:
        return expanded(chosen, "TRIMTAB_HOME")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "trimtab"


def expanded(path: str | Path, where: str) -> Path:
    """A path that may begin with `~`. Raises BadInput where that is no user's folder.

    Args:
        where: what gave it, for the error.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BadInput(f"{str(path)!r} is below no user's folder", where=where, fix="Give the whole path") from None


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and never half of one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # temporary files are private; what they become is not
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def swap_folders(one: Path, other: Path) -> None:
    """Let two folders on one disk change names, in one step: no crash leaves either name without a folder.

    Raises:
        OSError: one is missing, or this system or disk cannot do it in one step.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, "no renameat2 here") from None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def indexed_shards(index: Path, weight_map: Mapping[str, Any]) -> list[Path]:
    """The files beside an index of a model's weights that its `weight_map` names, each once, in order.

    Raises:
        BadInput: one is missing, or not beside it.
    """
    shards = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise BadInput(f"shard {name!r} is missing", where=f"{index}: weight_map", fix="Download the model again")
        shards.append(index.parent / name)
    return shards


def listed_sha256(files: Sequence[Path], sha256: Callable[[Path], str]) -> str:
    """One SHA-256 for several files: of the lines `name sha256`."""
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()
