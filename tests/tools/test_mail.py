"""Mail: what the inbox shows, what is sent, what is gone, and what hostile input cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimtab.errors import BadInput
from trimtab.models.embedded.intents.common import SUGGESTION
from trimtab.tools import ToolFailure, Toolset
from trimtab.tools.builtin.contacts import contact_tools
from trimtab.tools.builtin.mail import mail_tools, receive
from trimtab.tools.builtin.state import seed, snapshot

INBOX: list[dict[str, str]] = [
    {"from": "ann@example.org", "subject": "budget", "body": "the numbers are in"},
    {"from": "bob@example.org", "subject": "lunch on Friday", "body": "pizza?\nor soup"},
    {"from": "ann@example.org", "subject": "garden plan", "body": "roses"},
]
SENT: list[dict[str, str]] = [{"to": "ann@example.org", "subject": "hello", "body": "how are you"}]
STATE: dict[str, Any] = {
    "contacts": [{"name": "Ann Lee", "email": "ann@example.org", "phone": None}],
    "inbox": INBOX,
    "sent": SENT,
}


class Mail:
    """The tools on a home of their own, called by name."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.database = home / "office.db"
        self.tools = Toolset([*mail_tools(self.database), *contact_tools(self.database)])

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        return self.tools[name].function(**arguments)


@pytest.fixture
def mail(tmp_path: Path) -> Mail:
    seed(tmp_path, STATE)
    return Mail(tmp_path)


def test_four_tools(tmp_path: Path) -> None:
    tools = mail_tools(tmp_path / "office.db")
    assert [t.name for t in tools] == ["list_mails", "read_mail", "send_mail", "delete_mail"]
    assert [t.name for t in tools if t.destructive] == ["delete_mail"]
    assert tools[0].function() == {"mails": []}


def test_the_inbox(mail: Mail) -> None:
    assert mail("list_mails") == {"mails": ["budget", "lunch on Friday", "garden plan"]}
    anns = {"mails": ["budget", "garden plan"]}
    for sender in ("ann@example.org", "ANN@example.org", "ann  lee", "Ann Lee"):
        assert mail("list_mails", sender=sender) == anns
    assert mail("list_mails", sender="zoe@example.org") == {"mails": []}
    with pytest.raises(ToolFailure, match="no contact named 'Zoe'"):
        mail("list_mails", sender="Zoe")
    assert mail("read_mail", subject="Lunch  on friday") == INBOX[1]
    assert mail("delete_mail", subject="BUDGET") == {"deleted": "BUDGET"}
    assert snapshot(mail.home)["inbox"] == INBOX[1:]
    with pytest.raises(ToolFailure, match="no mail about 'budget'"):
        mail("delete_mail", subject="budget")


def test_of_two_mails_with_one_subject_the_newer_is_meant(mail: Mail) -> None:
    receive(mail.database, "zoe@example.org", "Budget", "even newer numbers")
    assert mail("read_mail", subject="budget")["from"] == "zoe@example.org"
    mail("delete_mail", subject="budget")
    assert mail("read_mail", subject="budget") == INBOX[0]


@pytest.mark.parametrize("name", ["read_mail", "delete_mail"])
@pytest.mark.parametrize(("wrong", "right"), [("budgt", "budget"), ("gadren plan", "garden plan"), ("cars", None)])
def test_a_near_subject_is_named(mail: Mail, name: str, wrong: str, right: str | None) -> None:
    with pytest.raises(ToolFailure) as caught:
        mail(name, subject=wrong)
    hint = SUGGESTION.fullmatch(caught.value.what)
    if right is None:
        assert hint is None
    else:
        assert hint is not None
        assert hint["what"] == f"no mail about {wrong}"
        assert hint["right"] == right
    assert snapshot(mail.home)["inbox"] == INBOX


