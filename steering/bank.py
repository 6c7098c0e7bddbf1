"""The bank: what all live profiles do at every layer, in static storage that compiled code may read while rows change.

Addresses and shapes never change after construction; rows and columns are filled and cleared in place. A profile takes
one row for each set of its tokens that is treated alike (`Variants`), and columns for its rank-1 terms. Row 0 is all
zero and stands for "no steering", so a token without profile gathers zeros and no branch is needed.
"""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import torch

from ..errors import BadInput, LimitExceeded, NotFound
from .intervention import Edit, Gate, LowRank, Variants, variants
from .kernel import GateTable, LayerTable, TermTable
from .profile import Profile
from .scope import Place

_FREE = {"bias": 0.0, "low": 0.0, "high": 0.0, "keep": 0.0, "threshold": torch.inf}
"""A column that is not taken: whatever it reads, it adds nothing."""


class Bank:
    """Rows, and columns of rank-1 terms, for live profiles.

    Attributes:
        add: [num_layers, rows, hidden_size], the added vectors.
        columns: how many rank-1 terms fit at each layer; 0 for a bank that takes none.
        gated: whether conditions fit.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        rows: int,
        *,
        columns: int = 0,
        gated: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make an empty bank of `rows` rows, row 0 included.

        Raises:
            BadInput: a size that leaves no room for a profile.
        """
        if num_layers < 1 or hidden_size < 1 or rows < 2 or columns < 0:
            raise BadInput(
                f"a bank of {num_layers} layers, width {hidden_size} and {rows} rows holds nothing",
                where="bank",
                fix="Give at least 1 layer, width 1 and 2 rows (row 0 is the empty one)",
            )
        self.num_layers, self.hidden_size, self.rows = num_layers, hidden_size, rows
        self.columns, self.gated = columns, gated
        self.add = torch.zeros(num_layers, rows, hidden_size, dtype=dtype, device=device)
        self._tables = [self._table(layer, device) for layer in range(num_layers)]
        self._live: dict[str, Place] = {}
        self._taken: set[int] = set()
        self._lock = threading.Lock()

    def _table(self, layer: int, device: torch.device | str) -> LayerTable:
        c, h, rows = self.columns, self.hidden_size, self.rows
        terms = gates = None
        if c:
            shared = {name: torch.full((c,), value, device=device) for name, value in _FREE.items()}
            terms = TermTable(
                torch.zeros(c, h, device=device),
                torch.zeros(c, h, device=device),
                owner=torch.zeros(c, dtype=torch.int64, device=device),
                **shared,
            )
        if self.gated:
            zeros = (torch.zeros(rows, device=device) for _ in range(2))
            gates = GateTable(torch.zeros(rows, h, device=device), *zeros)
        return LayerTable(self.add[layer], terms, gates)

    def table(self, layer: int) -> LayerTable:
        """What the kernel reads at a layer: views of the storage."""
        return self._tables[layer]

    def put(self, sha: str, profile: Profile) -> Place:
        """Make a profile live under `sha`; one that is live already keeps its place.

        Raises:
            LimitExceeded: there are not enough rows or columns left; nothing changed.
            BadInput: the profile does not fit this bank: layers, width, or a kind it was not made for; nothing changed.
        """
        return self.add_variants(sha, profile.id, variants(profile.interventions), profile.gate)

    def add_variants(self, sha: str, name: str, wanted: Variants, gate: Gate | None) -> Place:
        """As `put`, for interventions that are folded already; `name` is for errors."""
        with self._lock:
            return self._live[sha] if sha in self._live else self._put(sha, name, wanted, gate)

    def _put(self, sha: str, name: str, wanted: Variants, gate: Gate | None) -> Place:
        self._check(name, wanted, gate)
        free = [row for row in range(1, self.rows) if row not in self._taken]
        if len(free) < len(wanted.edits):
            raise LimitExceeded(
                f"{len(free)} of the bank's {self.rows - 1} rows are free, {len(wanted.edits)} are needed",
                where=f"profile {name}",
                fix="Unload a profile first, or start the server with more rows",
            )
        rows = dict(zip(wanted.edits, free, strict=False))
        columns = self._columns(name, wanted)
        for mask, edits in wanted.edits.items():
            for layer, edit in edits.items():
                self._write(layer, rows[mask], edit, columns[layer])
            if gate is not None:
                self._write_gate(gate, rows[mask])
        place = Place(wanted.scopes, rows, wanted.layers, reads=terms_needed(wanted) > 0)
        if gate is not None:
            place = replace(place, gate_layer=gate.layer, hold=gate.hold)
        self._live[sha] = place
        self._taken.update(rows.values())
        return place

    def _check(self, name: str, wanted: Variants, gate: Gate | None) -> None:
        where = f"profile {name}"
        shapes = [
            (layer, shape) for edits in wanted.edits.values() for layer, e in edits.items() for shape in _widths(e)
        ]
        if gate is not None:
            shapes.append((gate.layer, gate.vector.shape[-1]))
        for layer, width in shapes:
            if layer >= self.num_layers or width != self.hidden_size:
                raise BadInput(
                    f"an intervention of width {width} at layer {layer} does not fit a model of {self.num_layers} "
                    f"layers and width {self.hidden_size}",
                    where=where,
                    fix="Use the base model the profile was learned on",
                )
        if gate is not None and not self.gated:
            raise BadInput("there is no room for a condition", where=where, fix="Start the server with room for gates")

    def _columns(self, name: str, wanted: Variants) -> dict[int, list[int]]:
        """Free columns at each layer, as many as the profile needs there; they are handed out as terms are written."""
        out: dict[int, list[int]] = {}
        for layer in wanted.layers:
            terms = self._tables[layer].terms
            need = sum(_rank(edits.get(layer)) for edits in wanted.edits.values())
            free = [] if terms is None else (terms.owner == 0).nonzero().flatten().tolist()
            if need > len(free):
                raise LimitExceeded(
                    f"{len(free)} of the bank's {self.columns} rank-1 terms are free at layer {layer}, "
                    f"{need} are needed",
                    where=f"profile {name}",
                    fix="Unload a profile first, or start the server with room for more terms",
                )
            out[layer] = free[:need]
        return out

    def _write(self, layer: int, row: int, edit: Edit, free: list[int]) -> None:
        table = self._tables[layer]
        if edit.vector is not None:
            table.add[row].copy_(edit.vector)
        if edit.low_rank is None or table.terms is None:
            return
        for number in range(edit.low_rank.rank):
            column = free.pop(0)
            for one in fields(LowRank):
                getattr(table.terms, one.name)[column] = getattr(edit.low_rank, one.name)[number]
            table.terms.owner[column] = row

    def _write_gate(self, gate: Gate, row: int) -> None:
        gates = self._tables[gate.layer].gates
        assert gates is not None  # checked
        gates.vector[row].copy_(gate.vector / gate.vector.norm())
        gates.threshold[row] = gate.threshold
        gates.sign[row] = 1.0 if gate.above else -1.0

    def drop(self, sha: str) -> None:
        """Clear a profile's rows and columns and free them. Raises NotFound when it is not live."""
        with self._lock:
            rows = list(self._place(sha).rows.values())
            self.add[:, rows] = 0
            for table in self._tables:
                if table.terms is not None:
                    gone = torch.isin(table.terms.owner, torch.tensor(rows, device=table.terms.owner.device))
                    table.terms.owner[gone] = 0
                    table.terms.read[gone] = 0
                    table.terms.write[gone] = 0
                    for name, value in _FREE.items():
                        getattr(table.terms, name)[gone] = value
                if table.gates is not None:
                    table.gates.vector[rows] = 0
                    table.gates.threshold[rows] = 0
                    table.gates.sign[rows] = 0
            self._taken.difference_update(rows)
            del self._live[sha]

    def place(self, sha: str) -> Place:
        """Where a live profile stands. Raises NotFound when it is not live: steering is never skipped in silence."""
        with self._lock:
            return self._place(sha)

    def live(self) -> dict[str, Place]:
        """A copy of the map from hash to place."""
        with self._lock:
            return dict(self._live)

    @property
    def rows_used(self) -> int:
        """How many rows are taken, of `rows - 1`."""
        return len(self._taken)

    def _place(self, sha: str) -> Place:
        try:
            return self._live[sha]
        except KeyError:
            raise NotFound(
                f"profile {sha[:12]} is not live", where="bank", fix="Load the profile before sending requests to it"
            ) from None


def terms_needed(wanted: Variants) -> int:
    """How many columns a profile takes at the layer where it takes most."""
    return max((sum(_rank(edits.get(layer)) for edits in wanted.edits.values()) for layer in wanted.layers), default=0)


def _rank(edit: Edit | None) -> int:
    return 0 if edit is None or edit.low_rank is None else edit.low_rank.rank


def _widths(edit: Edit) -> list[int]:
    """The widths of an edit's tensors; -1 for a vector that is none."""
    out = []
    if edit.vector is not None:
        out.append(edit.vector.numel() if edit.vector.dim() == 1 else -1)
    if edit.low_rank is not None:
        out.append(edit.low_rank.read.shape[-1])
    return out
