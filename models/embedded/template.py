"""The tokenizer and the chat template of the embedded models.

Tokens: byte-level BPE over single words, single digits and single punctuation marks, cut the same way wherever a word
stands. Each piece comes in up to four variants, plain, after a space, capitalised, and both: `milk`, ` milk`, `Milk`,
` Milk`. Variants share one embedding but for two common shifts (`train/variants.py`), so a model that copies a word
from a request into JSON copies one thing. The fixed pieces of a Hermes tool call are single tokens. Tools are shown as
one signature line each, not as JSON schema: a fifth of the tokens for the same facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...home import write_atomic

PIECE_COUNT = 1200
"""Pieces of lower-case words that are learned from text, before variants. More of them make shorter prompts, but each
is then seen less often in training, and what is hardly seen is badly copied."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PIECES = (
    "system\n",
    "user\n",
    "assistant\n",
    "user\n<tool_response>\n",
    "\n<tool_response>\n",
    "\n</tool_response>",
    '\n{"name": "',
    '"}}\n',
    "}}\n",
    '{"name": "',
    '", "arguments": {"',
    '", "arguments": {}}',
    '": "',
    '": ',
    '", "',
    ', "',
    '"}}',
    '"}',
    "}}",
    '{"',
)

CHAT_TEMPLATE = r"""
{%- macro kind(p) -%}
{%- if p.enum is defined and p.enum -%}{%- for v in p.enum -%}{{ v | tojson }}{{ "|" if not loop.last }}{%- endfor -%}
{%- elif p.anyOf is defined and p.anyOf -%}{{ kind(p.anyOf[0]) }}
{%- elif p.type is defined and p.type == "array" -%}{{ kind(p['items']) if p['items'] is defined else "any" }}[]
{%- elif p.type is defined -%}{{ p.type if p.type is string else p.type[0] }}
{%- else -%}any{%- endif -%}
{%- endmacro -%}
{%- set first = messages[0] if messages else none -%}
{%- set instructions = first.content if first and first.role == "system" else none -%}
{%- if instructions or tools -%}
{{ "<|im_start|>system\n" }}
{%- if instructions %}{{ instructions }}{{ "\n" if tools }}{% endif -%}
{%- if tools -%}{{ "<tools>\n" }}
{%- for tool in tools -%}
{%- set f = tool.function if tool.function is defined else tool -%}
{%- set schema = f.parameters if f.parameters is defined and f.parameters else {} -%}
{%- set required = schema.required if schema.required is defined and schema.required else [] -%}
{{ f.name }}(
{%- for name, p in (schema.properties if schema.properties is defined else {}).items() -%}
{%- set type = kind(p) -%}
{{ name }}{{ "" if name in required else "?" }}{{ ": " ~ type if type != "string" }}{{ ", " if not loop.last }}
{%- endfor -%}
){{ ": " ~ f.description if f.description is defined and f.description else "" }}{{ "\n" }}
{%- endfor -%}</tools>{%- endif -%}
{{ "<|im_end|>\n" }}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == "system" -%}
{%- elif m.role == "tool" -%}
{{ "<|im_start|>user" if loop.first or messages[loop.index0 - 1].role != "tool" }}
{{- "\n<tool_response>\n" ~ m.content ~ "\n</tool_response>" }}
{{- "<|im_end|>\n" if loop.last or messages[loop.index0 + 1].role != "tool" }}
{%- elif m.role == "assistant" -%}
{{ "<|im_start|>assistant\n" }}{{ m.content or "" }}
{%- for call in (m.tool_calls if m.tool_calls is defined and m.tool_calls else []) -%}
{%- set f = call.function if call.function is defined else call -%}
{{ "\n" if m.content or not loop.first }}{{ '<tool_call>\n{"name": "' ~ f.name ~ '", "arguments": ' }}
{{- f.arguments if f.arguments is string else f.arguments | tojson }}{{ "}\n</tool_call>" }}
{%- endfor -%}
{{ "<|im_end|>\n" }}
{%- else -%}
{{ "<|im_start|>" ~ m.role ~ "\n" ~ m.content ~ "<|im_end|>\n" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}
""".lstrip()


