"""Joules of the machine, where Linux lets them be read (RAPL under /sys/class/powercap); None everywhere else, never 0.

The counters cover whole processor packages with everything that runs on them; nothing is subtracted for idling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass
class EnergyMeter:
    """Counts from its making on. Read it at least every few minutes: the counters wrap around.

    Args:
        root: the powercap folder; tests give their own.
    """

    root: Path = POWERCAP
    _joules: float = field(default=0.0, init=False)
    _last: dict[Path, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._last = self._counters()

    def joules(self) -> float | None:
        """Energy since the meter was made; None if a package cannot be read, now or at any time before."""
        now = self._counters()
        if self._last is None or now is None or now.keys() != self._last.keys():
            self._last = None
            return None
        for zone, value in now.items():
            step = value - self._last[zone]
            if step < 0:
                span = _number(zone / "max_energy_range_uj")
                if span is None:
                    self._last = None
                    return None
                step += span
            self._joules += step / 1e6
        self._last = now
        return self._joules

    def _counters(self) -> dict[Path, int] | None:
        # Only whole packages (intel-rapl:0, also on AMD): cores and memory are parts of them, psys holds them again.
        found: dict[Path, int] = {}
        for zone in sorted(self.root.glob("intel-rapl:*")):
            if zone.name.count(":") != 1 or not _text(zone / "name").startswith("package"):
                continue
            value = _number(zone / "energy_uj")
            if value is None:
                return None
            found[zone] = value
        return found or None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
