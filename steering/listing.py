"""Printing profiles, for people and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from .document import dump_document
from .intervention import Edit, fold
from .profile import Profile
from .store import ProfileStore

if TYPE_CHECKING:
    from rich.console import Console

PIPE = 10_000
"""Columns of a line that goes to a file or another program, where nothing has to fit a screen."""

WHOLE = ("profile", "base", "sha256")
"""What the list never cuts or breaks over lines: a reader copies it."""
REST = 36
"""Columns of the screen that the rest of the list needs at least."""


def console_for(least: int = 0) -> Console:
    """The standard output, as wide as its screen, but at least this wide; wider than any line where it is none."""
    from rich.console import Console, ConsoleDimensions

    console = Console()
    width, height = console.size
    console.size = ConsoleDimensions(max(width, least) if console.is_terminal else PIPE, height)
    return console


def describe(profile: Profile) -> dict[str, Any]:
    """A profile as JSON-ready fields."""
    return {
        "name": profile.name,
        "version": profile.version,
        "description": profile.description,
        "sha256": profile.sha256,
        "base": {"model": profile.base_model, "sha256": profile.base_sha256},
        "adapter": profile.adapter is not None,
        "layers": list(profile.layers),
        "weight_deltas": [delta.strength for delta in profile.deltas],
        "decoding": profile.decoding.model_dump(exclude_none=True),
        "directory": str(profile.directory),
    }


def print_list(store: ProfileStore, *, as_json: bool, pattern: str = "*", ids: bool = False) -> None:
    """The profiles of a store; one that does not load is listed with its error. Only what is printed is kept.

    Args:
        pattern: as for `ProfileStore.each`.
        ids: print `name@version` alone, for which no profile is read.
    """
    if ids:
        found = store.ids(pattern)
        print(json.dumps({"profiles": found}) if as_json else "\n".join(found))
        return
    profiles = store.each(pattern)
    if as_json:
        told = [p.as_dict() | {"broken": True} if isinstance(p, BadInput) else describe(p) for p in profiles]
        print(json.dumps({"profiles": told}))
        return
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table, least = Table(box=None, header_style="bold", pad_edge=False), REST
    broken: list[BadInput] = []
    rows: list[dict[str, str]] = []
    for profile in profiles:
        if isinstance(profile, BadInput):
            broken.append(profile)
            continue
        rows.append(
            {
                "profile": profile.id,
                "base": profile.base_model,
                "adapter": "yes" if profile.adapter is not None else "",
                "layers": ", ".join(map(str, profile.layers)),
                "weight deltas": ", ".join(f"{delta.strength:g}" for delta in profile.deltas),
                "sha256": profile.sha256[:12],
                "about": " ".join(profile.description.split()),
            }
        )
    for heading in rows[0] if rows else ():
        whole = heading in WHOLE
        table.add_column(heading, no_wrap=whole, overflow="fold")
        least += max(cell_len(row[heading]) for row in rows) + 2 if whole else 0
    for row in rows:
        *cells, about = (Text(cell) for cell in row.values())
        about.no_wrap, about.overflow = True, "ellipsis"  # one line a profile: `show` has all of it
        table.add_row(*cells, about)
    console = console_for(least)
    console.print(table if table.row_count else f"No profiles below {', '.join(map(str, store.roots))}.")
    for error in broken:
        console.print(f"[red]broken[/red] {escape(str(error))}")


def _rank(edit: Edit) -> int:
    return 0 if edit.low_rank is None else edit.low_rank.rank


def print_profile(profile: Profile, *, as_json: bool) -> None:
    """All about one profile: its YAML, its hash, and the norm of what it adds at each layer."""
    scopes = dict.fromkeys(part.scope for part in profile.interventions)
    edits = sorted(
        (layer, str(scope), None if edit.vector is None else float(edit.vector.norm()), _rank(edit))
        for scope in scopes
        for layer, edit in fold(part for part in profile.interventions if part.scope == scope).items()
    )
    if as_json:
        document = profile.document.model_dump(mode="json")
        added = [{"layer": n, "tokens": tokens, "norm": norm, "rank": rank} for n, tokens, norm, rank in edits]
        print(json.dumps({**describe(profile), "added": added, "document": document}))
        return
    from rich.markup import escape
    from rich.syntax import Syntax

    console = console_for()
    console.print(f"[bold]{profile.id}[/bold]  {escape(str(profile.directory))}")
    console.print(f"sha256 {profile.sha256}", highlight=False)
    for layer, tokens, norm, rank in edits:
        what = [] if norm is None else [f"adds a vector of norm {norm:.4g}"]
        what += [f"edits in {rank} dimension{'s' if rank > 1 else ''}"] if rank else []
        console.print(f"layer {layer}: {' and '.join(what)}; tokens: {escape(tokens)}", highlight=False)
    if profile.gate is not None:
        side = "above" if profile.gate.above else "at or below"
        once = "once, at the end of the prompt" if profile.gate.hold else "at each token"
        console.print(
            f"only where the cosine at layer {profile.gate.layer} is {side} {profile.gate.threshold:g}, {once}"
        )
    console.print(Syntax(dump_document(profile.document), "yaml", background_color="default", word_wrap=True))
