"""Which vLLM the plugin was written against. It patches internals, so another version is refused, never guessed at."""

from __future__ import annotations

from ...errors import BadInput

SUPPORTED = "0.32."


def require_supported() -> str:
    """The version of the vLLM in this environment.

    Raises:
        BadInput: it is not supported.
    """
    from vllm.version import __version__

    version = str(__version__)
    if not version.startswith(SUPPORTED):
        raise BadInput(
            f"vLLM {version} is not supported by the steering plugin, which knows {SUPPORTED}x",
            where="vllm",
            fix="Install trimtab[cpu] or trimtab[cuda], or unset TRIMTAB_STEERING to run this vLLM unsteered",
        )
    return version
