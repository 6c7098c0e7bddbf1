"""Results as JSON text for a model: bounded, always valid, always something it can read."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ToolFailure, TrimtabError

LONGEST_ERROR = 500


def encode(value: Any, limit: int) -> tuple[str, bool]:
    """A tool's result as JSON text of at most `limit` bytes of UTF-8, and whether it had to be cut.

    A result that is too long becomes `{"truncated": "<its beginning>", "note": "..."}`: still JSON, plainly marked.

    Raises:
        ToolFailure: JSON cannot hold the value.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except RecursionError:
        raise ToolFailure("the result is not JSON: it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ToolFailure(f"the result is not JSON: {error}") from None
    raw = text.encode("utf-8", "replace")  # a lone surrogate could not be sent anywhere
    if len(raw) <= limit:
        return raw.decode(), False
    note = f"only the beginning: the result has {len(raw)} bytes, {limit} are allowed"
    room = limit
    while True:
        cut = json.dumps({"truncated": raw[:room].decode("utf-8", "ignore"), "note": note}, ensure_ascii=False)
        over = len(cut.encode()) - limit
        if over <= 0 or room == 0:
            return cut, True
        # Quotes inside the text are escaped a second time, so `over` may be larger than what is left.
        room = max(0, room - over) if over < room else room // 2


def failure(error: BaseException | str) -> tuple[str, str]:
    """An error as the JSON text a model reads, and its one line: no traceback, bounded."""
    if isinstance(error, str):
        text = error
    elif isinstance(error, ToolFailure):
        text = error.what
    elif isinstance(error, TrimtabError):
        text = str(error)
    else:
        try:
            said = str(error)
        except Exception:  # an exception whose own __str__ raises
            said = ""
        text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if len(text) > LONGEST_ERROR:
        text = text[: LONGEST_ERROR - 3] + "..."
    return json.dumps({"error": text}, ensure_ascii=False), text


def _plain(value: Any) -> Any:
    """Dates, dataclasses, pydantic models, sets and the like, as pydantic would write them."""
    import pydantic_core

    try:
        return pydantic_core.to_jsonable_python(value)
    except pydantic_core.PydanticSerializationError:
        raise TypeError(f"a {type(value).__name__} cannot be written") from None
