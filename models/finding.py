"""What the doctor says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `fix` says what to do, where there is something to do."""

    name: str
    status: Status
    detail: str
    fix: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)
