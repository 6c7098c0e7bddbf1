"""Hermes tool calls: the same reading as vLLM's parser, and nothing of a call in streamed text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.models.chat import Message, ToolCall, user
from trimtab.models.engines.hermes import OPEN, parse, speakable, template_messages, template_tools


def call(name: object = "f", arguments: object = None) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments or {}})}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("hello", "hello", []),
        ("", None, []),
        (call(), None, [("f", "{}")]),
        ("\n " + call(), None, [("f", "{}")]),
        ("Let me see. " + call("g", {"x": "é"}), "Let me see. ", [("g", '{"x": "é"}')]),
        (call("a") + "\n" + call("b"), None, [("a", "{}"), ("b", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}', None, [("f", '{"x": 1}')]),  # the end mark is missing
        (call("f", [1]), None, [("f", "[1]")]),
        ("<tool_call>", "<tool_call>", []),
        ("so <tool_call>{broken</tool_call>", "so <tool_call>{broken</tool_call>", []),
        (call() + "<tool_call>{broken</tool_call>", call() + "<tool_call>{broken</tool_call>", []),
        ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', []),
        (call(3), call(3), []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    ],
)
def test_parse(text: str, content: str | None, calls: list[tuple[str, str]]) -> None:
    assert parse(text) == (content, calls)


pieces = st.lists(st.sampled_from(["<", "tool_call", ">", "a", "</tool_call>", OPEN, call(), "\n"]), max_size=8)


@given(pieces)
def test_streamed_text_never_has_to_be_taken_back(parts: list[str]) -> None:
    text = "".join(parts)
    said = 0
    for end in range(len(text) + 1):
        now = speakable(text[:end])
        assert said <= now <= end
        said = now
    assert OPEN not in text[:said]
    content, _ = parse(text)
    assert (content or text).startswith(text[:said]) or not text[:said].strip()


def test_messages_for_the_template() -> None:
    calls = tuple(ToolCall(str(i), "f", text) for i, text in enumerate(['{"a": 1}', "", "[1]", "{"]))
    user_turn, turn = template_messages([user("x"), Message("assistant", None, calls)])
    assert user_turn == {"role": "user", "content": "x"}
    assert turn["content"] == ""
    assert [c["function"]["arguments"] for c in turn["tool_calls"]] == [{"a": 1}, {}, {}, {}]


def test_tools_for_the_template_are_vllms() -> None:
    given_tool = {"function": {"parameters": {}, "name": "f", "colour": 3}, "type": "function"}
    assert json.dumps(template_tools([given_tool])) == (
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {}}}]'
    )
    assert template_tools([]) is None
