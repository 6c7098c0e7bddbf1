"""YAML from anywhere: what is read is what PyYAML reads, and what could hurt is refused with its line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.yaml_text import DEEPEST, load_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN, st.booleans())
def test_what_is_written_is_read(data: Any, flow: bool) -> None:
    text = yaml.dump(data, Dumper=_NoAliases, default_flow_style=flow)
    assert load_yaml(text, "f") == yaml.safe_load(text)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@given(st.text() | st.text(alphabet="ab:-[]{}#&*!|>'\"%@`, \n\t\ud800\x00", max_size=40))
@example('!!int ""')
@example("? [a]\n: b")
@example("!!python/object/apply:os.getcwd []")
def test_any_text_is_read_or_refused(text: str) -> None:
    refused: BadInput | None = None
    try:
        load_yaml(text, "there.yaml")
    except BadInput as error:
        refused = error
    assert refused is None or (refused.where or "").startswith("there.yaml")
    assert refused is None or "YAML" in refused.what


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands here twice"),
        ("x:\n- a: &one [1]\n- *one\n", 3, "aliases"),
        ("a:\n  - b\n c: d\n", 3, "expected"),
        ("first: 1\nsecond: !!python/name:os.system\n", 2, "python"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(BadInput, match=problem) as caught:
        load_yaml(text, "f.yaml")
    assert caught.value.where == f"f.yaml: line {line}"


@pytest.mark.parametrize("depth", [DEEPEST + 1, 300_000])
@pytest.mark.parametrize("one", ["[", "{a: ", "- "])
def test_endless_nesting_is_refused(one: str, depth: int) -> None:
    with pytest.raises(BadInput, match="nested too deeply"):
        load_yaml(one * depth, "f")
    assert load_yaml("[" * DEEPEST + "]" * DEEPEST, "f")


def test_scalars_are_what_they_look_like() -> None:
    read = load_yaml("{i: 0x10, f: .inf, t: yes, n: ~, s: '1', d: 2026-01-02}", "f")
    assert (read["i"], read["t"], read["n"], read["s"], read["d"].year) == (16, True, None, "1", 2026)
    assert math.isinf(read["f"])