def turns(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bool]]:
    """The turns after the opening as `CHAT_TEMPLATE` writes them, up to the end of the last reply: text, and whether it
    is a reply. Many times as fast as the template, for the documents of a corpus."""
    read = ""
    for i, m in enumerate(messages):
        role = m["role"]
        if role == "system":
            continue
        if role == "tool":
            read += "" if i and messages[i - 1]["role"] == "tool" else "<|im_start|>user"
            read += f"\n<tool_response>\n{m['content']}\n</tool_response>"
            read += "" if i + 1 < len(messages) and messages[i + 1]["role"] == "tool" else "<|im_end|>\n"
        elif role == "assistant":
            said = m.get("content") or ""
            for n, call in enumerate(m.get("tool_calls") or ()):
                function = call.get("function", call)
                arguments = function["arguments"]
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                said += "\n" if n or m.get("content") else ""
                said += f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
            yield f"{read}<|im_start|>assistant\n", False
            yield f"{said}<|im_end|>", True
            read = "\n"
        else:
            read += f"<|im_start|>{role}\n{m['content']}<|im_end|>\n"


SPLIT = r" ?\p{Lu}?[^\P{L}\p{Lu}]+| ?\p{Lu}+(?![^\P{L}\p{Lu}])| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
"""One match is one word, digit or mark, with the space before it; `camelCase` is two words, `CAPS` one."""
SPACE = "\u0120"
"""How byte-level BPE writes a space."""


def with_variants(vocabulary: Iterable[str], merges: Iterable[tuple[str, str]]) -> tuple[list[str], list[Any]]:
    """Add the capitalised and the after-a-space variant of every piece.

    A capitalised word is merged like the lower-case one; the space is merged last, with whatever the first piece is, so
    all variants of a word are cut alike.

    Args:
        vocabulary: pieces of lower-case words, single bytes included.
        merges: what BPE learned, in order.

    Returns:
        The larger vocabulary and its merges, in order.
    """
    pieces = list(dict.fromkeys(vocabulary))
    rules: list[tuple[str, str]] = []
    for left, right in merges:
        rules.append((left, right))
        if _lower(left[0]):
            capital = left[0].upper() + left[1:]
            rules.append((capital, right))
            pieces.append(capital + right)
    pieces = list(dict.fromkeys(pieces))
    spaced = [p for p in pieces if p != SPACE]
    return pieces + [SPACE + p for p in spaced], rules + [(SPACE, p) for p in spaced]


def _lower(letter: str) -> bool:
    return "a" <= letter <= "z"


def root_of(token: str, known: Mapping[str, int]) -> tuple[str, bool, bool]:
    """The piece a token is a variant of, whether it stands after a space, and whether it is capitalised."""
    after_space = len(token) > 1 and token.startswith(SPACE)
    piece = token[1:] if after_space else token
    lower = piece[:1].lower() + piece[1:]
    capital = lower != piece and _lower(lower[0]) and lower in known
    return (lower if capital else piece), after_space, capital


def train_tokenizer(texts: Iterable[str], directory: Path) -> None:
    """Train the tokenizer on `texts` and write it, with the chat template, in the form transformers loads."""
    import json

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\P{L}\p{Lu}]+|."), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=PIECE_COUNT + len(alphabet), initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator((t.lower() for t in texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    pieces, rules = with_variants(sorted(learned["vocab"], key=learned["vocab"].__getitem__), merges)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=rules))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*MARKS, *PIECES)])
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    write_atomic(directory / "tokenizer.json", tokenizer.to_str())
    write_atomic(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_atomic(directory / "chat_template.jinja", CHAT_TEMPLATE)
