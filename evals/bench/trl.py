"""The other side of the training benchmark: TRL's SFTTrainer on the same model, conversations and LoRA."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import NotFound
from ...models.train.data import IGNORE, Example
from ...models.train.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """One way to run TRL.

    Attributes:
        packing: `bfd` (whole conversations, which do not see each other), `wrapped` (cut anywhere, and they do), or
            None: padded, conversations of a length together.
        micro: rows of a forward pass; the step's other rows are accumulated.
        compiled: whether torch compiles the model.
    """

    name: str
    packing: str | None
    micro: int
    compiled: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Block:
    """Some steps of training: what they read, as rows hold it and as the conversations have it, and how long it
    took."""

    tokens: int
    conversation_tokens: int
    seconds: float


def settings(rows: int, conversations: int) -> list[Setting]:
    """What TRL is tried with, for so many rows a step when packed and conversations a step when padded."""
    return [
        Setting("packed, row by row", "bfd", 1),
        Setting("packed, row by row, compiled", "bfd", 1, True),
        Setting("packed, one long row", "bfd", rows),
        Setting("wrapped", "wrapped", rows),
        Setting("wrapped, compiled", "wrapped", rows, True),
        Setting("padded", None, conversations),
    ]


def need_trl() -> None:
    """Find out that TRL is missing before anything is measured.

    Raises:
        NotFound: it is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("trl", "datasets") if find_spec(name) is None]
    if missing:
        raise NotFound(
            f"{' and '.join(missing)} not installed, and the benchmark compares with TRL",
            where="trimtab bench train",
            fix="pip install 'trimtab[bench]'",
        )


def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    setting: Setting,
    blocks: int,
    steps: int,
    between: Callable[[int], None] = lambda block: None,
) -> list[Block]:
    """Train by TRL for `blocks` blocks of `steps` steps after one that warms up and is not counted.

    Args:
        model: a PEFT model; its adapter is trained.
        examples: conversations as tokens; the pool that TRL draws from.
        recipe: learning rate, rows a step, length of a row.
        between: called with the number of the block that comes next; its time is not TRL's.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from ...models.train.attention import bfloat16_is_fast

    datasets.disable_progress_bars()
    pool = datasets.Dataset.from_dict(
        {
            "input_ids": [list(e.ids) for e in examples],
            "labels": [[i if keep else IGNORE for i, keep in zip(e.ids, e.learn, strict=True)] for e in examples],
        }
    )
    done: list[Block] = []
    read = [0]

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Closes a block every `steps` steps."""

        began = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps:
                return
            seconds = time.perf_counter() - self.began
            if state.global_step > steps:
                # Each conversation is read with its own opening: what is read is what the conversations have.
                done.append(Block(read[0], read[0], seconds))
            if len(done) < blocks:
                between(len(done))
            read[0] = 0
            self.began = time.perf_counter()

    with tempfile.TemporaryDirectory(prefix="trimtab-trl-") as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=(blocks + 1) * steps,
                per_device_train_batch_size=setting.micro,
                gradient_accumulation_steps=1 if setting.packing is None else recipe.batch // setting.micro,
                packing=setting.packing is not None,
                packing_strategy=setting.packing or "bfd",
                max_length=recipe.length,
                # One shape, so that torch compiles once.
                pad_to_multiple_of=recipe.length if setting.compiled else None,
                train_sampling_strategy="random" if setting.packing else "group_by_length",
                torch_compile=setting.compiled,
                gradient_checkpointing=False,
                learning_rate=recipe.lr,
                lr_scheduler_type="constant",
                weight_decay=recipe.weight_decay,
                adam_beta2=recipe.beta2,
                max_grad_norm=recipe.clip,
                bf16=bfloat16_is_fast(),
                use_cpu=True,
                seed=recipe.seed,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=pool,
            processing_class=tokenizer,
            callbacks=[Turns()],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            read[0] += sum(len(row["input_ids"]) for row in rows)
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()
    return done


def versions() -> dict[str, str]:
    """What was compared with."""
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "transformers", "peft", "accelerate", "torch")}


def quiet() -> None:
    """Keep TRL's and transformers' remarks out of the output."""
    import logging
    import warnings

    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    for name in ("trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
