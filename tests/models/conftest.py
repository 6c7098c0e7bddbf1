"""What the tests of training share: a tokenizer of the embedded models' kind, trained on little."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def words_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with variants and the chat template; it is not to be written to."""
    from trimtab.models.train.base import make_tokenizer

    folder = tmp_path_factory.mktemp("words")
    make_tokenizer(folder, documents=200)
    return folder
