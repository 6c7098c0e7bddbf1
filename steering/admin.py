"""The admin key: what a server with one wants to see before it lets anybody change its profiles."""

from __future__ import annotations

import os

from ..errors import BadInput

ADMIN_VARIABLE = "TRIMTAB_ADMIN_KEY"
ADMIN_HEADER = "x-trimtab-admin-key"


def admin_headers() -> dict[str, str]:
    """The header that carries the environment's admin key; empty where there is none.

    Raises:
        BadInput: no header can carry that key.
    """
    key = os.environ.get(ADMIN_VARIABLE)
    if not key:
        return {}
    if not (key.isascii() and key.isprintable() and key.strip() == key):
        raise BadInput(
            "the admin key has characters that a header cannot carry",
            where=ADMIN_VARIABLE,
            fix="Use a key of ASCII letters and digits, here and where the server starts",
        )
    return {ADMIN_HEADER: key}
