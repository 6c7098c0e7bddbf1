"""The tokenizer and the chat template of the embedded models.

Tokens: byte-level BPE over single words, single digits, single spaces and single punctuation marks, so that a word is
the same token after a space, a quote or a slash, and copying it from a request into JSON is copying a token. The fixed
pieces of a Hermes tool call are single tokens. Tools are shown as one signature line each, not as JSON schema: a fifth
of the tokens for the same facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...home import write_atomic

VOCABULARY = 3072
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PIECES = (
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


def train_tokenizer(texts: Iterable[str], directory: Path) -> None:
    """Train the tokenizer on `texts` and write it, with the chat template, in the form transformers loads."""
    import json

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(t, special=False, normalized=False) for t in (*MARKS, *PIECES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(marks),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(marks)
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
