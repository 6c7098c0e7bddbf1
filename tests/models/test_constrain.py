"""Constrained calls: the grammar in xgrammar itself with the embedded models' tokenizer, and on the real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trimtab.errors import BadInput
from trimtab.models.chat import ChatRequest, Sampling, user
from trimtab.models.engines.constrain import response_format, unstrict
from trimtab.tools import Tool

Fits = Callable[[list[dict[str, Any]], str], bool]


def spec(name: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
    function = {"name": name, "description": "d", "parameters": parameters}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def one(schema: Any) -> list[dict[str, Any]]:
    """A tool with one required argument `a`."""
    return [spec("f", {"type": "object", "properties": {"a": schema}, "required": ["a"]})]


def call(arguments: Any, name: str = "f") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


@pytest.fixture(scope="module")
def fits(tiny_model: Path) -> Fits:
    """Whether the grammar lets a model write a text and end there, token by token as the tokenizer cuts it."""
    xgrammar = pytest.importorskip("xgrammar")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    def fits(tools: list[dict[str, Any]], text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(json.dumps(response_format(tools))))
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        return all(matcher.accept_token(token) for token in ids)

    return fits


TWO = [
    spec("add", {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}),
    spec("add_many", {
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"type": "string"}}, "sure": {"type": "boolean"}},
        "required": ["items"], "additionalProperties": False,
    }),
    spec("stop", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Certainly. Nothing is done. That is all.", True),
        ("", True),
        (call({"item": "milk"}, "add"), True),
        ('Sure thing!\n' + call({"item": 'a "b" \\ ü'}, "add"), True),
        (call({"items": ["a", "b"]}, "add_many") + "\n" + call({}, "stop"), True),
        (call({"items": [], "sure": True}, "add_many"), True),
        (call({"item": "milk"}, "sub"), False),
        (call({"item": 3}, "add"), False),
        (call({}, "add"), False),
        (call({"item": "milk", "more": 1}, "add"), False),
        (call({"items": ["a"], "sure": "true"}, "add_many"), False),
        (call({"x": 1}, "stop"), False),
        ("no <tool_call> at all", False),
        ('<tool_call>\n{"name": "stop", "arguments": {}}', False),
    ],
)  # fmt: skip
def test_text_is_free_and_calls_are_not(fits: Fits, text: str, good: bool) -> None:
    assert fits(TWO, text) is good


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "enum": ["p", "q"]}, ["p", "q"], ["r", 1]),
        ({"enum": ["p", 1, None]}, ["p", 1, None], ["r", 2]),
        ({"const": "p"}, ["p"], ["q"]),
        ({"type": "integer"}, [3, -3], [2.5, "3"]),
        ({"type": "integer", "minimum": 3, "maximum": 12}, [3, 12], [2, 13]),
        ({"type": "number"}, [3, -2.5], ["3", None]),
        ({"type": "number", "exclusiveMaximum": 3}, [2.9], [3]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^a+$"}, ["aa"], ["b", "ab"]),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [True, None]),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, [["a"], ["a", "b"]], [[], [1]]),
        ({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, [{"x": 1}], [{}, {"x": "1"}]),
        ({"type": "object", "additionalProperties": {"type": "string"}}, [{"x": "a"}, {}], [{"x": 1}]),
    ],
)  # fmt: skip
def test_what_the_grammar_keeps(fits: Fits, schema: Any, good: list[Any], bad: list[Any]) -> None:
    tools = one(schema)
    assert [v for v in good if not fits(tools, call({"a": v}))] == []
    assert [v for v in bad if fits(tools, call({"a": v}))] == []


def test_every_built_in_tool_can_be_constrained(fits: Fits, tmp_path: Path) -> None:
    from trimtab.tools.builtin import builtin_tools

    tools = [t.spec() for t in builtin_tools(tmp_path).values()]
    assert fits(tools, call({"expression": "2 + 3"}, "calculate"))
    assert not fits(tools, call({"expression": 5}, "calculate"))


def test_references_are_followed(fits: Fits) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/Z"}}, "$defs": {"Z": {"type": "integer"}}}
    assert fits([spec("f", schema)], call({"a": 1}))
    assert not fits([spec("f", schema)], call({"a": "1"}))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 5}, "multipleOf"),
        ({"allOf": [{"type": "string"}, {"enum": ["b"]}]}, "allOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": ["string", "null"], "minLength": 2}, "minLength"),
        ({"type": "integer", "enum": [1, 5], "minimum": 3}, "minimum"),
        ({"type": "integer", "enum": ["p", 1]}, "not of its type"),
        ({"type": "string", "pattern": "a"}, "pattern"),
        ({"type": "string", "format": "date", "maxLength": 4}, "format"),
        ({"type": "object", "required": ["x"]}, "requires 'x'"),
        ({"type": "array", "items": {"type": "string", "not": {"const": "a"}}}, "not"),
        ({"anyOf": [{"type": "string", "not": {}}]}, "not"),
    ],
)
def test_what_it_would_not_keep_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        response_format(one(schema))
    assert str(caught.value.where).startswith("tool 'f': parameters.a")
    with pytest.raises(BadInput, match="no object"):
        response_format([spec("f", {"type": "string"})])


def test_a_tools_own_strictness_is_left_to_the_grammar() -> None:
    tool = spec("f", {"type": "object"})
    strict = {**tool, "function": {**tool["function"], "strict": True}}
    assert unstrict([strict]) == [tool]
    assert strict["function"]["strict"] is True


HALL = spec("reserve_hall", {
    "type": "object",
    "properties": {"guests": {"type": "integer", "minimum": 100}, "city": {"type": "string", "enum": ["graz", "linz"]}},
    "required": ["guests", "city"], "additionalProperties": False,
})  # fmt: skip
"""A model that is left free writes the number that it was told, even below the minimum."""


@pytest.mark.server
@pytest.mark.timeout(900)
async def test_the_server_holds_calls_to_the_schema(server: Any) -> None:
    from trimtab.models.embedded import SMALL

    tool = Tool("reserve_hall", "d", HALL["function"]["parameters"], lambda **_: None)
    ask = ChatRequest((user("reserve a hall with guests 26, city graz"),), (HALL,), constrained=True)
    known = await server.engine.profiles()
    seen = 0
    for profile in (None, *known[:1]):
        for seed in range(4):
            sampling = Sampling(1.0 if seed else 0.0, max_tokens=96, seed=seed)
            reply = await server.engine.chat(replace(ask, profile=profile, sampling=sampling))
            assert (reply.receipt.profile or "").partition("@")[0] == (profile or "")
            for made in reply.message.tool_calls:
                seen += 1
                assert made.name == "reserve_hall"
                assert tool.validate(made.arguments)["guests"] >= 100
    if server.model == SMALL:  # a random model never comes to a call
        assert seen
    streamed = [piece async for piece in server.engine.stream(replace(ask, sampling=Sampling(max_tokens=96)))][-1].reply
    whole = await server.engine.chat(replace(ask, sampling=Sampling(max_tokens=96)))
    assert [(c.name, c.arguments) for c in streamed.message.tool_calls] == [
        (c.name, c.arguments) for c in whole.message.tool_calls
    ]


@pytest.mark.server
@pytest.mark.timeout(900)
async def test_without_a_call_the_answer_is_the_same(server: Any) -> None:
    ask = ChatRequest((user("What is the meaning of life?"),), (HALL,), sampling=Sampling(max_tokens=48))
    free, held = [await server.engine.chat(replace(ask, constrained=c)) for c in (False, True)]
    if not free.message.tool_calls:
        assert held.message == free.message
    bare = replace(ask, tools=(), constrained=True)
    assert not (await server.engine.chat(bare)).message.tool_calls
    with pytest.raises(BadInput, match="uniqueItems"):
        await server.engine.chat(
            replace(ask, tools=tuple(one({"type": "array", "uniqueItems": True})), constrained=True)
        )
