"""Adapter training against TRL, interleaved in one run: conversations' tokens per second, and their ratio.

What is compared is how many conversations are learned from per second. TRL reads the opening that conversations share
once for each of them, Trimtab once a row; so a conversation counts with all of its own tokens on both sides, however
often it was really read. What was read, padding left out, is reported beside it.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import BadInput
from ...models.card import ModelCard
from ...models.train.data import Clump, Encoder, Example, pack, to_rows
from ...models.train.recipe import Recipe
from .bars import Bar
from .trl import Block, Setting

VS_TRL = 1.5
"""Conversations' tokens per second, over TRL's."""
TRIED = 2
"""Steps of a trial of a setting of TRL, after as many to warm up."""
POOL = 400
"""Fewest conversations that are drawn from."""


@dataclass(frozen=True)
class Measured:
    """The benchmark's outcome.

    Attributes:
        trials: conversations' tokens per second of each setting of TRL that was tried; None where it does not run.
        setting: the fastest of these, which was compared with.
        ours, theirs: the interleaved blocks, first with first.
    """

    model: str
    family: str
    recipe: Mapping[str, Any]
    steps: int
    threads: int
    versions: Mapping[str, str]
    trials: Mapping[str, float | None]
    setting: Setting
    ours: tuple[Block, ...]
    theirs: tuple[Block, ...]

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, block by block, in conversations' tokens per second."""
        return [conversation_rate(a) / conversation_rate(b) for a, b in zip(self.ours, self.theirs, strict=True)]

    def to_json(self, bars: Sequence[Bar]) -> dict[str, Any]:
        """JSON-ready."""

        def side(blocks: Sequence[Block]) -> dict[str, Any]:
            return {
                "tokens_per_second_as_read": statistics.median(b.tokens / b.seconds for b in blocks),
                "conversation_tokens_per_second": statistics.median(map(conversation_rate, blocks)),
                "blocks": [asdict(b) for b in blocks],
            }

        ratios = self.ratios
        as_read = [a.tokens / a.seconds / (b.tokens / b.seconds) for a, b in zip(self.ours, self.theirs, strict=True)]
        return {
            "bars": [bar.to_json() for bar in bars],
            "unit": "train.vs_trl is the median ratio of conversation_tokens_per_second: each conversation counts with "
            "its full token count on both sides; as_read counts a shared opening once where it is read once",
            "ratio": _spread(ratios),
            "ratio_as_read": _spread(as_read),
            "trimtab": side(self.ours),
            "trl": side(self.theirs) | {"setting": self.setting.to_json(), "trials": dict(self.trials)},
            "model": self.model,
            "family": self.family,
            "recipe": dict(self.recipe),
            "steps_per_block": self.steps,
            "threads": self.threads,
            "versions": dict(self.versions),
        }

    def bar(self) -> Bar:
        """`train.vs_trl`."""
        return Bar("train.vs_trl", statistics.median(self.ratios), VS_TRL, "least")


def conversation_rate(block: Block) -> float:
    """Conversations' tokens per second."""
    return block.conversation_tokens / block.seconds


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def measure(
    card: ModelCard,
    recipe: Recipe,
    family: str,
    *,
    steps: int,
    rounds: int,
    threads: int,
    only: Sequence[Setting] | None = None,
    told: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Measured:
    """Compare with TRL.

    Both sides get the same LoRA, the same pool of conversations, already as tokens, and rows of the same length and
    number a step. TRL is first tried with each of its settings and compared at its fastest. The first block of each
    side warms up (and compiles) and is not counted.

    Args:
        steps: optimizer steps of a block.
        rounds: blocks of each side.
        only: the settings of TRL to try; all by default.

    Raises:
        BadInput: no setting of TRL runs.
    """
    from transformers import AutoTokenizer

    from ...models.train.adapter import fresh_adapter
    from ...models.train.loop import fit
    from .trl import quiet, settings, train, versions

    quiet()
    tokenizer = AutoTokenizer.from_pretrained(card.path)
    examples, batches = _pool(tokenizer, recipe, family, steps * (rounds + 1))
    mean = statistics.fmean(len(e.ids) for e in examples)
    padded = max(1, round(recipe.batch * recipe.length / mean))

    def theirs(setting: Setting, blocks: int, steps: int, between: Any = lambda block: None) -> list[Block]:
        model = fresh_adapter(card.path, recipe, recipe.seed)
        return train(model, tokenizer, examples, recipe, setting, blocks, steps, between)

    trials: dict[str, float | None] = {}
    tried = {s.name: s for s in only or settings(recipe.batch, padded)}
    for name, setting in tried.items():
        try:
            trials[name] = conversation_rate(theirs(setting, 1, TRIED)[0])
            told(f"TRL, {name}: {trials[name]:,.0f} conversation tokens/s")
        except Exception as error:  # whatever does not run on this machine is not its best setting
            trials[name] = None
            told(f"TRL, {name}: does not run here ({type(error).__name__}: {str(error).splitlines()[0][:200]})")
    known = {name: rate for name, rate in trials.items() if rate is not None}
    if not known:
        raise BadInput("TRL runs with no setting here", where="trimtab bench train")
    setting = tried[max(known, key=known.__getitem__)]

    model = fresh_adapter(card.path, recipe, recipe.seed)
    short = recipe.model_copy(update={"steps": steps, "warmup": 1, "decay": 0})

    def ours(number: int) -> Block:
        part = batches[number * steps : (number + 1) * steps]
        rows = [to_rows(batch, recipe.length) for batch in part]
        began = time.perf_counter()
        fit(model, short, lambda start: iter(rows[start:]))
        seconds = time.perf_counter() - began
        clumps = [c for batch in part for row in batch for c in row]
        return Block(sum(c.size for c in clumps), sum(len(m.ids) for c in clumps for m in c.members), seconds)

    ours(0)
    mine: list[Block] = []

    def between(block: int) -> None:
        mine.append(ours(block + 1))
        told(f"round {block + 1} of {rounds}: {conversation_rate(mine[-1]):,.0f} conversation tokens/s")

    other = theirs(setting, rounds, steps, between)
    return Measured(
        card.name,
        family,
        recipe.model_dump(mode="json"),
        steps,
        threads,
        versions(),
        trials,
        setting,
        tuple(mine),
        tuple(other),
    )


def _pool(tokenizer: Any, recipe: Recipe, family: str, steps: int) -> tuple[list[Example], list[list[list[Clump]]]]:
    """Enough conversations of a family for so many of our steps, and these as our batches."""
    from ...models.embedded.corpus import family_documents, open_world

    encoder = Encoder(tokenizer)
    pool: list[Example] = []
    with open_world() as world:

        def examples() -> Any:
            for document in family_documents(recipe.seed, world, family):
                example = encoder(document)
                if len(example.ids) <= recipe.length:
                    pool.append(example)
                    yield example

        source = examples()
        rows = list(itertools.islice(pack(source, recipe.length), steps * recipe.batch))
        while len(pool) < POOL:
            next(source)
    return pool, [rows[i * recipe.batch : (i + 1) * recipe.batch] for i in range(steps)]
