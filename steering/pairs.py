"""Contrast pairs: one prompt, two completions that differ in the behaviour to steer. One JSON object a line:

{"messages": [{"role": "user", "content": "..."}], "tools": [...], "positive": "143.", "negative": "The answer is 143."}
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from ..errors import BadInput, NotFound
from .files import canonical_json


class Pair(BaseModel):
    """A prompt (an OpenAI conversation, with tools if any) and two completions, as the assistant would write them.

    Attributes:
        _place: the file and line it was read from, for errors; empty for one that was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    positive: Annotated[str, Field(min_length=1)]
    negative: Annotated[str, Field(min_length=1)]
    _place: str = PrivateAttr("")

    @property
    def prompt(self) -> str:
        """What makes two prompts the same, as text."""
        return canonical_json([self.messages, self.tools])


@dataclass(frozen=True)
class Encoded:
    """A pair as token ids. `end` is the end-of-turn token, or None where the tokenizer has none."""

    prompt: list[int]
    positive: list[int]
    negative: list[int]
    end: int | None


def read_pairs(path: Path) -> tuple[list[Pair], str]:
    """The pairs of a JSONL file, and the SHA-256 of its bytes.

    Raises:
        NotFound: there is no such file.
        BadInput: naming the line that does not hold together.
    """
    if not path.is_file():
        raise NotFound("no such file", where=str(path), fix="Give a JSONL file of contrast pairs")
    raw = path.read_bytes()
    pairs: list[Pair] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            pair = Pair.model_validate(json.loads(line.decode("utf-8")))
            same = pair.positive == pair.negative or not pair.prompt  # JSON in, JSON out: NaN is refused here
            json.dumps(pair.model_dump(), ensure_ascii=False).encode()
            pair._place = f"{where}: "
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the line"
            raise BadInput(
                f"{field}: {first['msg']}", where=where, fix="A pair has messages, positive, negative and maybe tools"
            ) from None
        except UnicodeEncodeError:
            raise BadInput("half a surrogate pair is not text", where=where, fix="Leave it out") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"not JSON ({error})", where=where, fix="Write one JSON object a line") from None
        if same:
            raise BadInput("both completions are the same", where=where, fix="Make them differ in the behaviour")
        pairs.append(pair)
    if not pairs:
        raise BadInput("no pairs", where=str(path), fix="Write one JSON object a line")
    return pairs, hashlib.sha256(raw).hexdigest()


def split(pairs: Sequence[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from and pairs to check with; pairs with one prompt stay together, so nothing leaks.

    Args:
        pairs: all of them.
        held_out: share of the prompts to hold out, from 0 to below 1.
        seed: draws the same split for the same pairs.

    Returns:
        (learn, check), both in the file's order; check is empty where the share comes to half a prompt or less, as a
        quarter of 2 prompts does.
    """
    if not 0 <= held_out < 1:
        raise BadInput(f"{held_out} is not a share from 0 to below 1", where="held-out share")
    prompts = sorted({pair.prompt for pair in pairs})
    random.Random(seed).shuffle(prompts)
    count = min(round(len(prompts) * held_out), len(prompts) - 1)
    checked = set(prompts[:count])
    return [p for p in pairs if p.prompt not in checked], [p for p in pairs if p.prompt in checked]


def encode(pair: Pair, tokenizer: Any) -> Encoded:
    """A pair through the tokenizer's chat template. Prompt and completions are tokenized apart, as when generating.

    Raises:
        BadInput: the chat template refuses the conversation, or a completion has no tokens.
    """
    try:
        text = tokenizer.apply_chat_template(
            [_for_template(message) for message in pair.messages],
            tools=pair.tools,
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception as error:  # templates are programs and raise what they like
        what = f"the chat template refuses it ({error})"
        raise BadInput(what, where=f"{pair._place}messages", fix="Correct the pair") from None

    def ids(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False)["input_ids"])

    encoded = Encoded(ids(text), ids(pair.positive), ids(pair.negative), tokenizer.eos_token_id)
    if not encoded.prompt or not encoded.positive or not encoded.negative:
        what = "the prompt or a completion has no tokens"
        raise BadInput(what, where=f"{pair._place}pair", fix="Write some text")
    return encoded


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """Arguments of tool calls as objects, which is what chat templates expect and servers hand them."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"] or "{}")
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}
