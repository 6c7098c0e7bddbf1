"""`trimtab train router`: fit the request classifier on the corpus and write it as JSON and safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..home import write_atomic
from .router import FORMAT, Router, char_grams, load_router, word_grams

Labelled = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Report:
    """How well a router does on requests it was not trained on.

    Attributes:
        accuracy: share of right labels over all `n` requests.
        followed: share of requests whose probability reaches the threshold.
        accuracy_followed: share of right labels among those; None if there are none.
        wrong: label -> the label it was taken for -> how often.
    """

    n: int
    accuracy: float
    threshold: float
    followed: float
    accuracy_followed: float | None
    wrong: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**vars(self)}


def fit(data: Labelled, seed: int = 0) -> Any:
    """The scikit-learn pipeline that `Router` copies, fitted.

    Raises:
        BadInput: fewer than two labels.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    if len({label for _, label in data}) < 2:
        raise BadInput("requests of at least two labels are needed", where="router data")
    # The same functions cut the text here and in `Router`, so the two cannot drift apart.
    features = make_union(
        TfidfVectorizer(analyzer=word_grams, sublinear_tf=True, min_df=2),
        TfidfVectorizer(analyzer=char_grams, sublinear_tf=True, min_df=3),
    )
    model = make_pipeline(features, LogisticRegression(C=10.0, max_iter=400, random_state=seed))
    return model.fit([text for text, _ in data], [label for _, label in data])


def save(model: Any, directory: Path, provenance: dict[str, Any]) -> None:
    """Write a fitted pipeline's numbers to `directory`; the old router stays whole until the new one is."""
    import numpy as np
    from safetensors.numpy import save as safetensors_bytes

    features, logistic = model[0], model[1]
    words, chars = (vectorizer for _, vectorizer in features.transformer_list)
    weights, bias = logistic.coef_, logistic.intercept_
    if len(logistic.classes_) == 2:
        # Two labels have one row, the second one's log odds: softmax([0, z]) is the logistic function of z.
        weights, bias = np.vstack([np.zeros_like(weights), weights]), np.concatenate([np.zeros(1), bias])
    tensors = {"idf": np.concatenate([words.idf_, chars.idf_]), "weights": weights, "bias": bias}
    about = {
        "format": FORMAT,
        "labels": [str(label) for label in logistic.classes_],
        "words": list(words.get_feature_names_out()),
        "chars": list(chars.get_feature_names_out()),
        "provenance": provenance,
    }
    # scikit-learn's arrays may lie column by column, and safetensors writes memory as it lies.
    plain = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    write_atomic(directory / "router.safetensors", safetensors_bytes(plain))
    write_atomic(directory / "router.json", json.dumps(about, ensure_ascii=False) + "\n")


def evaluate(router: Router, data: Labelled, threshold: float = 0.6) -> Report:
    """A router on labelled requests."""
    wrong: dict[str, dict[str, int]] = {}
    right = followed = right_followed = 0
    for text, label in data:
        said, probability = router.classify(text)
        right += said == label
        followed += probability >= threshold
        right_followed += said == label and probability >= threshold
        if said != label:
            wrong.setdefault(label, {})[said] = wrong.get(label, {}).get(said, 0) + 1
    n = len(data)
    return Report(n, right / n, threshold, followed / n, right_followed / followed if followed else None, wrong)


def train(directory: Path, train_data: Labelled, test_data: Labelled, *, seed: int = 0) -> Report:
    """Fit, write, read back and evaluate.

    Args:
        directory: where the router goes.
        train_data, test_data: requests with labels, of different phrasings.

    Returns:
        The written router on the test data.

    Raises:
        BadInput: fewer than two labels.
        OSError: the folder cannot be written.
    """
    model = fit(train_data, seed)
    digest = hashlib.sha256(json.dumps(list(train_data)).encode()).hexdigest()
    save(model, directory, {"data_sha256": digest, "requests": len(train_data), "seed": seed})
    router = load_router(directory)
    assert router is not None
    return evaluate(router, test_data)
