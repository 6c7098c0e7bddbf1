"""The admin key: what a server with one wants to see before it lets anybody change its profiles."""

from __future__ import annotations

import os

ADMIN_VARIABLE = "TRIMTAB_ADMIN_KEY"
ADMIN_HEADER = "x-trimtab-admin-key"


def admin_headers() -> dict[str, str]:
    """The header that carries the environment's admin key; empty where there is none."""
    key = os.environ.get(ADMIN_VARIABLE)
    return {ADMIN_HEADER: key} if key else {}
