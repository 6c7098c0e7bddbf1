"""Printing profiles, for people and as JSON."""

from __future__ import annotations

import json
from typing import Any

from ..errors import BadInput
from .document import dump_document
from .intervention import Edit, fold
from .profile import Profile
from .store import ProfileStore


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
        rows = [p.as_dict() | {"broken": True} if isinstance(p, BadInput) else describe(p) for p in profiles]
        print(json.dumps({"profiles": rows}))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("profile", "base", "adapter", "layers", "weight deltas", "sha256", "description")
    broken = []
    for profile in profiles:
        if isinstance(profile, BadInput):
            broken.append(profile)
            continue
        table.add_row(
            profile.id,
            escape(profile.base_model),
            "yes" if profile.adapter is not None else "",
            ",".join(map(str, profile.layers)),
            ", ".join(f"{delta.strength:g}" for delta in profile.deltas),
            profile.sha256[:12],
            escape(profile.description),
        )
    console = Console()
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
    from rich.console import Console
    from rich.markup import escape
    from rich.syntax import Syntax

    console = Console()
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
    console.print(Syntax(dump_document(profile.document), "yaml", background_color="default"))
