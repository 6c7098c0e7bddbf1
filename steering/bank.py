"""The bank: what all live profiles do at every layer, in static storage that compiled code may read while rows change.

Addresses and shapes never change after construction; rows and columns are filled and cleared in place. A profile takes
one row for each set of its tokens that is treated alike (`Variants`), and columns for its rank-1 terms. Row 0 is all
zero and stands for "no steering", so a token without profile gathers zeros and no branch is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch

from ..errors import BadInput, LimitExceeded, NotFound
from .intervention import Edit, Gate, LowRank, Variants, variants
from .kernel import GateTable, LayerTable, TermTable
from .profile import Profile
from .scope import Place

_FREE = {"bias": 0.0, "low": 0.0, "high": 0.0, "keep": 0.0, "threshold": torch.inf}
"""A column that is not taken: whatever it reads, it adds nothing."""


@dataclass(frozen=True, eq=False)
class Held:
    """What a live profile takes up in a bank: its rows, and by layer the columns of its terms."""

    place: Place
    columns: Mapping[int, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Reserved:
    """Room that is taken in a bank, and the edits and the condition that are still to be written there."""

    held: Held
    wanted: Variants
    gate: Gate | None


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
        self._held: dict[str, Held] = {}
        self._rows: set[int] = set()
        self._columns: list[set[int]] = [set() for _ in range(num_layers)]
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
            if sha in self._held:
                return self._held[sha].place
            reserved = self._reserve(sha, name, wanted, gate)
            self.write(reserved)
            return reserved.held.place

    def reserve(self, sha: str, profile: Profile) -> Reserved:
        """As `put`, for a profile that is not live, but that what the layers read stays as it is until `write`: this
        may be done while they run.

        Raises:
            BadInput: it is live; as `put`.
            LimitExceeded: as `put`.
        """
        with self._lock:
            if sha in self._held:
                raise BadInput("it has its place in the bank", where=f"profile {profile.id}", fix="Load it once")
            return self._reserve(sha, profile.id, variants(profile.interventions), profile.gate)

    def _reserve(self, sha: str, name: str, wanted: Variants, gate: Gate | None) -> Reserved:
        self._check(name, wanted, gate)
        free = [row for row in range(1, self.rows) if row not in self._rows]
        if len(free) < len(wanted.edits):
            raise LimitExceeded(
                f"{len(free)} of the bank's {self.rows - 1} rows are free, {len(wanted.edits)} are needed",
                where=f"profile {name}",
                fix="Unload a profile first, or start the server with more rows",
            )
        columns = {layer: self._free_columns(name, layer, wanted) for layer in wanted.layers}
        rows = dict(zip(wanted.edits, free, strict=False))
        place = Place(wanted.scopes, rows, wanted.layers, reads=any(columns.values()))
        if gate is not None:
            place = replace(place, gate_layer=gate.layer, hold=gate.hold)
        held = self._held[sha] = Held(place, columns)
        self._rows.update(rows.values())
        for layer, taken in columns.items():
            self._columns[layer].update(taken)
        return Reserved(held, wanted, gate)

    def write(self, reserved: Reserved) -> None:
        """Write what belongs in reserved room. Not while a layer may be running: a term whose column is half written
        would act on others' tokens."""
        free = {layer: list(columns) for layer, columns in reserved.held.columns.items()}
        for mask, edits in reserved.wanted.edits.items():
            row = reserved.held.place.rows[mask]
            for layer, edit in edits.items():
                self._write(layer, row, edit, free[layer])
            if reserved.gate is not None:
                self._write_gate(reserved.gate, row)

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

    def _free_columns(self, name: str, layer: int, wanted: Variants) -> list[int]:
        """Free columns at a layer, as many as a profile needs there."""
        need = sum(_rank(edits.get(layer)) for edits in wanted.edits.values())
        free = [column for column in range(self.columns) if column not in self._columns[layer]]
        if need > len(free):
            raise LimitExceeded(
                f"{len(free)} of the bank's {self.columns} rank-1 terms are free at layer {layer}, {need} are needed",
                where=f"profile {name}",
                fix="Unload a profile first, or start the server with room for more terms",
            )
        return free[:need]

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
        gates = self._gates(gate.layer)
        vector = gate.vector.to(torch.float64)  # whose square is a number, however long or short it is
        gates.vector[row].copy_(vector / vector.norm())
        gates.threshold[row] = gate.threshold
        gates.sign[row] = 1.0 if gate.above else -1.0

    def _gates(self, layer: int) -> GateTable:
        gates = self._tables[layer].gates
        assert gates is not None  # checked
        return gates

    def drop(self, sha: str) -> None:
        """Clear a profile's rows and columns and free them. Raises NotFound when it is not live."""
        with self._lock:
            gone = self._found(sha)
            rows = list(gone.place.rows.values())
            self.add[:, rows] = 0
            for layer, columns in gone.columns.items():
                self._clear(self._tables[layer].terms, list(columns))
                self._columns[layer].difference_update(columns)
            if gone.place.gate_layer is not None:
                gates = self._gates(gone.place.gate_layer)
                gates.vector[rows] = 0
                gates.threshold[rows] = 0
                gates.sign[rows] = 0
            self._rows.difference_update(rows)
            del self._held[sha]

    def _clear(self, terms: TermTable | None, columns: list[int]) -> None:
        if terms is None or not columns:
            return
        terms.owner[columns] = 0
        terms.read[columns] = 0
        terms.write[columns] = 0
        for name, value in _FREE.items():
            getattr(terms, name)[columns] = value

    def place(self, sha: str) -> Place:
        """Where a live profile stands. Raises NotFound when it is not live: steering is never skipped in silence."""
        with self._lock:
            return self._found(sha).place

    def live(self) -> dict[str, Place]:
        """A copy of the map from hash to place."""
        with self._lock:
            return {sha: held.place for sha, held in self._held.items()}

    @property
    def rows_used(self) -> int:
        """How many rows are taken, of `rows - 1`."""
        return len(self._rows)

    def _found(self, sha: str) -> Held:
        try:
            return self._held[sha]
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
