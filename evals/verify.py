"""Does every live profile do on the server what it says, and leave everyone else alone? Measured, with a reference.

The same prompts go to a running server under the base model and under every profile, in one mixed batch. What comes
back is held to Hugging Face, PEFT and forward hooks in float32, token by token: the server's own answer is read by the
reference model, and the log probabilities of its tokens must agree. Receipts must name the profile's content, its
layers, and just as many steered tokens as the reference edited. The base model is asked alone, within the mixed batch,
and afterwards, and must say the same, bit for bit where the server computes in the same order.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from ..errors import BadInput, EngineError, EngineUnavailable, NotFound

if TYPE_CHECKING:
    from ..steering.profile import Profile
    from ..steering.store import ProfileStore

TOLERANCE = 1e-3
"""Largest difference of a log probability (nats) that float32 arithmetic in another order explains."""
LENGTHS = (5, 41, 150)
"""Tokens of the prompts: shorter and longer than a block of the prefix cache, and than several."""
NEW = 16
"""Tokens of each answer."""
SECONDS = 240.0


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
        tolerance: what differences are held to, nats.
    """

    url: str
    model: str
    tolerance: float
    base_alone: float
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(check.problems for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True)
class _Answer:
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    receipt: dict[str, Any]
    cached: int | None
    model: str


