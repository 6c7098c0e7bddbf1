"""Mail and contacts: what is asked of them, and what is right to do."""

from __future__ import annotations

import random
from typing import Any

from ..words import email, person, phone, phrase, word
from .common import Facts, Intent, Needle, Recorder, Run, Script, Slots, failed, nothing, with_error

NO_NUMBER: Needle = (
    *("no phone", "no number", "no telephone", "keine telefonnummer", "none", "without a phone"),
    *(f"{have} a {what}" for have in ("not have", "doesn't have") for what in ("phone", "number", "telephone")),
    *(f"{no} {there}" for no in ("not", "isn't") for there in ("listed", "available", "saved", "stored", "on file")),
)
"""Of a contact without one; the name alone would be in any echo of the request."""


def subject(rng: random.Random) -> str:
    """What a mail may be about: one to three words."""
    forms = ("{w}", "{w} {w2}", "{w} {w2}", "{w} report", "the {w}", "new {w}", "{w} for {w2}", "question about {w}")
    text = rng.choice(forms).format(w=word(rng), w2=word(rng))
    return text[0].upper() + text[1:] if rng.random() < 0.3 else text


def body(rng: random.Random) -> str:
    """What a mail may say: two to six words."""
    if rng.random() < 0.4:
        return phrase(rng, 2, 4)
    forms = (
        "the {w} is ready",
        "see you at the {w}",
        "please bring the {w}",
        "I need a {w} by {n}",
        "{p} has the {w}",
        "thanks for the {w}",
        "the {w} costs {n}",
        "call me about the {w}",
        "no {w} this week",
    )
    return rng.choice(forms).format(w=word(rng), p=person(rng), n=rng.randint(2, 99))


def contact(rng: random.Random) -> Slots:
    """Someone with an address and a number."""
    name = person(rng)
    return {"name": name, "email": email(rng, name), "phone": phone(rng)}


def _mail(rng: random.Random) -> Slots:
    return {"email": email(rng), "subject": subject(rng), "body": body(rng)}


def _received(rng: random.Random) -> Slots:
    """A mail in the inbox (`sender`, `text`), what to answer it (`body`), and whom to send it on to."""
    return {"sender": email(rng), "subject": subject(rng), "text": body(rng), "body": body(rng), **contact(rng)}


def _contact_and_mail(rng: random.Random) -> Slots:
    return {**_mail(rng), **contact(rng)}


def _contact_field(field: str, english: str, german: str) -> Script:
    def script(s: Slots, r: Recorder) -> Facts:
        def facts(x: dict[str, Any]) -> Facts:
            name, value = x["name"], x[field]
            if value is None:
                return Facts(
                    f"No {english} for {name}",
                    f"There is no {english} for {name}",
                    f"Keine {german} für {name}",
                    f"Es gibt keine {german} für {name}",
                    (name, NO_NUMBER),
                )
            long, lang = f"The {english} of {name} is {value}", f"Die {german} von {name} ist {value}"
            return Facts(value, long, value, lang, (value,))

        return with_error(r.one("find_contact", name=s["name"]), facts)

    return script


def _add_contact(*fields: str) -> Script:
    def script(s: Slots, r: Recorder) -> Facts:
        def facts(x: dict[str, Any]) -> Facts:
            name = x["added"]
            return Facts(
                f"Saved {name}",
                f"{name} is saved with {s['email']}",
                f"{name} gespeichert",
                f"{name} ist mit {s['email']} gespeichert",
                (name,),
            )

        return with_error(r.one("add_contact", **{field: s[field] for field in fields}), facts)

    return script


def _listed(x: dict[str, Any], source: str) -> Facts:
    """The subjects of a list; `source` is whom they are from, or nothing."""
    origin, herkunft = (f" from {source}", f" von {source}") if source else ("", "")
    if not x["mails"]:
        return Facts(
            f"0 mails{origin}",
            f"There are 0 mails{origin}",
            f"0 Mails{herkunft}",
            f"Es gibt 0 Mails{herkunft}",
            (nothing("mails", "mail", "emails", "messages", also=("is empty",)),),
        )
    text = "; ".join(x["mails"])
    return Facts(text, f"The mails{origin} are {text}", text, f"Die Mails{herkunft} sind {text}", tuple(x["mails"]))


def _list_mails(s: Slots, r: Recorder) -> Facts:
    return with_error(r.one("list_mails"), lambda x: _listed(x, ""))


def _list_mails_from(s: Slots, r: Recorder) -> Facts:
    result = r.one("list_mails", sender=s["name"])
    return with_error(result, lambda x: _listed(x, r.calls[-1][1]["sender"]))


