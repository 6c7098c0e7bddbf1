"""`trimtab train score`: what adapters are worth on conversations that none of them was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from .held import Held, losses_on

if TYPE_CHECKING:
    from ...steering.profile import Profile

LENGTH = 768
"""Tokens a row; rows are longer where a conversation is."""


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, nats, of an adapter on held-out conversations.

    Attributes:
        name: the profile whose adapter it is, or the base's name.
        loss: over all learned tokens.
        call_loss: over those of replies with calls; None where there are none.
    """

    name: str
    loss: float | None
    call_loss: float | None


def adapter_of(profile: Profile, base_sha256: str) -> Path:
    """The folder of a profile's adapter.

    Args:
        base_sha256: of the weights that it is to be scored on.

    Raises:
        BadInput: it has none, or more than an adapter: what would be scored would not be the profile; or it is another
            base's.
    """
    if profile.base_sha256 != base_sha256:
        raise BadInput(
            f"was made for other weights of {profile.base_model}",
            where=f"profile {profile.id}",
            fix="Give its base with --base, or train it anew",
        )
    if profile.adapter is None:
        raise BadInput("has no adapter", where=f"profile {profile.id}")
    if profile.interventions or profile.deltas:
        raise BadInput(
            "steers besides its adapter, which a loss in training does not show",
            where=f"profile {profile.id}",
            fix="`trimtab eval` measures whole profiles",
        )
    return profile.adapter


def score(base: Path, base_name: str, adapters: Sequence[tuple[str, Path]], held: Held, device: str) -> list[Score]:
    """The base and then each adapter on the same conversations.

    Args:
        adapters: names and PEFT folders.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    losses = losses_on(tokenizer, held, LENGTH)
    found = []
    for name, folder in ((base_name, None), *adapters):
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder)
        model.to(device)
        found.append(Score(name, *losses(model)))
    return found


def table(found: Sequence[Score], documents: int) -> str:
    """The scores, one a line."""
    width = max(len(one.name) for one in found)
    lines = [f"{'':{width}}    loss  in calls"]
    for one in found:
        losses = ("-" if loss is None else f"{loss:.4f}" for loss in (one.loss, one.call_loss))
        lines.append(f"{one.name:{width}}  {'    '.join(losses)}")
    return "\n".join([*lines, f"nats a token, {documents} conversations"])


def to_json(found: Sequence[Score], held: Held) -> dict[str, Any]:
    """JSON-ready."""
    return {"held_out": held.source, "scores": [asdict(one) for one in found]}
