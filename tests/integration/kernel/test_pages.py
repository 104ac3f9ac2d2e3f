# SPDX-License-Identifier: Apache-2.0
"""Which pages a fork has written to, and copying them ahead."""

import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pycri.kernel import process
from pycri.kernel.pages import Span, find_own, make_own

PAGE = mmap.PAGESIZE
PAGES = 8


class Area:
    """Private memory of this process, written to once."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map[:] = bytes([1]) * len(self.map)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def span(self, first: int, count: int = 1) -> Span:
        return self.start + first * PAGE, count * PAGE

    def own_of(self, pid: int) -> set[int]:
        """Return the numbers of its pages that are a process's own."""
        spans = find_own(pid)
        addresses = [at for start, size in spans for at in range(start, start + size, PAGE)]
        numbers = {(address - self.start) // PAGE for address in addresses}
        return numbers & set(range(PAGES))


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A fork that has done its work, and is there until the block's end."""
    ours, theirs = socket.socketpair()

    def child() -> None:
        ours.close()
        work()
        theirs.send(b"x")
        theirs.recv(1)

    pid = process.fork(child)
    theirs.close()
    with ours:
        assert ours.recv(1) == b"x"
        yield pid
    os.waitpid(pid, 0)


@pytest.fixture
def area() -> Area:
    return Area()


def test_pages_are_a_processs_own_until_it_forks(area: Area) -> None:
    everything = set(range(PAGES))
    assert area.own_of(os.getpid()) == everything
    with forked(lambda: None) as pid:
        assert area.own_of(os.getpid()) == area.own_of(pid) == set()
    assert area.own_of(os.getpid()) == everything


def test_what_a_fork_writes_to_is_found(area: Area) -> None:
    def write() -> None:
        area.map[2 * PAGE] = area.map[5 * PAGE] = 7

    with forked(write) as pid:
        assert area.own_of(pid) == {2, 5}


def test_pages_are_copied_ahead_with_what_they_hold(area: Area) -> None:
    def copy() -> None:
        make_own([area.span(1), area.span(4, 3)])
        assert bytes(area.map) == bytes([1]) * len(area.map)

    with forked(copy) as pid:
        assert area.own_of(pid) == {1, 4, 5, 6}
        assert area.own_of(os.getpid()) == {1, 4, 5, 6}


def test_memory_that_is_not_there_is_left_out(area: Area) -> None:
    def copy() -> None:
        make_own([(PAGE, PAGE), area.span(3)])

    with forked(copy) as pid:
        assert area.own_of(pid) == {3}


def test_who_has_ended_cannot_be_looked_at() -> None:
    pid = process.fork(lambda: None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        find_own(pid)
    os.waitpid(pid, 0)
    with pytest.raises(FileNotFoundError):
        find_own(pid)
