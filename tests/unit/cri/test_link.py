# SPDX-License-Identifier: Apache-2.0
"""Messages between daemon and front, whole and in their order."""

import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pycri.cri.link import TO_DAEMON, TO_FRONT, DropPod, Left, Link, Reply
from pycri.model.ids import PodId

MANY = 300


class Ends:
    """Both ends of a link, each with its epoll."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.epolls = select.epoll(), select.epoll()
        self.daemon = Link(ours, self.epolls[0], TO_DAEMON)
        self.front = Link(theirs, self.epolls[1], TO_FRONT)

    def read_front(self) -> list[Any]:
        """Return what comes to the front next."""
        ((_, mask),) = self.epolls[1].poll(10)
        return self.front.serve(mask)

    def close(self) -> None:
        self.daemon.close()
        self.front.close()
        for epoll in self.epolls:
            epoll.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    both.close()


def test_messages_come_whole_and_in_order_whatever_their_size(ends: Ends) -> None:
    sent = [Reply(number, [b"x" * number * 1000], None) for number in range(MANY)]
    read = threading.Event()

    def send() -> None:
        for message in sent:
            ends.daemon.send(message)
        while not read.is_set():  # what the socket did not take goes when it has room
            for _, mask in ends.epolls[0].poll(0.1):
                ends.daemon.serve(mask)

    sending = threading.Thread(target=send)
    sending.start()
    got: list[Reply] = []
    while len(got) < MANY:
        got += ends.read_front()
    read.set()
    sending.join()
    assert got == sent


def test_many_small_messages_come_in_one_read(ends: Ends) -> None:
    sent = [DropPod(PodId(str(number))) for number in range(100)]
    for message in sent:
        ends.daemon.send(message)
    assert ends.read_front() == sent


def test_the_end_of_one_is_told_to_the_other_behind_what_it_said(ends: Ends) -> None:
    ends.front.send(Left(7))
    ends.front.close()
    ((_, mask),) = ends.epolls[0].poll(10)
    assert ends.daemon.serve(mask) == [Left(7)]
    ((_, mask),) = ends.epolls[0].poll(10)
    with pytest.raises(EOFError):
        ends.daemon.serve(mask)


def test_what_is_sent_to_who_is_gone_goes_nowhere(ends: Ends) -> None:
    ends.front.close()
    for _ in range(2):
        ends.daemon.send(Reply(1, [b"x" * 1_000_000], None))
    ends.daemon.close()
    ends.daemon.send(Reply(1, [], None))