def test_a_near_sender_is_named(mail: Mail) -> None:
    with pytest.raises(ToolFailure, match="no contact named An Lee; did you mean Ann Lee"):
        mail("list_mails", sender="An Lee")


def test_what_is_sent_is_kept(mail: Mail) -> None:
    answer = mail("send_mail", to="zoe@example.org", subject="Re: soup", body="yes\nplease")
    assert answer == {"sent": "Re: soup", "to": "zoe@example.org"}
    kept = {"to": "zoe@example.org", "subject": "Re: soup", "body": "yes\nplease"}
    assert snapshot(mail.home)["sent"] == [*SENT, kept]
    assert snapshot(mail.home)["inbox"] == INBOX


ADDRESSES = ["", "Ann", "Ann Lee", "@", "a@", "@b", "a@b@c", "a b@c.d", "a@b.c, d@e.f", "A <a@b.c>", "a@\0b", "a@b\nc"]


@pytest.mark.parametrize("to", [*ADDRESSES, "x" * 300 + "@y.z", "a@\ud800"])
def test_only_an_address_is_sent_to(mail: Mail, to: str) -> None:
    with pytest.raises(ToolFailure):
        mail("send_mail", to=to, subject="hello", body="hello")
    assert snapshot(mail.home)["sent"] == SENT


@pytest.mark.parametrize("part", ["subject", "body"])
@pytest.mark.parametrize("wrong", ["", " \n", "a\0b", "x" * 10_001, "\ud800"])
def test_what_is_no_mail_is_not_sent(mail: Mail, part: str, wrong: str) -> None:
    with pytest.raises(ToolFailure):
        mail("send_mail", **{"to": "a@b.c", "subject": "hello", "body": "hello", part: wrong})
    assert snapshot(mail.home)["sent"] == SENT


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30).filter(
    lambda t: bool(t.split())
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subject=texts | st.sampled_from(["'; DROP TABLE inbox; --", '" OR 1=1', "%", "_", "?"]), body=texts)
def test_text_is_only_ever_text(mail: Mail, subject: str, body: str) -> None:
    seed(mail.home, STATE)
    receive(mail.database, "x@y.z", subject, body)
    shown = " ".join(subject.split())
    assert mail("read_mail", subject=subject) == {"from": "x@y.z", "subject": shown, "body": body}
    mail("delete_mail", subject=subject)
    mail("send_mail", to="x@y.z", subject=subject, body=body)
    after = snapshot(mail.home)
    assert after["inbox"] == INBOX
    assert after["sent"] == [*SENT, {"to": "x@y.z", "subject": shown, "body": body}]


def test_seed_and_snapshot_are_each_others_reverse(mail: Mail) -> None:
    got = snapshot(mail.home)
    assert (got["inbox"], got["sent"]) == (INBOX, SENT)
    seed(mail.home, {})
    assert (snapshot(mail.home)["inbox"], snapshot(mail.home)["sent"]) == ([], [])
    seed(mail.home, got)
    assert snapshot(mail.home) == got


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"inbox": ["hello"]}, "inbox[0]"),
        ({"inbox": [{"from": "a@b.c", "subject": "x"}]}, "inbox[0]"),
        ({"inbox": [{"from": "Ann", "subject": "x", "body": "y"}]}, "inbox[0]"),
        ({"inbox": [INBOX[0], {"to": "a@b.c", "subject": "x", "body": "y"}]}, "inbox[1]"),
        ({"sent": [{"to": "a@b.c", "subject": " ", "body": "y"}]}, "sent[0]"),
        ({"sent": [{"to": "a@b.c", "subject": "x", "body": 1}]}, "sent[0]"),
    ],
)
def test_a_state_that_is_wrong_is_told_with_its_place(mail: Mail, state: dict[str, Any], where: str) -> None:
    with pytest.raises(BadInput) as caught:
        seed(mail.home, state)
    assert where in (caught.value.where or "")
    assert snapshot(mail.home)["inbox"] == INBOX