class Reference:
    """The base model in float32, with hooks and PEFT."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._merged = tempfile.TemporaryDirectory(prefix="trimtab-verify-")

    def prompts(self, lengths: Sequence[int], seed: int) -> list[list[int]]:
        """Random token ids, special ones left out; another seed gives prompts that no cache holds."""
        draw = self._torch.Generator().manual_seed(seed)
        special = set(self.tokenizer.all_special_ids)
        known = [i for i in range(min(len(self.tokenizer), self.model.config.vocab_size)) if i not in special]
        return [[known[int(i)] for i in self._torch.randint(0, len(known), (n,), generator=draw)] for n in lengths]

    def scored(self, profile: Profile | None, prompt: Sequence[int], said: Sequence[int]) -> tuple[list[float], int]:
        """Log probabilities (nats) of `said` after `prompt`, and how many tokens were edited on the way."""
        from ..steering.hooks import adapted, steered
        from ..steering.weights import merged_adapter

        with self._torch.inference_mode(), ExitStack() as stack:
            model, run = self.model, None
            if profile is not None:
                merged = merged_adapter(profile, Path(self._merged.name))
                model = stack.enter_context(adapted(model, None if merged is None else merged[0]))
                run = stack.enter_context(steered(model, profile, len(prompt), tokenizer=self.tokenizer))
            ids = self._torch.tensor([[*prompt, *said[:-1]]])
            rows = model(input_ids=ids).logits[0, len(prompt) - 1 :].float().log_softmax(-1)
        return [float(row[i]) for row, i in zip(rows, said, strict=True)], 0 if run is None else run.edited


class Client:
    """The server's side."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        self.url, self.model = url.rstrip("/").removesuffix("/v1"), model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=self.url, timeout=SECONDS, headers=headers)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def live(self) -> dict[str, str]:
        """The live profiles: id -> identity. Raises EngineUnavailable or EngineError."""
        data = await self._json("GET", "/v1/trimtab/profiles")
        return {str(entry["id"]): str(entry["sha256"]) for entry in data["profiles"]}

    async def unload(self, name: str) -> None:
        """Take a profile off the server: requests for it are refused from then on."""
        await self._json("POST", "/v1/trimtab/profiles/unload", {"name": name})

    async def ask(self, name: str, prompt: Sequence[int], new: int, salt: str | None = None) -> _Answer:
        """Greedy, and never ended by an end token."""
        body: dict[str, Any] = {"model": name, "prompt": list(prompt), "max_tokens": new, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True, "logprobs": 1, "trimtab": {"receipt": True}}
        if salt is not None:
            body["cache_salt"] = salt
        data = await self._json("POST", "/v1/completions", body)
        try:
            choice = data["choices"][0]
            details = data["usage"].get("prompt_tokens_details") or {}
            return _Answer(
                tuple(choice["token_ids"]),
                tuple(choice["logprobs"]["token_logprobs"]),
                dict(data["trimtab"]["receipt"]),
                details.get("cached_tokens"),
                str(data["model"]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise EngineError(f"the answer lacks {error}", where=self.url, fix="Verify a `trimtab serve`") from None

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            reply = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise EngineUnavailable(f"no answer ({reason})", where=self.url + path) from None
        if reply.status_code != 200:
            raise EngineError(f"HTTP {reply.status_code}: {reply.text[:200]}", where=self.url + path)
        try:
            return reply.json()
        except ValueError:
            raise EngineError("the answer is not JSON", where=self.url + path) from None


async def verify(
    client: Client,
    reference: Reference,
    store: ProfileStore,
    names: Sequence[str] = (),
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    new: int = NEW,
    tolerance: float = TOLERANCE,
) -> Report:
    """Check the live profiles of a server.

    Args:
        store: where the profiles' content is found, by identity.
        names: profiles to check, as in a request; all live ones by default.
        seed: of the prompts; another one each time asks for what no cache holds.

    Raises:
        NotFound: a profile is not live.
        EngineError, EngineUnavailable: the server does not answer, or not as Trimtab's does.
    """
    live = await client.live()
    chosen = _chosen(live, names, store)
    prompts = reference.prompts(lengths, seed)
    alone = [await client.ask(client.model, prompt, new) for prompt in prompts]
    batch = [(name, prompt) for name in (client.model, *chosen) for prompt in prompts]
    mixed = await asyncio.gather(
        # The base model's own states of these prompts are cached: another salt makes it compute them again.
        *(client.ask(n, p, new, salt=f"verify-{seed}" if n == client.model else None) for n, p in batch)
    )
    after = [await client.ask(client.model, prompt, new) for prompt in prompts]
    answers: dict[str, list[_Answer]] = {}
    for (name, _), answer in zip(batch, mixed, strict=True):
        answers.setdefault(name, []).append(answer)
    apart = max(_apart(a, b) for others in (answers[client.model], after) for a, b in zip(alone, others, strict=True))
    checks = [await asyncio.to_thread(_check, client.model, None, prompts, alone, reference, tolerance, apart)]
    for name, profile in chosen.items():
        if isinstance(profile, Exception):
            checks.append(Check(name, live[name], 0, 0.0, None, 0, None, (str(profile),)))
        else:
            checks.append(
                await asyncio.to_thread(_check, name, profile, prompts, answers[name], reference, tolerance, 0.0)
            )
    return Report(client.url, client.model, tolerance, apart, tuple(checks))


def _chosen(live: dict[str, str], names: Sequence[str], store: ProfileStore) -> dict[str, Profile | Exception]:
    """The profiles to check, as the store has what the server says is live; what it does not have is an error."""
    wanted = dict.fromkeys(() if names else live)
    for name in names:
        meant = [one for one in live if name in (one, one.partition("@")[0])]
        if not meant:
            raise NotFound(f"{name!r} is not live", where="verify", fix=f"Live: {', '.join(live) or 'nothing'}")
        wanted |= dict.fromkeys(meant)
    found: dict[str, Profile | Exception] = {}
    for name in wanted:
        try:
            found[name] = store.get(f"{name.partition('@')[0]}@sha256:{live[name]}")
        except (NotFound, BadInput) as error:
            found[name] = error
    return found


def _apart(one: _Answer, other: _Answer) -> float:
    """How far two answers are apart: infinitely when they say different things."""
    if one.ids != other.ids:
        return float("inf")
    return max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def _check(
    name: str,
    profile: Profile | None,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[_Answer],
    reference: Reference,
    tolerance: float,
    apart: float,
) -> Check:
    problems: list[str] = []
    difference, moved, expected = 0.0, 0.0, 0
    steered: int | None = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        scores, edited = reference.scored(profile, prompt, answer.ids)
        difference = max(difference, *(abs(a - b) for a, b in zip(scores, answer.logprobs, strict=True)))
        if profile is not None:
            plain, _ = reference.scored(None, prompt, answer.ids)
            moved = max(moved, *(abs(a - b) for a, b in zip(scores, plain, strict=True)))
        expected += edited
        said = answer.receipt.get("tokens_steered")
        steered = None if said is None or steered is None else steered + int(said)
        problems += _receipt_problems(name, profile, answer, edited)
    if difference > tolerance:
        problems.append(f"log probabilities differ from the reference by up to {difference:.2g}")
    if apart > tolerance:
        problems.append("other requests change what the base model says")
    if profile is not None and moved == 0.0 and (expected or profile.adapter or profile.deltas):
        problems.append("changes nothing, though it acts")
    sha256 = None if profile is None else profile.sha256
    said_tokens = sum(len(answer.ids) for answer in answers)
    unique = tuple(dict.fromkeys(problems))
    return Check(name, sha256, said_tokens, difference, steered, expected, None if profile is None else moved, unique)


def _receipt_problems(name: str, profile: Profile | None, answer: _Answer, edited: int) -> list[str]:
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


def table(report: Report) -> str:
    """The report in words."""
    width = max(len("profile"), *(len(check.name) for check in report.checks))
    lines = [f"{'profile':<{width}}  {'tokens':>6}  {'difference':>10}  {'steered':>8}  {'moved':>8}  "]
    for check in report.checks:
        moved = "" if check.moved is None else f"{check.moved:.3g}"
        steered = "?" if check.steered is None else str(check.steered)
        verdict = "; ".join(check.problems) or "ok"
        lines.append(
            f"{check.name:<{width}}  {check.tokens:>6}  {check.difference:>10.2g}  {steered:>8}  {moved:>8}  {verdict}"
        )
    same = "bit for bit the same" if report.base_alone == 0.0 else f"the same within {report.base_alone:.2g}"
    lines.append(f"the base model alone, among steered requests and after them: {same}")
    wrong = sum(bool(check.problems) for check in report.checks)
    count = len(report.checks) - 1
    lines.append(
        f"{count} profile{'s' * (count != 1)} verified on {report.url} (tolerance {report.tolerance:g} nats)"
        if report.ok
        else f"{wrong} of {len(report.checks)} failed on {report.url}"
    )
    return "\n".join(lines)
