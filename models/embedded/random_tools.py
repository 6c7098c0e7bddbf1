"""Documents with tools that nobody has seen before: from these the base model learns to read signatures.

A document draws 2 to 7 tools with made-up names, then asks for one of them in one of many ways. Whatever is right can
only be found by reading the signatures and the request: names, parameters and values never repeat.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .answers import AXES, Style, open_document, redrawn, word_answer
from .intents.common import Facts, Needle, call_message, failed, tool_message
from .words import TRAIN, Lexicon, everyday, integer, number, person, phrase, pseudo_word, word

REFUSING: Needle = (
    *("no tool", "no tools", "kein tool", "none of my tools", "none of the tools"),
    *("can't", "cannot", "can not", "unable", "not able", "i don't have", "i do not have", "sorry"),
)
"""Of what no tool serves: that it is not done. `Tool` alone also stands in `I used the tool`."""
NO_TOOL = Facts(
    "No tool for that", "I have no tool for that", "Kein Tool dafür", "dafür habe ich kein Tool", (REFUSING,)
)
SHOWN = tuple(axis for axis in AXES if axis not in ("confirm", "verify", "units"))
"""The behaviours that can show in documents with made-up tools."""
COUNTS = (0, 1, 1, 2, 2, 2, 3, 3, 4)
"""How many parameters a tool has, each equally often."""
MANY = (0, 1, 1, 2, 2, 3, 3, 4, 4)
"""The same in training, where what is hard comes oftener."""
STRANGE = 0.3
"""Share of tools in training whose description calls the verb something unrelated, and so does the request: then only
the description leads from the request to the name, as it does with synonyms that nobody has been taught."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a made-up tool; `noun` is how a person would call it."""

    name: str
    noun: str
    schema: dict[str, Any]
    required: bool


@dataclass(frozen=True)
class MadeUpTool:
    """A tool that exists in one document only."""

    name: str
    verb: str
    thing: str
    description: str
    parameters: tuple[Parameter, ...]
    said: tuple[str, ...]
    """What a person may call the verb."""

    def spec(self) -> dict[str, Any]:
        """The tool as an OpenAI specification."""
        schema = {
            "type": "object",
            "properties": {p.name: p.schema for p in self.parameters},
            "required": [p.name for p in self.parameters if p.required],
            "additionalProperties": False,
        }
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }


def _join(words: list[str], style: int) -> str:
    """One identifier from words: snake_case, camelCase, PascalCase, kebab-case or runtogether."""
    if style == 1:
        return words[0] + "".join(w.capitalize() for w in words[1:])
    if style == 2:
        return "".join(w.capitalize() for w in words)
    return {0: "_", 3: "-", 4: ""}[style].join(words)


def _parameter(rng: random.Random, style: int, required: bool, lexicon: Lexicon) -> Parameter:
    words = [rng.choice(lexicon.parameters)] if rng.random() < 0.4 else [word(rng, 0.2, lexicon.nouns)]
    if rng.random() < 0.25:
        words.append(rng.choice(lexicon.parameters))
    roll = rng.random()
    schema: dict[str, Any]
    if roll < 0.5:
        schema = {"type": "string"}
    elif roll < 0.68:
        schema = {"type": "integer"}
    elif roll < 0.8:
        schema = {"type": "number"}
    elif roll < 0.86:
        schema = {"type": "boolean"}
    elif roll < 0.95:
        schema = {"type": "string", "enum": [word(rng) for _ in range(rng.randint(2, 4))]}
    else:
        schema = {"type": "array", "items": {"type": "string"}}
    return Parameter(_join(words, style if style in (0, 1) else 0), " ".join(words), schema, required)


