"""Messages between machines: only from those who know the run's key, and only as they were sent."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from easydistill.launch.wire import Link, Refused, Unseen, read_key, write_key

KEY = b"the run's key"


def greeted(leader_key: bytes, helper_key: bytes) -> tuple[Link, Link, list[Any]]:
    """Both ends of a connection, and what each side made of the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    one, (other, _) = socket.create_connection(listener.getsockname()), listener.accept()
    listener.close()
    helper, leader = Link(one), Link(other)
    made: list[Any] = [None]

    def welcome() -> None:
        try:
            made[0] = leader.welcome(leader_key)
        except (Refused, EOFError) as error:
            made[0] = error

    thread = threading.Thread(target=welcome)
    thread.start()
    try:
        helper.greet(helper_key, {"index": 1})
        made.append(None)
    except (Unseen, EOFError) as error:
        made.append(error)
    thread.join()
    return leader, helper, made


def test_messages_arrive_in_both_directions() -> None:
    leader, helper, made = greeted(KEY, KEY)
    assert made == [{"index": 1}, None]
    leader.send(stage={"name": "train", "text": "ü" * 100_000})
    leader.send(stop=True)
    helper.send(did=True)
    assert len(helper.receive()["stage"]["text"]) == 100_000
    assert helper.receive() == {"stop": True}
    assert leader.receive() == {"did": True}
    assert leader.here == helper.there == "127.0.0.1"
    leader.close()
    with pytest.raises(EOFError):
        helper.receive()
    helper.close()


@pytest.mark.parametrize("key", [b"", b"another run's key"])
def test_who_does_not_know_the_key_is_refused(key: bytes) -> None:
    leader, helper, made = greeted(KEY, key)
    assert isinstance(made[0], Refused) and isinstance(made[1], Unseen)
    leader.close()
    helper.close()


def test_a_changed_or_repeated_message_is_refused() -> None:
    leader, helper, _ = greeted(KEY, KEY)
    sent: list[bytes] = []
    wire = helper._connection

    class Recorded:
        def sendall(self, data: bytes) -> None:
            sent.append(data)

    leader_wire, leader._connection = leader._connection, Recorded()  # type: ignore[assignment]
    leader.send(stage={"job": "mine"})
    leader_wire.sendall(sent[0])
    assert helper.receive() == {"stage": {"job": "mine"}}
    # Once more.
    leader_wire.sendall(sent[0])
    with pytest.raises(Refused):
        helper.receive()
    leader.send(stage={"job": "mine"})
    leader_wire.sendall(sent[1].replace(b"mine", b"evil"))
    with pytest.raises(Refused):
        helper.receive()
    for connection in (leader_wire, wire):
        connection.close()


def test_a_message_does_not_pass_for_one_of_the_other_side() -> None:
    leader, helper, _ = greeted(KEY, KEY)
    helper.send(stop=True)
    data = leader._connection.recv(4096)
    # Thrown back.
    leader._connection.sendall(data)
    with pytest.raises(Refused):
        helper.receive()
    leader.close()
    helper.close()


def test_a_stranger_cannot_send_much() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stranger = socket.create_connection(listener.getsockname())
    connection, _ = listener.accept()
    link = Link(connection)
    stranger.sendall(b"\x7f\xff\xff\xff" + bytes(32))
    with pytest.raises(Refused, match="bytes"):
        link.receive()
    for each in (listener, stranger):
        each.close()
    link.close()


def test_the_key_s_file(tmp_path: Path) -> None:
    assert read_key(tmp_path) == b""
    first = write_key(tmp_path)
    assert read_key(tmp_path) == first and len(first) == 64
    assert (tmp_path / "nodes.key").stat().st_mode & 0o077 == 0
    assert write_key(tmp_path) != first
