"""The door of a worker: who is answered, and what happens to whoever talks nonsense."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import pytest
from trimtab.steering.vllm import door
from trimtab.steering.vllm.door import knock, open_door

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sockets are Linux's")


def opened() -> str:
    """A door that adds two numbers."""

    def answer(a: int, b: int) -> dict[str, Any]:
        return {"sum": a + b}

    address = open_door(answer)
    assert address is not None
    return address


def test_each_question_is_answered_by_itself() -> None:
    address = opened()

    async def many() -> list[dict[str, Any]]:
        return await asyncio.gather(*(knock(address, number, 1) for number in range(20)))

    assert asyncio.run(many()) == [{"sum": number + 1} for number in range(20)]


def test_the_server_s_own_event_loop_can_ask() -> None:
    uvloop = pytest.importorskip("uvloop")
    assert uvloop.run(knock(opened(), 2, 3)) == {"sum": 5}


@pytest.mark.parametrize("said", [b"", b"\n", b"not json\n", b"[1]\n", b'[1, "x"]\n', b"3\n", b"[" * 100_000 + b"\n"])
def test_nonsense_is_not_answered_and_the_door_stays_open(said: bytes) -> None:
    address = opened()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.connect("\0" + address)
        one.sendall(said)
        one.shutdown(socket.SHUT_WR)
        assert one.recv(100) == b""
    assert asyncio.run(knock(address, 1, 1)) == {"sum": 2}


def test_nobody_is_kept_waiting_by_one_who_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE", 0.2)
    address = opened()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect("\0" + address)
        assert asyncio.run(knock(address, 1, 1)) == {"sum": 2}


def test_another_user_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    address = opened()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(ConnectionError):
        asyncio.run(knock(address, 1, 1))
    monkeypatch.undo()
    assert asyncio.run(knock(address, 1, 1)) == {"sum": 2}


def test_a_door_that_is_not_there_says_so() -> None:
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(knock("trimtab-nobody", 1))
