import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.agent.router import load_router
from trimtab.agent.train_router import evaluate, fit, save, train
from trimtab.errors import BadInput

ASKS = {
    "calc": ["convert {} miles to km", "what is {} plus 4", "how many days until {} May", "work out {} times 9"],
    "office": ["add milk {} to my list", "what is on my calendar on {} May", "read notes{}.txt", "email of Ann {}"],
    "other": ["write a poem about {} cats", "hello there {}", "who won in {}", "translate {} into French"],
}
DATA = [(ask.format(n), label) for label, asks in ASKS.items() for ask in asks for n in range(12)]
TWO = [(text, label) for text, label in DATA if label != "other"]


@pytest.fixture(scope="module", params=["three labels", "two labels"])
def pair(request: Any, tmp_path_factory: Any) -> Any:
    data = DATA if request.param == "three labels" else TWO
    place = tmp_path_factory.mktemp("router")
    model = fit(data)
    save(model, place, {})
    return model, load_router(place)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(st.text(max_size=80), st.sampled_from([text for text, _ in DATA]).map(lambda t: f"please {t}  NOW"))
)
def test_it_answers_as_scikit_learn_does(pair: Any, text: str) -> None:
    model, router = pair
    expected = dict(zip(model.classes_, model.predict_proba([text])[0], strict=True))
    found = router.probabilities(text)
    assert set(found) == set(expected)
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=2e-5)


def test_training_writes_no_pickle_and_reports_what_it_measures(tmp_path: Path) -> None:
    report = train(tmp_path, DATA, [("convert 3 stone to pounds", "calc"), ("sing me a poem", "calc")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["router.json", "router.safetensors"]
    assert report.n == 2
    assert report.accuracy == 0.5
    assert report.wrong == {"calc": {"other": 1}}
    again = json.loads((tmp_path / "router.json").read_text())
    assert again["provenance"]["requests"] == len(DATA)
    router = load_router(tmp_path)
    assert router is not None
    assert evaluate(router, DATA).accuracy == 1.0
    first = (tmp_path / "router.safetensors").read_bytes()
    train(tmp_path, DATA, DATA[:1])
    assert (tmp_path / "router.safetensors").read_bytes() == first


def test_missing_and_broken_routers(tmp_path: Path) -> None:
    assert load_router(tmp_path) is None
    save(fit(DATA), tmp_path, {})
    about = json.loads((tmp_path / "router.json").read_text())
    for change, says in (
        ({"format": 9}, "format 9"),
        ({"words": about["words"][1:]}, "shape"),
        ({"labels": 3}, "not a router"),
    ):
        (tmp_path / "router.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(BadInput, match=says):
            load_router(tmp_path)
    (tmp_path / "router.json").write_text(json.dumps(about))
    (tmp_path / "router.safetensors").write_bytes(b"junk")
    with pytest.raises(BadInput, match="not readable"):
        load_router(tmp_path)
    with pytest.raises(BadInput, match="two labels"):
        fit([("a b", "calc")])


def test_the_shipped_router_on_phrasings_it_never_saw() -> None:
    from trimtab.models.embedded.corpus import labelled_requests

    router = load_router()
    assert router is not None
    report = evaluate(router, labelled_requests("test", 400, 77))
    assert report.accuracy > 0.95
    assert report.accuracy_followed is not None
    assert report.accuracy_followed > 0.97