def _value(rng: random.Random, schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema["type"]:
        case "integer":
            return integer(rng)
        case "number":
            return number(rng)
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return [word(rng) for _ in range(rng.randint(1, 3))]
    roll = rng.random()
    if roll < 0.4:
        return phrase(rng, 1, 3)
    if roll < 0.6:
        return person(rng)
    if roll < 0.75:
        return f"{pseudo_word(rng)}{rng.choice('-_./ ')}{integer(rng)}"
    return word(rng, 0.2) if rng.random() < 0.6 else word(rng, 0.2).capitalize()


def _make(
    rng: random.Random,
    style: int,
    verb: str,
    thing: list[str],
    lexicon: Lexicon,
    counts: Sequence[int],
    told: str | None = None,
) -> MadeUpTool:
    parts = [verb, *thing] if rng.random() < 0.85 else [*thing, verb]
    count = rng.choice(counts)
    parameters: dict[str, Parameter] = {}
    for i in range(count):
        p = _parameter(rng, style, i == 0 or rng.random() < 0.7, lexicon)
        parameters[p.name] = p
    noun = " ".join(thing)
    first = next(iter(parameters.values())).noun if parameters else ""
    # What a request says stands in the name or in the description: reading them is enough to be right.
    strange = told is not None
    told = told or rng.choice(lexicon.verbs.get(verb, (verb,)))
    forms = [f"{told.capitalize()} a {noun}", f"{told.capitalize()} the {noun}", f"{told.capitalize()} {noun}"]
    if first:
        forms += [f"{told.capitalize()} a {noun} by {first}", f"{told.capitalize()} the {noun} with a given {first}"]
    description = rng.choice(forms) if strange or rng.random() < 0.9 else ""
    said = (told, told, verb) if strange else (verb, told) if description else (verb,)
    return MadeUpTool(_join(parts, style), verb, noun, description, tuple(parameters.values()), said)


def draw_tools(
    rng: random.Random, count: int, lexicon: Lexicon = TRAIN, counts: Sequence[int] = COUNTS, strange: float = 0.0
) -> list[MadeUpTool]:
    """Tools that are easy to confuse: some share the verb, some the thing.

    Args:
        counts: numbers of parameters to draw from.
        strange: share of tools whose verb is called something unrelated (`STRANGE`).
    """
    style = rng.choice((0, 0, 0, 1, 1, 2, 3, 4))
    verbs = rng.sample(list(lexicon.verbs), min(count, len(lexicon.verbs)))
    things = [[word(rng, 0.4, lexicon.nouns) for _ in range(rng.choice((1, 1, 1, 2)))] for _ in range(count)]
    tools: dict[str, MadeUpTool] = {}
    for i in range(count):
        verb = rng.choice(verbs[: i + 1]) if rng.random() < 0.4 else verbs[i]
        if rng.random() < 0.25:
            verb = word(rng, 0, lexicon.nouns)
        thing = rng.choice(things[: i + 1]) if rng.random() < 0.35 else things[i]
        told = None
        if strange and rng.random() < strange:
            verb, told = word(rng, 0.2, lexicon.nouns), phrase(rng, 1, rng.choice((1, 1, 2, 3)))
        made = _make(rng, style, verb, thing, lexicon, counts, told)
        tools.setdefault(made.name, made)
    return list(tools.values())


def _spoken(rng: random.Random, parameter: Parameter, value: Any) -> str:
    """One argument as a person says it."""
    noun = parameter.noun
    if isinstance(value, bool):
        yes = (f"with {noun}", f"{noun} on", f"{noun} yes", f"{noun}: true")
        no = (f"without {noun}", f"{noun} off", f"{noun} no", f"{noun}: false")
        return rng.choice(yes if value else no)
    text = " and ".join(value) if isinstance(value, list) else str(value)
    quoted = f'"{text}"' if rng.random() < 0.12 and isinstance(value, str) else text
    return rng.choice(
        (
            f"with {noun} {quoted}",
            f"{noun} {quoted}",
            f"{noun} = {quoted}",
            f"{noun}: {quoted}",
            f"{quoted} as {noun}",
            f"{quoted} as the {noun}",
            f"the {noun} is {quoted}",
            f"using {quoted} for the {noun}",
            f"{noun} should be {quoted}",
            f"where {noun} is {quoted}",
            f"and {quoted} for {noun}",
        )
    )


def ask(rng: random.Random, made: MadeUpTool, arguments: dict[str, Any]) -> str:
    """One request for a call, in one of many forms."""
    # Now and then another synonym, which only knowing the language can tell.
    verb = rng.choice(TRAIN.verbs[made.verb] if made.verb in TRAIN.verbs and rng.random() < 0.2 else made.said)
    noun = made.thing
    given = [p for p in made.parameters if p.name in arguments]
    rng.shuffle(given)
    lone = len(given) == 1 and given[0].schema.get("type") == "string" and rng.random() < 0.5
    if lone:
        tail = rng.choice(("{v}", "for {v}", "called {v}", "of {v}", "by {v}", "{v}")).format(
            v=arguments[given[0].name]
        )
    else:
        tail = rng.choice((", ", " ", " and ", ", ")).join(_spoken(rng, p, arguments[p.name]) for p in given)
    article = rng.choice(("the ", "a ", "", "my ", "that "))
    core = f"{verb} {article}{noun}{' ' if tail else ''}{tail}"
    form = rng.choice(
        (
            "{c}",
            "{c}",
            "{C}.",
            "please {c}",
            "Please {c}.",
            "could you {c}?",
            "Can you {c} for me?",
            "I need you to {c}",
            "I want to {c}.",
            "i'd like to {c}",
            "Time to {c}.",
            "hey, {c}",
            "Let's {c}",
            "{C}, thanks.",
            "We have to {c}.",
            "would you mind to {c}",
            "My boss wants me to {c}.",
            "{c} now",
            "help me {c}",
            "Next: {c}",
        )
    )
    return form.format(c=core, C=core[:1].upper() + core[1:])


def _result(rng: random.Random) -> dict[str, Any]:
    keys = dict.fromkeys(  # not a set, whose order is the process's
        rng.choice(TRAIN.parameters) if rng.random() < 0.5 else word(rng, 0.4) for _ in range(rng.choice((1, 1, 2, 3)))
    )
    return {
        k: _value(rng, {"type": rng.choice(("string", "string", "integer", "number", "boolean", "array"))})
        for k in keys
    }


def _say(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def report(made: MadeUpTool, result: dict[str, Any]) -> Facts:
    """What a result says."""
    short = (
        ", ".join(f"{k} {_say(v)}" for k, v in result.items()) if len(result) > 1 else _say(next(iter(result.values())))
    )
    long = f"for the {made.thing}, {' and '.join(f'{k} is {_say(v)}' for k, v in result.items())}"
    lang = f"zu {made.thing}: {' und '.join(f'{k} ist {_say(v)}' for k, v in result.items())}"
    return Facts(short, long, short, lang, ())


def _arguments(rng: random.Random, made: MadeUpTool) -> dict[str, Any]:
    return {p.name: _value(rng, p.schema) for p in made.parameters if p.required or rng.random() < 0.45}


def _turn(rng: random.Random, style: Style, tools: list[MadeUpTool], names: Sequence[str]) -> list[dict[str, Any]]:
    """One request and everything up to its answer. `names`: of other tools that are shown beside these."""

    def answer(facts: Facts, *used: str) -> dict[str, Any]:
        return {"role": "assistant", "content": word_answer(style, facts, used, rng)}

    made = rng.choice(tools)
    roll = rng.random()
    if roll < 0.13:
        absent = draw_tools(rng, 1)[0]
        served = any(part in name for part in absent.thing.split() for name in names)
        if not served and absent.thing not in {t.thing for t in tools}:
            return [{"role": "user", "content": ask(rng, absent, _arguments(rng, absent))}, answer(NO_TOOL)]
    arguments = _arguments(rng, made)
    required = [p for p in made.parameters if p.required]
    if roll < 0.19 and required:
        missing = rng.choice(required)
        given = {k: v for k, v in arguments.items() if k != missing.name}
        turn = [
            {"role": "user", "content": ask(rng, made, given)},
            {"role": "assistant", "content": f"{'Welches' if style.language else 'Which'} {missing.noun}?"},
            {"role": "user", "content": _spoken(rng, missing, arguments[missing.name])},
        ]
    elif roll < 0.27 and len(tools) > 1:
        second = rng.choice(tools)
        others = _arguments(rng, second)
        first = ask(rng, made, arguments).rstrip(".?")
        joined = f"{first}{rng.choice((', then ', ' and also ', '. Also '))}{ask(rng, second, others)}"
        one, two = _result(rng), _result(rng)
        left, right = report(made, one), report(second, two)
        both = Facts(
            f"{left.short}; {right.short}",
            f"{left.long}; {right.long}",
            f"{left.kurz}; {right.kurz}",
            f"{left.lang}; {right.lang}",
            (),
        )
        return [
            {"role": "user", "content": joined},
            call_message([(made.name, arguments), (second.name, others)]),
            tool_message(one, 0),
            tool_message(two, 1),
            answer(both, made.name, second.name),
        ]
    else:
        turn = [{"role": "user", "content": ask(rng, made, arguments)}]
    turn.append(call_message([(made.name, arguments)]))
    if rng.random() < 0.06:
        error = {"error": f"no such {made.thing}" if rng.random() < 0.5 else f"{word(rng)} {word(rng)} failed"}
        return [*turn, tool_message(error), answer(failed(error), made.name)]
    result = _result(rng)
    return [*turn, tool_message(result), answer(report(made, result), made.name)]


def document(rng: random.Random) -> dict[str, Any]:
    """One document: tools and one to two requests, as OpenAI messages."""
    return group(rng, 1)[0]


def group(rng: random.Random, count: int, beside: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """`count` documents about the same tools and with the same opening: a training row holds that once.

    Args:
        beside: specifications of other tools to show, which no request needs.
    """
    tools = draw_tools(rng, rng.choice((2, 3, 3, 4, 4, 4, 5, 6)), counts=MANY, strange=STRANGE)
    style, opening = open_document(rng, SHOWN)
    names = [str(spec["function"]["name"]) for spec in beside]
    specs = [*(t.spec() for t in tools), *beside]
    if beside:
        rng.shuffle(specs)
    made = []
    for _ in range(count):
        own = redrawn(rng, style, opening)
        turns = [m for _ in range(rng.choice((1, 1, 1, 2))) for m in _turn(rng, own, tools, names)]
        made.append({"family": "any", "messages": [*opening, *turns], "tools": specs})
    return made


def _copied_word(rng: random.Random) -> str:
    return everyday(rng) if rng.random() < 0.25 else word(rng, 0.5)


def copy_document(rng: random.Random) -> dict[str, Any]:
    """A pure copy task: words to repeat, or facts to look up. Much of it is learned, so copying is learned early."""
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            join = rng.choice((" ", " ", "_", ", ", "-"))
            text = join.join(
                _copied_word(rng) if rng.random() < 0.85 else str(integer(rng)) for _ in range(rng.randint(3, 24))
            )
            messages += [
                {"role": "user", "content": f"{rng.choice(('repeat', 'say', 'copy', 'echo'))}: {text}"},
                {"role": "assistant", "content": text},
            ]
    else:
        facts = {
            _copied_word(rng): _value(rng, {"type": rng.choice(("string", "integer", "number"))}) for _ in range(8)
        }
        line = rng.choice(("{k}: {v}", "{k} = {v}", "{k} is {v}", "the {k} {v}"))
        listed = rng.choice((", ", "; ", " and ")).join(line.format(k=k, v=v) for k, v in facts.items())
        for i, key in enumerate(rng.sample(list(facts), 6)):
            question = f"{key}?"
            messages += [
                {"role": "user", "content": f"{listed}. {question}" if i == 0 else question},
                {"role": "assistant", "content": str(facts[key])},
            ]
    return {"family": "copy", "messages": messages, "tools": []}


def documents(seed: int, copy_share: float) -> Iterator[dict[str, Any]]:
    """An endless stream of documents with made-up tools, `copy_share` of them pure copying."""
    rng = random.Random(seed)
    while True:
        if rng.random() < copy_share:
            yield copy_document(rng)
        else:
            yield from group(rng, rng.randint(3, 6))
