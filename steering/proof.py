"""Does a live profile do on its server what it says, and leave everyone else alone? Measured, with a reference.

The same prompts go to a running server under the base model and under every profile, in one mixed batch. What comes
back is held to Hugging Face, PEFT and forward hooks in float32, token by token: the server's own answer is read by the
reference model, and the log probabilities of its tokens must agree, and be nearer to the reference with the profile
than to that without it: a server that computes in bfloat16 rounds more than some profiles do. Receipts must name the
profile's content, its layers, and just as many steered tokens as the reference edited. The base model is asked alone,
within the mixed batch, and afterwards, and must say the same, bit for bit where the server computes in the same order.

Who asks (`asking.py`) and who reads (`reference.py`, or a process of its own, `reference_child.py`) is the caller's to
choose: `trimtab verify` asks over the wire, a server that is told to prove a profile asks itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import EngineError

if TYPE_CHECKING:
    from .asking import Answer, Asker
    from .profile import Profile

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest difference of a log probability (nats) from the reference in float32 that a server's arithmetic explains, by
its number format. bfloat16 keeps 8 bits: a logit of 16 is rounded by up to 0.06."""
LENGTHS = (5, 41, 150)
"""Tokens of the prompts: shorter and longer than a block of the prefix cache, and than several."""
NEW = 16
"""Tokens of each answer."""


@dataclass(frozen=True)
class Check:
    """A profile, or the base model, checked.

    Attributes:
        name: the profile's id, or the base model's.
        sha256: the profile's identity; None for the base model.
        tokens: answer tokens that were compared.
        difference: largest difference of a token's log probability from the reference, nats.
        steered, expected: tokens that the receipts and the reference say were edited, all answers together; None where
            a receipt does not know.
        moved: largest change of a token's log probability against the unsteered reference, nats; None for the base.
        problems: what is wrong; empty where all is well.
    """

    name: str
    sha256: str | None
    tokens: int
    difference: float
    steered: int | None
    expected: int
    moved: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All checks.

    Attributes:
        base_alone: largest difference between the base model's log probabilities when it is asked alone, and within a
            batch of steered requests and after it; 0.0 is bit for bit.
        dtype: the number format that the server computes in.
        tolerance: what differences are held to, nats.
    """

    url: str
    model: str
    dtype: str
    tolerance: float
    base_alone: float
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(check.problems for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: JSON has no infinity, so what differs without bound is None."""
        return {"ok": self.ok, **asdict(self, dict_factory=_finite)}


def _finite(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields}


class Reader(Protocol):
    """What answers are held to; `Reference` is one. Its methods block."""

    def prompts(self, lengths: Sequence[int], seed: int) -> list[list[int]]:
        """Prompts of token ids that no cache holds."""

    def scored(self, profile: Profile | None, prompt: Sequence[int], said: Sequence[int]) -> tuple[list[float], int]:
        """Log probabilities (nats) of `said` after `prompt`, and how many tokens were edited on the way."""


def unread(name: str, sha256: str, why: Exception) -> Check:
    """The check of a live profile whose content is not there to be compared with: it failed."""
    return Check(name, sha256, 0, 0.0, None, 0, None, (str(why),))


