"""`trimtab profiles diff|push|pull|remote|promote|rollback`: profiles between stores, and which is in use."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..errors import BadInput, printable


def add_commands(leaves: Any, store: Any) -> None:
    """Add these to the sub-parsers of `profiles`.

    Args:
        store: the parsed arguments -> the profile store.
    """
    spec = "name, name@version or name@sha256:..."

    def leaf(name: str, text: str, handler: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = leaves.add_parser(name, help=text)
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(handler=lambda args: handler(args, store(args)))
        return parser

    diff = leaf("diff", "what differs between two profiles", _diff)
    diff.add_argument("first", help=spec)
    diff.add_argument("second", help=spec)
    push = leaf("push", "put a profile into a shared place", _push)
    push.add_argument("profile", help=spec)
    push.add_argument("url", help="a folder, or a URL that fsspec opens, such as s3://bucket/profiles")
    push.add_argument("--replace", action="store_true", help="replace other content of this name and version")
    pull = leaf("pull", "fetch a profile from a shared place", _pull)
    pull.add_argument("url", help="as for push")
    pull.add_argument("profile", help=spec)
    pull.add_argument("--replace", action="store_true", help="replace other content of this name and version")
    remote = leaf("remote", "the profiles of a shared place", _remote)
    remote.add_argument("url", help="as for push")
    promote = leaf("promote", "let a profile's bare name stand for this version", _promote)
    promote.add_argument("profile", help=spec)
    rollback = leaf("rollback", "let a name stand for what it stood for before its last promotion", _rollback)
    rollback.add_argument("name", help="the profile's name")


def _say(args: argparse.Namespace, data: dict[str, Any], text: str) -> int:
    print(json.dumps(data) if args.json else printable(text))
    return 0


def _diff(args: argparse.Namespace, store: Any) -> int:
    from .diff import diff, table

    found = diff(store.get(args.first), store.get(args.second))
    return _say(args, found.to_json(), table(found))


def _push(args: argparse.Namespace, store: Any) -> int:
    from .remote import Remote

    done = Remote(args.url).push(store.get(args.profile), replace=args.replace)
    what = f"{done.written} files, {done.bytes:,} bytes written, {done.there} were there"
    data = {"profile": done.manifest.id, "sha256": done.manifest.sha256, "url": args.url}
    counts = {"written": done.written, "bytes": done.bytes, "there": done.there, "changed": done.changed}
    return _say(args, data | counts, f"{done.manifest.id} {done.manifest.sha256[:12]} is at {args.url}: {what}")


def _pull(args: argparse.Namespace, store: Any) -> int:
    from .listing import describe
    from .remote import Remote

    profile = Remote(args.url).pull(args.profile, store, replace=args.replace)
    return _say(args, describe(profile), f"{profile.id} {profile.sha256[:12]} is in {profile.directory}")


def _remote(args: argparse.Namespace, store: Any) -> int:
    from .remote import Remote

    found = Remote(args.url).all()
    rows = [m.as_dict() | {"broken": True} if isinstance(m, BadInput) else m.model_dump(mode="json") for m in found]
    lines = [f"broken  {m}" if isinstance(m, BadInput) else f"{m.id}  {m.sha256[:12]}  {m.size:,} bytes" for m in found]
    return _say(args, {"profiles": rows}, "\n".join(lines) or f"No profiles at {args.url}.")


def _promote(args: argparse.Namespace, store: Any) -> int:
    return _in_use(args, store, store.promote(args.profile), "now")


def _rollback(args: argparse.Namespace, store: Any) -> int:
    return _in_use(args, store, store.rollback(args.name), "again")


def _in_use(args: argparse.Namespace, store: Any, profile: Any, when: str) -> int:
    history = store.history(profile.name)
    data = {"profile": profile.id, "sha256": profile.sha256, "history": list(history)}
    so_far = f"promoted so far: {', '.join(history)}" if history else "the newest version, as none is promoted"
    return _say(args, data, f"{profile.name} is {profile.id} {when}; {so_far}")
