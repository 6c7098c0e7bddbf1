"""Where models run: a vLLM server, this process, or any OpenAI-compatible URL, all behind `models.engine.Engine`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ...errors import BadInput

if TYPE_CHECKING:
    from ...steering.store import ProfileStore
    from ..engine import Engine


@asynccontextmanager
async def open_engine(
    spec: str = "vllm",
    *,
    model: str | None = "trimtab-nano",
    store: ProfileStore | None = None,
    progress: Callable[[str], None] | None = None,
) -> AsyncIterator[Engine]:
    """An engine for the duration of a block; what it started is stopped at the end, whatever happened.

    Args:
        spec: `vllm` (a healthy server that runs already for this model and these profiles, else one of its own),
            `transformers` (in this process), or an http(s) URL (its key from TRIMTAB_API_KEY or OPENAI_API_KEY).
        model: an embedded name or a folder; for a URL the id it serves, where None takes the only one.
        store: the profiles; None for those of this user and those that ship with Trimtab. A URL has its own.
        progress: told what happens while the engine comes up.

    Raises:
        BadInput: an unknown spec, or a model that does not load.
        NotFound: an unknown model.
        EngineUnavailable: the engine cannot be reached or does not start.
    """
    if spec.startswith(("http://", "https://")):
        from .http import connect, key_from_environment

        engine: Engine = await connect(spec, model, key=key_from_environment())
    elif spec in ("vllm", "transformers"):
        from ..card import find_model
        from ..embedded import SMALL, default_store

        card = find_model(model or SMALL)
        store = store or default_store()
        if spec == "vllm":
            from .vllm import VllmEngine

            engine = await VllmEngine(card, store, progress=progress).open()
        else:
            from .local import LocalEngine

            if progress:
                progress(f"loading {card.name} into this process")
            engine = await asyncio.to_thread(LocalEngine, card, store)
    else:
        raise BadInput(
            f"unknown engine {spec!r}", where="--engine", fix="Engines: vllm, transformers, or an http(s) URL"
        )
    try:
        yield engine
    finally:
        await engine.aclose()
