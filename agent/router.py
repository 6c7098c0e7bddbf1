"""The request classifier at work: tf-idf over words and characters, then logistic regression, in numpy.

`train_router` fits the same model with scikit-learn; a test holds the two equal. The trained numbers are JSON and
safetensors, so nothing is unpickled and scikit-learn is not imported to route a request.

    features   words 1-2 and characters 3-5 of the request, lower-cased, digits as 0; per kind
               x_t = (1 + ln count_t) * idf_t, scaled to length 1
    answer     softmax(W x + b): a probability for each label
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
WORDS, CHARS = (1, 2), (3, 5)
_WORD = re.compile(r"(?u)\b\w+\b")
_DIGIT = re.compile(r"\d")
_SPACE = re.compile(r"\s\s+")


def normalised(text: str) -> str:
    """A request as the features see it: which digit it is says nothing about who should answer."""
    return _DIGIT.sub("0", text.lower())


def word_grams(text: str) -> list[str]:
    """Words, and pairs of neighbours."""
    words = _WORD.findall(normalised(text))
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def char_grams(text: str) -> list[str]:
    """Runs of 3 to 5 characters."""
    clean = _SPACE.sub(" ", normalised(text))
    return [clean[i : i + n] for n in range(CHARS[0], CHARS[1] + 1) for i in range(len(clean) - n + 1)]


@dataclass(frozen=True)
class Router:
    """A trained classifier.

    Attributes:
        labels: what a request may be, in the order of the weights' rows.
        words, chars: vocabularies, term -> column within its kind.
        idf: inverse document frequencies [columns], words first, then characters.
        weights: [labels, columns].
        bias: [labels].
    """

    labels: tuple[str, ...]
    words: dict[str, int]
    chars: dict[str, int]
    idf: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def probabilities(self, text: str) -> dict[str, float]:
        """The probability of each label."""
        import numpy as np

        logits = self.bias.copy()
        offset = 0
        for vocabulary, terms in ((self.words, word_grams(text)), (self.chars, char_grams(text))):
            counts = Counter(column for term in terms if (column := vocabulary.get(term)) is not None)
            if counts:
                columns = np.fromiter(counts.keys(), np.int64) + offset
                values = (1.0 + np.log(np.fromiter(counts.values(), np.float64))) * self.idf[columns]
                logits += self.weights[:, columns] @ (values / np.linalg.norm(values))
            offset += len(vocabulary)
        odds = np.exp(logits - logits.max())
        return dict(zip(self.labels, (odds / odds.sum()).tolist(), strict=True))

    def classify(self, text: str) -> tuple[str, float]:
        """The likeliest label and its probability."""
        return max(self.probabilities(text).items(), key=lambda item: item[1])


def load_router(directory: Path | None = None) -> Router | None:
    """The router in a folder, None if there is none.

    Args:
        directory: where `router.json` and `router.safetensors` are; None is the shipped one.

    Raises:
        BadInput: the files do not hold together; names file and field.
    """
    if directory is None:
        from ..models.embedded import ROUTER as directory
    assert directory is not None
    path = directory / "router.json"
    if not path.exists():
        return None
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise BadInput(f"format {about['format']!r}, this version reads {FORMAT}", where=f"{path}: format")
        labels, words, chars = (tuple(str(x) for x in about[key]) for key in ("labels", "words", "chars"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"not a router ({error!r})", where=str(path), fix="Train one with `trimtab train router`"
        ) from None
    tensors = _tensors(directory / "router.safetensors", len(labels), len(words) + len(chars))
    return Router(labels, _columns(words), _columns(chars), *tensors)


def _columns(terms: tuple[str, ...]) -> dict[str, int]:
    return {term: i for i, term in enumerate(terms)}


def _tensors(path: Path, labels: int, columns: int) -> tuple[NDArray[np.float64], ...]:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"not readable ({error})", where=str(path), fix="Train one with `trimtab train router`"
        ) from None
    out = []
    for name, shape in {"idf": (columns,), "weights": (labels, columns), "bias": (labels,)}.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or not np.isfinite(tensor).all():
            found = "missing" if tensor is None else f"of shape {tensor.shape}, or not finite"
            raise BadInput(f"{name} is {found}; shape {shape} is expected", where=f"{path}: {name}")
        out.append(tensor.astype(np.float64))
    return tuple(out)
