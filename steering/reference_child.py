"""The reference in a process of its own, for a server that must not load a second model into the process that speaks.

The process can be ended at any moment, whatever it computes, and its memory goes with it; a thread could not be, and
would take turns with the server's event loop. Parent and child exchange JSON lines; the child ends when its parent
does. It is started as `python -m trimtab.steering.reference_child FOLDER SCRATCH`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, EngineError
from .admin import ADMIN_VARIABLE

if TYPE_CHECKING:
    from .profile import Profile

SECRETS = (ADMIN_VARIABLE, "TRIMTAB_API_KEY", "VLLM_API_KEY", "OPENAI_API_KEY", "HF_TOKEN")
"""Variables that a child which only computes has no use for."""


class ChildReference:
    """A `Reader` that asks a child. Its methods block, and end when `close` is called meanwhile.

    Args:
        folder: the base model's.
    """

    def __init__(self, folder: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="trimtab-verify-")
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.steering.reference_child", str(folder), self._scratch.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
        )

    def prompts(self, lengths: Sequence[int], seed: int) -> list[list[int]]:
        """As `Reference.prompts`. Raises EngineError when the child has ended, or failed."""
        return [list(prompt) for prompt in self._ask({"lengths": list(lengths), "seed": seed})]

    def scored(self, profile: Profile | None, prompt: Sequence[int], said: Sequence[int]) -> tuple[list[float], int]:
        """As `Reference.scored`. Raises EngineError when the child has ended, or failed."""
        content = None if profile is None else [str(profile.directory.resolve()), profile.sha256]
        scores, edited = self._ask({"profile": content, "prompt": list(prompt), "said": list(said)})
        return [float(score) for score in scores], int(edited)

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()

    def close(self) -> None:
        """End the child and remove what it wrote."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # something may be left that nobody reads any more
                if pipe is not None:
                    pipe.close()
        self._scratch.cleanup()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            raise EngineError(
                f"the reference ended with exit code {self._process.wait()}",
                where="verify",
                fix="See the server's log; there must be memory for the base model in float32",
            )
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(f"the reference failed: {answer['error']}", where="verify")
        return answer["answer"]


def answers(folder: Path, scratch: Path) -> Callable[[dict[str, Any]], Any]:
    """What the child does: a question -> its answer. The model is loaded by now."""
    from .profile import load_profile
    from .reference import Reference

    reference = Reference(folder, scratch)
    loaded: dict[str, Profile] = {}

    def profile_of(content: tuple[str, str] | None) -> Profile | None:
        if content is None:
            return None
        directory, sha256 = content
        if directory not in loaded:
            loaded[directory] = load_profile(Path(directory))
        if loaded[directory].sha256 != sha256:
            raise BadInput("the profile changed on disk while it was verified", where=directory, fix="Verify again")
        return loaded[directory]

    def answer(question: dict[str, Any]) -> Any:
        if "lengths" in question:
            return reference.prompts(question["lengths"], question["seed"])
        return reference.scored(profile_of(question["profile"]), question["prompt"], question["said"])

    return answer


def main() -> None:
    """Answer the lines of stdin until it ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    os.nice(5)  # the server's own work goes first
    answer = answers(Path(sys.argv[1]), Path(sys.argv[2]))
    for line in sys.stdin:
        try:
            reply = {"answer": answer(json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
