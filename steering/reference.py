"""What a served profile is held to: the base model in float32 with Hugging Face, PEFT and hooks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .profile import Profile


class Reference:
    """The base model in float32, with hooks and PEFT.

    Args:
        folder: the base model's.
        scratch: where merged adapters are written; a folder of its own by default.
    """

    def __init__(self, folder: Path, scratch: Path | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if scratch is None:
            self._own = tempfile.TemporaryDirectory(prefix="trimtab-verify-")
            scratch = Path(self._own.name)
        self._merged = scratch

    def prompts(self, lengths: Sequence[int], seed: int) -> list[list[int]]:
        """Random token ids, special ones left out; another seed gives prompts that no cache holds."""
        draw = self._torch.Generator().manual_seed(seed)
        special = set(self.tokenizer.all_special_ids)
        known = [i for i in range(min(len(self.tokenizer), self.model.config.vocab_size)) if i not in special]
        return [[known[int(i)] for i in self._torch.randint(0, len(known), (n,), generator=draw)] for n in lengths]

    def scored(self, profile: Profile | None, prompt: Sequence[int], said: Sequence[int]) -> tuple[list[float], int]:
        """Log probabilities (nats) of `said` after `prompt`, and how many tokens were edited on the way."""
        from .hooks import adapted, steered
        from .weights import merged_adapter

        with self._torch.inference_mode(), ExitStack() as stack:
            model, run = self.model, None
            if profile is not None:
                merged = merged_adapter(profile, self._merged)
                model = stack.enter_context(adapted(model, None if merged is None else merged[0]))
                run = stack.enter_context(steered(model, profile, len(prompt), tokenizer=self.tokenizer))
            ids = self._torch.tensor([[*prompt, *said[:-1]]])
            rows = model(input_ids=ids).logits[0, len(prompt) - 1 :].float().log_softmax(-1)
        return [float(row[i]) for row, i in zip(rows, said, strict=True)], 0 if run is None else run.edited
