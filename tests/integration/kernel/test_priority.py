# SPDX-License-Identifier: Apache-2.0
"""Whose work goes first, and which of it does not."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from pycri.kernel.priority import at_leisure, go_first

T = TypeVar("T")
RESET = os.SCHED_RESET_ON_FORK


def policy() -> int:
    """Return the calling thread's."""
    return os.sched_getscheduler(0) & ~RESET


def in_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def skip_where_not_allowed() -> None:
    if not in_thread(go_first):
        pytest.skip("this host lets nobody run at a real-time priority")


def test_what_is_done_at_leisure_is_ordinary_also_when_it_fails() -> None:
    skip_where_not_allowed()
    seen = []

    @at_leisure()
    def fail() -> None:
        seen.append(policy())
        raise ValueError("at leisure")

    def work() -> None:
        go_first()
        with pytest.raises(ValueError, match="at leisure"):
            fail()
        seen.append(policy())

    in_thread(work)
    assert seen == [os.SCHED_OTHER, os.SCHED_FIFO]


def test_threads_and_children_of_who_goes_first_do_not() -> None:
    skip_where_not_allowed()

    def work() -> list[int]:
        go_first()
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(policy()))
        thread.start()
        thread.join()
        pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
        seen.append(os.sched_getscheduler(pid))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return seen

    assert in_thread(work) == [os.SCHED_OTHER, os.SCHED_OTHER]


def test_who_has_no_right_to_go_first_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert not go_first()
