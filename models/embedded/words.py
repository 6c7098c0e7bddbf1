"""Words, names and values without end: what the corpus is filled with.

A small model that sees the same eighty nouns learns the nouns; one that never sees a noun twice has to learn to copy.
So every generator here is unbounded: real words, words in the letter patterns of real ones, and plain letter noise.
Held-out evaluation draws from the same generators with other seeds, and from word lists that training never uses.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NOUNS = (
    "account address album alarm animal answer apartment apple article asset balance banner barrel basket battery "
    "beacon bicycle bill blanket board boat bookmark bottle bracket branch bridge bucket budget building bundle "
    "button cabin cable camera campaign candle canvas captain card carpet castle catalog category cell chair "
    "channel chapter charge chart circle city client clock cloud coach coin collection color comment company "
    "compass concert contract copy corner course crate currency customer dashboard deck delivery deposit desk "
    "device diagram dinner discount district document domain door draft drawer driver drone engine envelope "
    "episode estimate exam exhibit expense factory farm feature fence field filter flag flight floor flower "
    "folder forecast forest form formula fountain frame fridge garage garden gateway gift glass goal grant graph "
    "grid group guest guide hammer harbor helmet highway hotel house image index ingredient insect invoice island "
    "issue item jacket job journal journey kettle key kitchen label ladder lamp language lawn layer leaflet lease "
    "ledger lesson letter level library license lion list loan lobby location lock log machine magazine manual "
    "map margin market meal medal meeting member menu message meter mirror mission model module monitor month "
    "mountain movie museum needle network node note number ocean office orchard order organ outlet oven package "
    "page paint painting panel paper parade parcel park parking partner passage patient pattern payment pen "
    "permit person phone piano picture pilot pipe planet plant plate player playlist pocket poem point policy "
    "pool port portrait poster price printer prize process product profile program project property puzzle "
    "quarter queue quote rack radio railway ranking receipt recipe record refund region rental report request "
    "reservation review ribbon river road robot rocket role roof room route rule sample satellite schedule school "
    "score screen script seat section segment sensor server session sheet shelf shift ship shirt shop signal "
    "singer site sketch snapshot song source speaker sponsor spoon stage stamp star station statue stock storage "
    "store storm story street student subject subscription suit survey switch symbol system table target task tax "
    "teacher team template temple tenant terminal theme thread ticket tile timer token topic tournament tower "
    "track trade trail train transfer tree trip truck tunnel umbrella unit update user valley value vehicle "
    "vendor venue version video village vineyard visa visitor voice volume voucher wagon wallet warehouse watch "
    "wave website wheel widget window wing workshop yard zone"
).split()
VERBS: dict[str, tuple[str, ...]] = {
    "get": ("get", "fetch", "show me", "give me", "look up", "pull up"),
    "find": ("find", "look for", "locate", "search for"),
    "list": ("list", "show all", "enumerate", "go through"),
    "create": ("create", "make", "add", "set up", "new"),
    "delete": ("delete", "remove", "get rid of", "erase", "drop"),
    "update": ("update", "change", "modify", "edit"),
    "send": ("send", "mail out", "dispatch", "forward"),
    "book": ("book", "reserve", "arrange"),
    "cancel": ("cancel", "call off", "abort"),
    "check": ("check", "verify", "inspect", "have a look at"),
    "start": ("start", "launch", "begin", "kick off"),
    "stop": ("stop", "halt", "end", "shut down"),
    "open": ("open", "bring up"),
    "close": ("close", "shut"),
    "count": ("count", "tally", "how many are there of"),
    "rename": ("rename", "give a new name to"),
    "move": ("move", "relocate", "shift"),
    "copy": ("copy", "duplicate", "clone"),
    "export": ("export", "save out", "dump"),
    "import": ("import", "load in", "bring in"),
    "rate": ("rate", "score", "grade"),
    "print": ("print", "print out"),
    "track": ("track", "follow", "trace"),
    "compare": ("compare", "weigh up"),
    "schedule": ("schedule", "plan", "set a time for"),
    "order": ("order", "buy", "purchase"),
    "share": ("share", "pass on"),
    "lock": ("lock", "secure"),
    "merge": ("merge", "combine", "join"),
    "assign": ("assign", "hand over", "allocate"),
    "add": ("add", "append", "put in", "include"),
    "remove": ("remove", "take out", "strip"),
    "read": ("read", "read out", "go over"),
    "write": ("write", "note down", "jot down"),
    "save": ("save", "store", "keep"),
    "show": ("show", "display", "present"),
    "set": ("set", "adjust", "configure"),
    "reset": ("reset", "restore", "clear"),
    "enable": ("enable", "turn on", "switch on", "activate"),
    "disable": ("disable", "turn off", "switch off", "deactivate"),
    "approve": ("approve", "accept", "sign off"),
    "reject": ("reject", "decline", "turn down"),
    "pay": ("pay", "settle", "clear up"),
    "convert": ("convert", "turn into", "transform"),
    "calculate": ("calculate", "work out", "compute"),
    "search": ("search", "hunt for", "browse"),
    "filter": ("filter", "narrow down", "sift"),
    "sort": ("sort", "arrange in order", "rank"),
    "upload": ("upload", "put up", "push"),
    "download": ("download", "pull down", "grab"),
    "register": ("register", "sign up", "enrol"),
    "notify": ("notify", "tell", "alert"),
    "validate": ("validate", "confirm", "make sure of"),
    "publish": ("publish", "release", "post"),
    "describe": ("describe", "explain", "give details of"),
    "play": ("play", "put on"),
    "pause": ("pause", "hold", "suspend"),
    "repair": ("repair", "fix", "mend"),
    "clean": ("clean", "tidy up", "wash"),
    "connect": ("connect", "link", "hook up"),
}
PARAMETERS = (
    "name title id date city country color size amount quantity limit reason category type status priority email "
    "phone language format path url query text message start end duration width height weight price currency "
    "source target owner location unit level mode tag note count page host port user team room code value key "
    "time day month year address zip"
).split()
FIRST_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paula Quentin Rosa Sam Tina "
    "Umar Vera Walter Xenia Yusuf Zoe Aisha Bruno Chloe Dmitri Elena Farid Gina Hugo Ingrid Jonas Keiko Lars Mina "
    "Noah Olga Pedro Ravi Sofia Tomas Ulrike Victor Wendy Yara Zane Alice Bob Carol Dan Eve Frank Gus Hana Ivan "
    "Julia Kofi Lucia Marco Nadia Omar"
).split()
TLDS = ("com", "org", "net", "io", "co", "edu", "example")


@dataclass(frozen=True)
class Lexicon:
    """The real words that made-up tools are named with: verbs with their synonyms, things, parameters."""

    verbs: Mapping[str, tuple[str, ...]]
    nouns: Sequence[str]
    parameters: Sequence[str]


TRAIN = Lexicon(VERBS, NOUNS, PARAMETERS)
HELD_OUT = Lexicon(
    {
        "archive": ("archive", "put away", "stow"),
        "paint": ("paint", "colour", "coat"),
        "rotate": ("rotate", "spin", "twist"),
        "summon": ("summon", "call in", "beckon"),
        "inflate": ("inflate", "pump up", "blow up"),
        "harvest": ("harvest", "reap", "gather"),
        "polish": ("polish", "buff", "shine"),
        "donate": ("donate", "give away", "contribute"),
        "measure": ("measure", "gauge", "size up"),
        "deploy": ("deploy", "roll out", "ship out"),
        "escort": ("escort", "accompany", "walk along with"),
        "translate": ("translate", "render", "put into words"),
    },
    (
        "acorn anchor balloon bakery beehive blossom bonfire cactus canoe cathedral chimney compost cradle dolphin "
        "easel falcon ferry fiddle fossil furnace galaxy glacier gondola hedgehog iceberg igloo jigsaw kayak kiosk "
        "lantern lagoon lighthouse mammoth marble meadow nectar nursery oasis otter paddle pebble pigeon pyramid "
        "quilt raft reef saddle sandal scarf shrine sparrow sundial tavern teapot thistle tractor trumpet turbine "
        "turtle vase volcano walnut whistle windmill zeppelin"
    ).split(),
    "altitude brightness depth diameter flavour frequency gender humidity intensity latitude mood origin pressure "
    "rhythm salary shade signature spacing speed strength texture thickness torque velocity warranty".split(),
)
"""Words that no made-up tool, value or copied text of the training holds: what a base model reads in these signatures
it reads for the first time."""


@cache
def _chain() -> dict[str, list[str]]:
    """Which letter follows which two, read off the real words."""
    chain: dict[str, list[str]] = defaultdict(list)
    for word in (*NOUNS, *PARAMETERS, *(n.lower() for n in FIRST_NAMES)):
        padded = f"^^{word}$"
        for i in range(len(padded) - 2):
            chain[padded[i : i + 2]].append(padded[i + 2])
    return dict(chain)


def pseudo_word(rng: random.Random) -> str:
    """A word in the letter patterns of English, 3 to 10 letters, lower case; nearly always one that does not exist."""
    chain = _chain()
    while True:
        word, state = "", "^^"
        while len(word) < 11:
            letter = rng.choice(chain[state])
            if letter == "$":
                break
            word += letter
            state = state[1] + letter
        if 3 <= len(word) <= 10:
            return word


def word(rng: random.Random, real: float = 0.4, nouns: Sequence[str] = NOUNS) -> str:
    """One lower-case word that may name something: a thing with probability `real`, else a word of the phrasings that
    builds no sentences, a pseudo-word, pieces of words, or, rarely, plain letter noise."""
    if rng.random() < real:
        return rng.choice(nouns)
    roll = rng.random()
    if roll < 0.25:
        return rng.choice(_naming())
    if roll < 0.65:
        return pseudo_word(rng)
    if roll < 0.93:
        return mashed_word(rng)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))


def mashed_word(rng: random.Random) -> str:
    """A word put together from pieces of everyday words, so that every token is seen beside every other one."""
    parts = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        source = everyday(rng).lower()
        size = min(len(source), rng.randint(2, 6))
        start = rng.choice((0, len(source) - size, rng.randint(0, len(source) - size)))
        parts.append(source[start : start + size])
    made = "".join(parts)
    return mashed_word(rng) if made in GRAMMAR else made


def phrase(rng: random.Random, low: int = 1, high: int = 4) -> str:
    """Some words with spaces between."""
    return " ".join(word(rng) for _ in range(rng.randint(low, high)))


def person(rng: random.Random) -> str:
    """A first name, sometimes with a surname, sometimes one that nobody bears."""

    def unheard() -> str:
        return (mashed_word(rng) if rng.random() < 0.3 else pseudo_word(rng)).capitalize()

    first = rng.choice(FIRST_NAMES) if rng.random() < 0.5 else unheard()
    return f"{first} {unheard()}" if rng.random() < 0.35 else first


def email(rng: random.Random, name: str | None = None) -> str:
    """An e-mail address, in half the cases built on the name."""
    local = name.lower().replace(" ", rng.choice([".", "_", ""])) if name and rng.random() < 0.5 else word(rng)
    return f"{local}@{word(rng)}.{rng.choice(TLDS)}"


def phone(rng: random.Random) -> str:
    """A telephone number in one of several writings."""
    digits = [str(rng.randint(0, 9)) for _ in range(9)]
    style = rng.randrange(4)
    if style == 0:
        return "".join(digits[:7])
    if style == 1:
        return f"{''.join(digits[:3])}-{''.join(digits[3:7])}"
    if style == 2:
        return f"+{rng.randint(1, 99)} {''.join(digits[:3])} {''.join(digits[3:])}"
    return f"0{''.join(digits[:3])} {''.join(digits[3:6])} {''.join(digits[6:])}"


def path(rng: random.Random) -> str:
    """A relative path to a text file."""
    stem = word(rng) if rng.random() < 0.7 else f"{word(rng)}{rng.choice('-_')}{word(rng)}"
    folder = f"{word(rng)}/" if rng.random() < 0.6 else ""
    return f"{folder}{stem}.{rng.choice(('txt', 'md', 'txt', 'csv', 'log'))}"


def integer(rng: random.Random) -> int:
    """An integer of one to six digits, all lengths equally likely."""
    return rng.randint(1, 10 ** rng.randint(1, 6))


def number(rng: random.Random) -> int | float:
    """A number as people type one: mostly short integers, else one to three decimals."""
    if rng.random() < 0.6:
        return rng.randint(1, 10 ** rng.choice((1, 2, 2, 3, 3, 4)))
    value = round(rng.uniform(0, 10 ** rng.choice((1, 2, 3))), rng.choice((1, 1, 2, 2, 3)))
    return int(value) if value == int(value) else value


MONTHS = "January February March April May June July August September October November December".split()
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def date_text(rng: random.Random, *, relative: bool = True) -> str:
    """A date as a person writes it."""
    month = rng.randrange(12)
    day = rng.randint(1, _DAYS[month])
    name = MONTHS[month] if rng.random() < 0.75 else MONTHS[month][:3]
    roll = rng.random()
    if roll < 0.45:
        return f"{day} {name}"
    if roll < 0.65:
        return f"{name} {day}"
    if roll < 0.75:
        return f"{day} {name} {rng.randint(2020, 2032)}"
    if roll < 0.85 or not relative:
        return f"{rng.randint(2020, 2032)}-{month + 1:02d}-{day:02d}"
    return rng.choice(("today", "tomorrow", "yesterday", *WEEKDAYS, *(w.lower() for w in WEEKDAYS)))


def time_text(rng: random.Random) -> str:
    """A time of day as a person writes it."""
    hour, minute = rng.randint(0, 23), rng.choice((0, 0, 15, 30, 45, rng.randint(0, 59)))
    roll = rng.random()
    if roll < 0.5:
        return f"{hour}:{minute:02d}" if rng.random() < 0.5 else f"{hour:02d}:{minute:02d}"
    half = "am" if hour < 12 else "pm"
    twelve = hour % 12 or 12
    gap = rng.choice(("", " "))
    if roll < 0.95:
        return f"{twelve}{gap}{half}" if minute == 0 else f"{twelve}:{minute:02d}{gap}{half}"
    return "noon"


GRAMMAR = frozenset(
    "what when where which who whom whose how why is are was were be been being am do does did done doing can could "
    "will would should shall may might must have has had having the a an and or but nor so if then than else to in on "
    "of at by for from with without within into onto out off up down over under about after before between until till "
    "since during through across against along among around behind below beside above near next per via as it its this "
    "that these those there here me my mine you your yours we our ours us i he she him her his hers they them their "
    "not no yes none nothing never ever also too just only still yet already again once more most less least much many "
    "few some any all both each every other others another same such very really please thanks thank hello hi hey ok "
    "need needs want wants like let lets make makes give gives show shows tell tells put puts take takes get gets got "
    "go goes going come comes say says said see ask asks keep keeps use used using know think look looks find found "
    "add added remove removed delete deleted set change changed move moved send sent read write written open close "
    "list listed save saved check called call named name today tomorrow yesterday now later soon plus minus times "
    "divided multiplied equals true false null one two three first second last don doesn didn isn aren wasn won can't "
    "couldn wouldn shouldn haven hasn hadn ll ve re im id ive ill whats".split()
)
"""Words that build sentences: a request in which one of them is a name has no right reading."""


@cache
def _naming() -> tuple[str, ...]:
    """The everyday words, lower-case, that may name something."""
    return tuple(sorted({w.lower() for w in _everyday() if len(w) > 2} - GRAMMAR))


def everyday(rng: random.Random) -> str:
    """An everyday word, a month or a weekday. Whatever has a token of its own must be seen from the start: embeddings
    that a training run never sees collapse into one (arXiv 1907.12009, section 4)."""
    return rng.choice(_everyday())


@cache
def _everyday() -> tuple[str, ...]:
    """`everyday.json`: words of requests and answers, those above among them, as they were when the tokenizer was
    trained and gave them tokens of their own. It stays as it is: phrasings may change, the tasks stay."""
    found: list[str] = json.loads((Path(__file__).parent / "everyday.json").read_text())
    return tuple(found)
