"""The bank: the vectors of all live profiles, in static storage that compiled code may read while rows change.

Addresses and shapes never change after construction; rows are filled and cleared in place. Row 0 is all zero and stands
for "no steering", so a token without profile gathers zeros and no branch is needed.
"""

from __future__ import annotations

import threading

import torch

from ..errors import BadInput, LimitExceeded, NotFound
from .intervention import PHASES, Phase, by_phase
from .profile import Profile


class Bank:
    """One row per live profile, for each layer and phase.

    Attributes:
        storage: [num_layers, 2, rows, hidden_size]; the second axis is the phase, in the order of `PHASES`.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        rows: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make an empty bank of `rows` rows, row 0 included, so that `rows - 1` profiles fit.

        Raises:
            BadInput: a size that leaves no room for a profile.
        """
        if num_layers < 1 or hidden_size < 1 or rows < 2:
            raise BadInput(
                f"a bank of {num_layers} layers, width {hidden_size} and {rows} rows holds nothing",
                where="bank",
                fix="Give at least 1 layer, width 1 and 2 rows (row 0 is the empty one)",
            )
        self.num_layers, self.hidden_size, self.rows = num_layers, hidden_size, rows
        self.storage = torch.zeros(num_layers, len(PHASES), rows, hidden_size, dtype=dtype, device=device)
        self._live: dict[str, int] = {}
        self._lock = threading.Lock()

    def tensor(self, layer: int, phase: Phase) -> torch.Tensor:
        """The rows of one layer and phase: a view of the storage, shape [rows, hidden_size]."""
        return self.storage[layer, PHASES.index(phase)]

    def table(self, layer: int) -> torch.Tensor:
        """Both phases of one layer as one table: a view of shape [2 * rows, hidden_size], indexed by `index`."""
        return self.storage[layer].view(len(PHASES) * self.rows, self.hidden_size)

    def index(self, row: int, phase: Phase) -> int:
        """Where `table` keeps a row: `row` for the prompt phase, `rows + row` for the generated one."""
        return PHASES.index(phase) * self.rows + row

    def put(self, sha: str, profile: Profile) -> int:
        """Make a profile live under `sha`; one that is live already keeps its row.

        Returns:
            Its row, from 1 to rows - 1.

        Raises:
            LimitExceeded: every row is taken; nothing changed.
            BadInput: the profile's layers or width do not fit this bank; nothing changed.
        """
        with self._lock:
            if sha in self._live:
                return self._live[sha]
            vectors = by_phase(profile.interventions)
            for (layer, _), vector in vectors.items():
                if layer >= self.num_layers or vector.shape != (self.hidden_size,):
                    raise BadInput(
                        f"a vector of {list(vector.shape)} at layer {layer} does not fit a model of {self.num_layers} "
                        f"layers and width {self.hidden_size}",
                        where=f"profile {profile.id}",
                        fix="Use the base model the profile was learned on",
                    )
            free = next((row for row in range(1, self.rows) if row not in self._live.values()), None)
            if free is None:
                raise LimitExceeded(
                    f"all {self.rows - 1} rows of the bank are live",
                    where=f"profile {profile.id}",
                    fix="Unload a profile first, or start the server with more rows",
                )
            for (layer, phase), vector in vectors.items():
                self.tensor(layer, phase)[free].copy_(vector)
            self._live[sha] = free
            return free

    def drop(self, sha: str) -> None:
        """Clear a profile's row and free it. Raises NotFound when it is not live."""
        with self._lock:
            row = self._row(sha)
            self.storage[:, :, row].zero_()
            del self._live[sha]

    def row(self, sha: str) -> int:
        """The row of a live profile. Raises NotFound when it is not live: steering is never skipped in silence."""
        with self._lock:
            return self._row(sha)

    def live(self) -> dict[str, int]:
        """A copy of the map from hash to row."""
        with self._lock:
            return dict(self._live)

    def _row(self, sha: str) -> int:
        try:
            return self._live[sha]
        except KeyError:
            raise NotFound(
                f"profile {sha[:12]} is not live", where="bank", fix="Load the profile before sending requests to it"
            ) from None
