"""One side of the serving benchmark: an engine in a process of its own, which works when it is told to and else waits.

Each side needs its own process, because stock vLLM must run with nothing of Trimtab in it. All sides are alive at
once and take turns, so that a machine that gets slower gets slower for all. The child is
`python -m trimtab.evals.bench.arm`; parent and child speak JSON lines, and the child's own output goes to a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import EngineError

KEPT = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""Lets glibc keep memory that was freed. Hugging Face's static cache allocates megabytes in every step and, by luck of
the heap's layout, gets new pages from the kernel each time, at half the speed: no side is to depend on that. vLLM is as
fast with it as without."""


@dataclass(frozen=True)
class Setup:
    """An engine.

    Attributes:
        kind: `vllm`, or `hooks`: Hugging Face with Trimtab's hooks and a static cache.
        model: folder of the base model.
        plugin: whether Trimtab's plugin is installed in vLLM.
        profiles: folders of profiles to make live, with their SHA-256.
        adapters: PEFT folders that requests can name by number; LoRA is off without any.
        rows, terms: size of the bank.
        gates: whether compiled layers have room for conditions.
        length: longest prompt and answer together, in tokens.
        dtype: number format, as torch calls it.
    """

    kind: str
    model: str
    plugin: bool = False
    profiles: tuple[tuple[str, str], ...] = ()
    adapters: tuple[str, ...] = ()
    rank: int = 16
    rows: int = 2
    terms: int = 0
    gates: bool = False
    in_flight: int = 64
    threads: int = 1
    length: int = 512
    dtype: str = "float32"


@dataclass(frozen=True)
class Work:
    """One block: `in_flight` requests at once, all of the same length, until all have their tokens.

    Attributes:
        profiles: for each request the number of its profile, or None.
        adapters: for each request the number of its adapter, or None.
        prompt, tokens: tokens of each prompt, and tokens generated for it.
        seed: of the prompts.
    """

    profiles: tuple[int | None, ...]
    adapters: tuple[int | None, ...]
    prompt: int
    tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Block:
    """What a block took.

    Attributes:
        seconds: from the first request to the last token.
        tokens: tokens generated.
        steered: tokens that the engine says it steered, or None where it does not say.
    """

    seconds: float
    tokens: int
    steered: int | None = None

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def after(self, first: Block) -> Block:
        """What this block did after `first`, one of the same prompts with fewer tokens: decoding alone, where that made
        one token for each. Raises EngineError when nothing is left."""
        left = Block(self.seconds - first.seconds, self.tokens - first.tokens, self.steered)
        if left.seconds <= 0 or left.tokens <= 0:
            raise EngineError(
                f"{self.tokens} tokens took {self.seconds:.2f} s and {first.tokens} took {first.seconds:.2f} s",
                where="trimtab bench steering",
                fix="Generate more tokens (--tokens), on a quieter machine",
            )
        return left


@dataclass
class Arm:
    """The parent's end of an engine."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, work: Work) -> Block:
        """Do a block. Raises EngineError when the child died."""
        return Block(**self._ask(asdict(work)))

    def wait(self) -> None:
        """Until the engine is ready. Raises EngineError when it never is."""
        self.facts = self._read()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise EngineError(f"the engine died:\n{tail}", where=f"{self.name}, log {self.log}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def started(name: str, setup: Setup, log: Path) -> Iterator[Arm]:
    """An engine that is being started; `wait` for it before it is used."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.evals.bench.arm", json.dumps(asdict(setup))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            env={**os.environ, **environment(setup)},
        )
        try:
            yield Arm(name, process, log)
        finally:
            process.kill()
            process.wait()


def environment(setup: Setup) -> dict[str, str]:
    """The variables of the child: with Trimtab's for steering, or with none of its plugins."""
    from ...steering.vllm.launch import ROWS_VARIABLE, SPINS, server_environment

    ours = server_environment([], [], setup.terms, gates=setup.gates)
    if SPINS not in os.environ:  # no side waits otherwise than stock vLLM does
        ours.pop(SPINS, None)
    common = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": str(setup.threads),
        **KEPT,
    }
    if not setup.plugin:
        mine = ("TRIMTAB", "VLLM_PLUGINS")
        return {k: v for k, v in ours.items() if not k.startswith(mine)} | {"VLLM_PLUGINS": "", **common}
    return {**ours, **common, ROWS_VARIABLE: str(setup.rows)}


def main() -> None:
    """The child: makes the engine, says that it is ready, and does blocks until its parent is gone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever engines print goes to the log
    raw = json.loads(sys.argv[1])
    setup = Setup(**{**raw, "profiles": tuple(map(tuple, raw["profiles"])), "adapters": tuple(raw["adapters"])})

    def say(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    from . import arm_engines

    engine = arm_engines.HooksEngine(setup) if setup.kind == "hooks" else arm_engines.VllmEngine(setup)
    say(engine.facts())
    for line in sys.stdin:
        fields = json.loads(line)
        work = Work(**{**fields, "profiles": tuple(fields["profiles"]), "adapters": tuple(fields["adapters"])})
        say(asdict(engine.run(work)))


if __name__ == "__main__":
    main()
