"""What steering costs inside vLLM: tokens per second against stock vLLM without any plugin, in one run.

Every side is an engine of its own (`arm.py`), all of them there at once. A row of the table is the ratio of two sides
that ran one right after the other, the median over the rounds; where the bar is near 1, the other side runs before and
after, so that a machine that gets slower or faster meanwhile does not show. Prompts are random and as many tokens are
generated for each, whatever they are, so all sides do the same work. Against Hugging Face it is decoding that is
compared: what the same prompts take with one token each is taken off.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import BadInput, EngineError, NotFound
from ...models.card import ModelCard
from .arm import Arm, Block, Setup, Work, started
from .bars import Bar
from .profiles import conditional, vectors

MANY = 256
"""Live profiles in the bank of the side with vectors."""
GATED = 8
"""Profiles with a condition and terms."""
RANK = 4
"""Rank-1 terms of each of these at each layer."""
SHORTEST = 512
"""Tokens that an engine has room for in a request, or more where more are asked for."""


@dataclass(frozen=True)
class Row:
    """A ratio that is held to a bar.

    Attributes:
        name: of the row.
        ours, theirs: names of the two measurements.
        bar: what their ratio has to be at least.
    """

    name: str
    ours: str
    theirs: str
    bar: float

    @property
    def order(self) -> tuple[str, ...]:
        """The measurements of a round."""
        return (self.theirs, self.ours, self.theirs) if self.bar <= AROUND else (self.theirs, self.ours)


AROUND = 1.0
"""Bars up to which the other side is measured before and after."""

ROWS = (
    Row("steering.64_profiles", "64 profiles", "stock", 0.97),
    Row("steering.256_profiles", "256 profiles", "stock, 256 requests", 0.95),
    Row("steering.idle", "plugin, unsteered", "stock", 0.99),
    Row("steering.gated_rank4", "conditions, rank 4", "stock", 0.80),
    Row("lora.vs_stock_lora", "4 adapters", "4 adapters, stock", 3.0),
    Row("lora.vs_stock_base", "4 adapters", "stock", 0.6),
    Row("steering.vs_hooks", "64 profiles, decoding", "hooks, decoding", 3.0),
)

DECODING = ("64 profiles, decoding", "hooks, decoding")
"""Measurements that leave out reading the prompts."""


@dataclass(frozen=True)
class Trial:
    """A row in one round: our block, and the other side's before it and perhaps after it."""

    ours: Block
    theirs: tuple[Block, ...]

    @property
    def ratio(self) -> float:
        """Our tokens per second over theirs."""
        return self.ours.rate / statistics.mean(block.rate for block in self.theirs)


@dataclass(frozen=True)
class Measured:
    """The benchmark's outcome.

    Attributes:
        trials: by row, one a round.
        facts: by engine, how it ran.
    """

    model: str
    in_flight: int
    prompt: int
    tokens: int
    threads: int
    dtype: str
    trials: Mapping[str, tuple[Trial, ...]]
    facts: Mapping[str, Mapping[str, Any]]

    def ratios(self, row: Row) -> list[float] | None:
        """A row's ratio in each round; None where it was not measured."""
        trials = self.trials.get(row.name)
        return [trial.ratio for trial in trials] if trials else None

    def blocks(self) -> dict[str, list[Block]]:
        """All blocks of each side."""
        out: dict[str, list[Block]] = {}
        for row in ROWS:
            for trial in self.trials.get(row.name, ()):
                out.setdefault(row.theirs, []).extend(trial.theirs)
                out.setdefault(row.ours, []).append(trial.ours)
        return out

    def bars(self) -> list[Bar]:
        """Every row that was measured."""
        found = [(row, self.ratios(row)) for row in ROWS]
        return [Bar(row.name, statistics.median(r), row.bar, "least") for row, r in found if r is not None]

    def to_json(self, bars: Sequence[Bar]) -> dict[str, Any]:
        """JSON-ready."""
        spread = {row.name: r for row in ROWS if (r := self.ratios(row)) is not None}
        return {
            "bars": [bar.to_json() for bar in bars],
            "unit": "generated tokens per second over those of the other side right before, and right after where the "
            f"bar is at most {AROUND:g}; median over rounds; reading prompts counts, but where a side is decoding",
            "ratios": spread,
            "tokens_per_second": {n: statistics.median(b.rate for b in blocks) for n, blocks in self.blocks().items()},
            "blocks": {name: [asdict(b) for b in blocks] for name, blocks in self.blocks().items()},
            "engines": {name: dict(facts) for name, facts in self.facts.items()},
            "model": self.model,
            "in_flight": self.in_flight,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "threads": self.threads,
            "dtype": self.dtype,
        }