def _read_mail(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        text, sender = x["body"], x["from"]
        return Facts(text, f"{sender} writes: {text}", text, f"{sender} schreibt: {text}", (text,))

    return with_error(r.one("read_mail", subject=s["subject"]), facts)


def _delete_mail(s: Slots, r: Recorder) -> Facts:
    def facts(x: dict[str, Any]) -> Facts:
        title = x["deleted"]
        return Facts(
            f"Deleted {title}",
            f"The mail {title} is deleted",
            f"{title} gelöscht",
            f"Die Mail {title} ist gelöscht",
            (title,),
        )

    return with_error(r.one("delete_mail", subject=s["subject"]), facts)


def _send(r: Recorder, to: str, title: str, text: str) -> Facts:
    """Send it; the facts name the subject and the address."""

    def facts(x: dict[str, Any]) -> Facts:
        sent, address = x["sent"], x["to"]
        return Facts(
            f"Sent {sent} to {address}",
            f"The mail {sent} is on its way to {address}",
            f"{sent} an {address} gesendet",
            f"Die Mail {sent} ist an {address} unterwegs",
            (sent, address),
        )

    return with_error(r.one("send_mail", to=to, subject=title, body=text), facts)


def _send_mail(s: Slots, r: Recorder) -> Facts:
    return _send(r, s["email"], s["subject"], s["body"])


def _mail_contact(s: Slots, r: Recorder) -> Facts:
    found = r.one("find_contact", name=s["name"])
    return failed(found) if "error" in found else _send(r, found["email"], s["subject"], s["body"])


def _forward_mail(s: Slots, r: Recorder) -> Facts:
    mail, found = r.call(("read_mail", {"subject": s["subject"]}), ("find_contact", {"name": s["name"]}))
    if "error" in mail or "error" in found:
        return failed(mail if "error" in mail else found)
    return _send(r, found["email"], mail["subject"], mail["body"])


def _answer_mail(s: Slots, r: Recorder) -> Facts:
    mail = r.one("read_mail", subject=s["subject"])
    return failed(mail) if "error" in mail else _send(r, mail["from"], mail["subject"], s["body"])


def _receive(run: Run, sender: str, title: str, text: str) -> None:
    run("receive_mail", {"sender": sender, "subject": title, "body": text})


def _some_mails(rng: random.Random, s: Slots, run: Run) -> None:
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
        title = subject(rng)
        if title.casefold() != str(s.get("subject", "")).casefold():
            _receive(run, email(rng), title, body(rng))


def _this_mail(rng: random.Random, s: Slots, run: Run) -> None:
    """The one that the request is about, nine times of ten, before, between or behind others."""
    _some_mails(rng, s, run)
    if rng.random() < 0.9:
        _receive(run, s["sender"], s["subject"], s["text"])
        if rng.random() < 0.5:
            _some_mails(rng, s, run)


def _others(rng: random.Random, s: Slots, run: Run) -> None:
    for one in (contact(rng), contact(rng)):
        if one["name"].casefold() != s["name"].casefold():
            run("add_contact", one)


def _known(s: Slots, run: Run, phone_too: bool) -> None:
    run("add_contact", {field: s[field] for field in ("name", "email", "phone")[: 3 if phone_too else 2]})


def _this_contact(rng: random.Random, s: Slots, run: Run) -> None:
    _others(rng, s, run)
    if rng.random() < 0.9:
        _known(s, run, rng.random() < 0.85)


def _mails_from(rng: random.Random, s: Slots, run: Run) -> None:
    """A contact, 0 to 3 mails from that address, and some from others."""
    if rng.random() < 0.9:
        _known(s, run, rng.random() < 0.5)
    titles = {title.casefold(): title for title in (subject(rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))}
    for title in titles.values():
        _receive(run, s["email"], title, body(rng))
        if rng.random() < 0.5:
            _some_mails(rng, s, run)


def _mail_and_contact(rng: random.Random, s: Slots, run: Run) -> None:
    """Both nine times of ten; otherwise one of the two is missing."""
    roll = rng.random()
    _others(rng, s, run)
    if roll >= 0.05:
        _known(s, run, rng.random() < 0.5)
    _some_mails(rng, s, run)
    if roll < 0.95:
        _receive(run, s["sender"], s["subject"], s["text"])


def _look_up(s: Slots) -> tuple[str, dict[str, Any]]:
    return "find_contact", {"name": s["name"]}


def _look(s: Slots) -> tuple[str, dict[str, Any]]:
    return "list_mails", {}


def _nothing(rng: random.Random) -> Slots:
    return {}


_email = _contact_field("email", "e-mail address", "E-Mail-Adresse")
_phone = _contact_field("phone", "phone number", "Telefonnummer")

INTENTS: dict[str, Intent] = {
    "contact_email": Intent(contact, _email, _this_contact, typo="name"),
    "contact_phone": Intent(contact, _phone, _this_contact, typo="name"),
    "add_contact": Intent(contact, _add_contact("name", "email"), verify=_look_up),
    "add_contact_phone": Intent(contact, _add_contact("name", "email", "phone"), verify=_look_up),
    "list_mails": Intent(_nothing, _list_mails, _some_mails),
    "list_mails_from": Intent(contact, _list_mails_from, _mails_from, typo="name"),
    "read_mail": Intent(_received, _read_mail, _this_mail, typo="subject"),
    "delete_mail": Intent(
        _received,
        _delete_mail,
        _this_mail,
        confirm=("delete the mail {subject}?", "die Mail {subject} löschen?"),
        verify=_look,
        typo="subject",
    ),
    "send_mail": Intent(_mail, _send_mail),
    "mail_contact": Intent(_contact_and_mail, _mail_contact, _this_contact, "chain", typo="name"),
    "forward_mail": Intent(_received, _forward_mail, _mail_and_contact, "chain"),
    "answer_mail": Intent(_received, _answer_mail, _this_mail, "chain", typo="subject"),
    "missing.contact": Intent(
        contact,
        _add_contact("name", "email"),
        group="missing",
        question=("What is the e-mail address of {name}?", "Wie ist die E-Mail-Adresse von {name}?", "email"),
        verify=_look_up,
    ),
    "missing.body": Intent(
        _mail,
        _send_mail,
        group="missing",
        question=("What should the mail {subject} say?", "Was soll in der Mail {subject} stehen?", "body"),
    ),
}
