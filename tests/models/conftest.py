"""What the tests of training share: a tokenizer of the embedded models' kind, trained on little."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def words_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with variants and the chat template; it is not to be written to."""
    from trimtab.models.train.base import make_tokenizer

    folder = tmp_path_factory.mktemp("words")
    make_tokenizer(folder, documents=200)
    return folder


@pytest.fixture(scope="session")
def rendered() -> Callable[[Any, dict[str, Any]], str]:
    """Writes a whole conversation by a tokenizer's chat template, arguments as objects."""

    def render(tokenizer: Any, document: dict[str, Any]) -> str:
        messages = []
        for m in document["messages"]:
            calls = [
                {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
                for c in m.get("tool_calls") or []
            ]
            messages.append({**m, "tool_calls": calls} if calls else m)
        text: str = tokenizer.apply_chat_template(messages, tools=document["tools"], tokenize=False)
        return text

    return render