def measure(
    card: ModelCard,
    adapters: Sequence[Path],
    scratch: Path,
    *,
    rounds: int,
    in_flight: int,
    prompt: int,
    tokens: int,
    threads: int,
    dtype: str,
    only: Sequence[str] = (),
    told: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Measured:
    """Start every engine that is needed, and let them take turns.

    Args:
        card: the base model.
        adapters: PEFT folders to mix; without any, the rows on LoRA are left out.
        scratch: an empty folder for profiles and logs.
        rounds: how often each row is measured.
        in_flight: requests at once.
        prompt, tokens: of each request.
        dtype: number format of every side.
        only: the rows' names; all by default.

    Raises:
        NotFound: there is no such row, or it needs adapters and there are none.
        BadInput: the model does not read so many tokens, or so few leave nothing to decode.
    """
    if card.context is not None and prompt + tokens > card.context:
        raise BadInput(
            f"{prompt} + {tokens} tokens are more than the {card.context} that {card.name} reads",
            where="--prompt, --tokens",
            fix="Ask for fewer",
        )
    setups, works = plan(
        card, adapters, scratch, in_flight=in_flight, prompt=prompt, tokens=tokens, threads=threads, dtype=dtype
    )
    rows = _rows(works, only)
    works = {name: works[name] for name in works if any(name in row.order for row in rows)}
    setups = {name: setup for name, setup in setups.items() if any(name == arm for arm, _ in works.values())}
    if tokens < 2 and any(name in works for name in DECODING):
        raise BadInput("one token leaves nothing to decode", where="--tokens", fix="Give at least 2")
    trials: dict[str, list[Trial]] = {row.name: [] for row in rows}
    with contextlib.ExitStack() as stack:
        arms: dict[str, Arm] = {}
        for name, setup in setups.items():
            told(f"starting the engine: {name}")
            arms[name] = stack.enter_context(started(name, setup, scratch / "logs" / f"{name}.log"))
            arms[name].wait()

        def block(name: str) -> Block:
            arm, work = works[name]
            done = arms[arm].run(work)
            check_steered(name, work, done)
            return done.after(arms[arm].run(replace(work, tokens=1))) if name in DECODING else done

        for name in works:  # one each that does not count
            told(f"warming up: {name}")
            block(name)
        for number in range(rounds):
            for row in random.Random(number).sample(rows, len(rows)):
                theirs, ours, *after = map(block, row.order)
                trials[row.name].append(Trial(ours, (theirs, *after)))
            ratios = ", ".join(f"{row.name} {trials[row.name][-1].ratio:.2f}" for row in rows)
            told(f"round {number + 1} of {rounds}: {ratios}")
        facts = {name: arm.facts for name, arm in arms.items()}
    done = {name: tuple(found) for name, found in trials.items()}
    return Measured(card.name, in_flight, prompt, tokens, threads, dtype, done, facts)


def _rows(works: Mapping[str, Any], only: Sequence[str]) -> list[Row]:
    """The rows to measure, of those whose measurements there are."""
    there = {row.name: row for row in ROWS if {row.ours, row.theirs} <= set(works)}
    missing = [name for name in only if name not in there]
    if missing:
        why = "needs adapters" if missing[0] in {row.name for row in ROWS} else "is no row"
        raise NotFound(f"{missing[0]!r} {why}", where="--rows", fix=f"Known: {', '.join(there)}")
    return [row for name, row in there.items() if not only or name in only]


def plan(
    card: ModelCard,
    adapters: Sequence[Path],
    scratch: Path,
    *,
    in_flight: int,
    prompt: int,
    tokens: int,
    threads: int,
    dtype: str,
) -> tuple[dict[str, Setup], dict[str, tuple[str, Work]]]:
    """The engines by name, and what is measured: name -> (engine, block)."""
    many = vectors(card, MANY, scratch / "vectors")
    gated = conditional(card, GATED, RANK, scratch / "gated")
    length = max(SHORTEST, prompt + tokens)
    stock = Setup("vllm", str(card.path), in_flight=in_flight, threads=threads, length=length, dtype=dtype)
    setups = {
        "stock": stock,
        "vectors": replace(stock, plugin=True, profiles=many, rows=MANY + 1),
        "conditions": replace(stock, plugin=True, profiles=gated, rows=GATED + 1, terms=GATED * RANK, gates=True),
        "hooks": replace(stock, kind="hooks", profiles=many[:1]),
    }
    none = (None,) * in_flight

    def work(profiles: Sequence[int | None], mixed: Sequence[int | None] | None = None) -> Work:
        return Work(tuple(profiles), tuple(mixed or (None,) * len(profiles)), prompt, tokens)

    works = {
        "stock": ("stock", work(none)),
        "plugin, unsteered": ("vectors", work(none)),
        "64 profiles": ("vectors", work([i % 64 for i in range(in_flight)])),
        "stock, 256 requests": ("stock", work([None] * MANY)),
        "256 profiles": ("vectors", work(range(MANY))),
        "conditions, rank 4": ("conditions", work([i % GATED for i in range(in_flight)])),
        "64 profiles, decoding": ("vectors", work([i % 64 for i in range(in_flight)])),
        "hooks, decoding": ("hooks", work([0] * in_flight)),
    }
    if adapters:
        folders = tuple(str(folder) for folder in adapters)
        setups["stock with LoRA"] = replace(stock, adapters=folders)
        setups["LoRA"] = replace(stock, plugin=True, adapters=folders)
        mixed = [i % len(folders) for i in range(in_flight)]
        works["4 adapters, stock"] = ("stock with LoRA", work(none, mixed))
        works["4 adapters"] = ("LoRA", work(none, mixed))
    return setups, works


def check_steered(name: str, work: Work, block: Block) -> None:
    """Raises EngineError when steering was asked for and did not act: its speed would say nothing."""
    asked = sum(profile is not None for profile in work.profiles)
    if asked and block.steered == 0:
        raise EngineError("profiles were asked for and no token was steered", where=name)
