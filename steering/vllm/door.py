"""A door beside vLLM's queue: what a worker is asked while it runs a step.

`collective_rpc` is answered between steps, and where a step takes long, waiting for it is most of what a swap takes.
A thread of the worker answers here instead; whatever it answers must be safe beside a step.

The address is a socket in Linux's abstract namespace: on this machine alone, and gone with the process however that
ends. The kernel says who is at the other end, and no other user's process is answered. A question is one line of JSON,
and so is the answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger("vllm.trimtab")

MOST_BYTES = 1 << 20
"""Length of a question."""
PATIENCE = 5.0
"""Seconds in which a question must come, once somebody knocked."""

_CREDENTIALS = struct.Struct("3i")  # process, user, group


def open_door(answer: Callable[..., dict[str, Any]]) -> str | None:
    """Answer questions, each with a call of its own, one after the other, as long as this process lives.

    Args:
        answer: is given a question's values; raises nothing.

    Returns:
        The address to `knock` at; None where the system has no such sockets.
    """
    if sys.platform != "linux":
        return None
    address = f"trimtab-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + address)
    listener.listen()
    threading.Thread(target=_serve, args=(listener, answer), name="trimtab-door", daemon=True).start()
    return address


def _serve(listener: socket.socket, answer: Callable[..., dict[str, Any]]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # no descriptor left, perhaps; there may be one later
            time.sleep(0.1)
            continue
        try:
            with connection:
                if _user(connection) == os.geteuid():
                    connection.settimeout(PATIENCE)
                    question = json.loads(connection.makefile("rb").readline(MOST_BYTES))
                    connection.sendall(json.dumps(answer(*question)).encode() + b"\n")
        except Exception:  # whoever knocked reads the end of the stream, and asks over the queue
            log.warning("Nothing was answered at the door", exc_info=True)


def _user(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(raw)[1]
    return user


async def knock(address: str, *question: Any) -> dict[str, Any]:
    """Ask at a door.

    Raises:
        OSError: nobody answers there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect("\0" + address)  # on this machine, so it does not wait
    except BaseException:
        connection.close()
        raise
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        raw = await reader.read()
    finally:
        writer.close()
    if not raw.endswith(b"\n"):
        raise ConnectionResetError("the worker did not answer at its door")
    answer: dict[str, Any] = json.loads(raw)
    return answer