async def prove(
    asker: Asker,
    reader: Reader,
    chosen: Mapping[str, Profile | Check],
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    new: int = NEW,
    tolerance: float | None = None,
) -> Report:
    """Check live profiles of a server.

    Args:
        chosen: their ids, each with the content that the server must act by, or with what `unread` makes.
        seed: of the prompts; another one each time asks for what no cache holds.
        lengths: tokens of the prompts.
        new: tokens of each answer.
        tolerance: largest difference of a log probability, nats; by default what the server's number format explains.

    Raises:
        EngineError, EngineUnavailable: the server does not answer, or not as Trimtab's does; or the reader is gone.
    """
    dtype = await asker.dtype()
    if tolerance is None:
        if dtype not in TOLERANCES:
            raise EngineError(
                f"nobody knows how much {dtype} rounds",
                where=asker.url,
                fix=f"Give a tolerance, or serve in one of: {', '.join(TOLERANCES)}",
            )
        tolerance = TOLERANCES[dtype]
    prompts = await asyncio.to_thread(reader.prompts, lengths, seed)
    alone = [await asker.ask(asker.model, prompt, new) for prompt in prompts]
    batch = [(name, prompt) for name in (asker.model, *chosen) for prompt in prompts]
    mixed = await asyncio.gather(
        # The base model's own states of these prompts are cached: another salt makes it compute them again.
        *(asker.ask(n, p, new, salt=f"verify-{seed}" if n == asker.model else None) for n, p in batch)
    )
    after = [await asker.ask(asker.model, prompt, new) for prompt in prompts]
    answers: dict[str, list[Answer]] = {}
    for (name, _), answer in zip(batch, mixed, strict=True):
        answers.setdefault(name, []).append(answer)
    apart = max(_apart(a, b) for others in (answers[asker.model], after) for a, b in zip(alone, others, strict=True))
    checks = [await asyncio.to_thread(_check, asker.model, None, prompts, alone, reader, tolerance, apart)]
    for name, profile in chosen.items():
        checks.append(
            profile
            if isinstance(profile, Check)
            else await asyncio.to_thread(_check, name, profile, prompts, answers[name], reader, tolerance, 0.0)
        )
    return Report(asker.url, asker.model, dtype, tolerance, apart, tuple(checks))


def _apart(one: Answer, other: Answer) -> float:
    """How far two answers are apart: infinitely when they say different things."""
    return _gap(one.logprobs, other.logprobs) if one.ids == other.ids else math.inf


def _gap(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference; infinite where something is no number, which would compare as no difference at all."""
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.inf


def _sum(one: Sequence[float], other: Sequence[float]) -> float:
    """All differences together."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def _check(
    name: str,
    profile: Profile | None,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    reader: Reader,
    tolerance: float,
    apart: float,
) -> Check:
    problems: list[str] = []
    difference, moved, near, far, expected = 0.0, 0.0, 0.0, 0.0, 0
    steered: int | None = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        scores, edited = reader.scored(profile, prompt, answer.ids)
        difference = max(difference, _gap(scores, answer.logprobs))
        if profile is not None:
            plain, _ = reader.scored(None, prompt, answer.ids)
            moved = max(moved, _gap(scores, plain))
            near += _sum(scores, answer.logprobs)
            far += _sum(plain, answer.logprobs)
        expected += edited
        said = answer.receipt.get("tokens_steered")
        steered = None if said is None or steered is None else steered + int(said)
        problems += _receipt_problems(name, profile, answer, edited)
    if difference > tolerance:
        problems.append(f"log probabilities differ from the reference by up to {difference:.2g}")
    if apart > tolerance:
        problems.append("other requests change what the base model says")
    if profile is not None and (expected or profile.adapter or profile.deltas):
        if moved == 0.0:
            problems.append("changes nothing, though it acts")
        elif near >= far:
            problems.append("what is said is no nearer to the reference with the profile than to that without it")
    sha256 = None if profile is None else profile.sha256
    said_tokens = sum(len(answer.ids) for answer in answers)
    unique = tuple(dict.fromkeys(problems))
    return Check(name, sha256, said_tokens, difference, steered, expected, None if profile is None else moved, unique)


def _receipt_problems(name: str, profile: Profile | None, answer: Answer, edited: int) -> list[str]:
    """What the receipt of one answer gets wrong."""
    receipt, found = answer.receipt, []
    if answer.model != name:
        found.append(f"answered as {answer.model}")
    if receipt.get("profile_sha256") != (None if profile is None else profile.sha256):
        found.append("the receipt names other content")
    if list(receipt.get("layers") or ()) != ([] if profile is None else list(profile.layers)):
        found.append("the receipt names other layers")
    weights = profile is not None and bool(profile.adapter or profile.deltas)
    if (receipt.get("adapter_sha256") is not None) != weights:
        found.append("the receipt names no adapter" if weights else "the receipt names an adapter")
    said = receipt.get("tokens_steered")
    if said is not None and said != edited:
        found.append(f"the receipt says {said} steered tokens, the reference {edited}")
    if said is None:
        found.append("the receipt does not know how many tokens were steered")
    if answer.cached:
        found.append(f"{answer.cached} prompt tokens came out of another request's cache")
    return found
