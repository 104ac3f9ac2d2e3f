# SPDX-License-Identifier: Apache-2.0
"""A second process in the same memory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pycri.kernel import branching, process
from pycri.kernel.syscalls import Clone, unshare

pytestmark = pytest.mark.skipif(not branching.CAN_SHARE, reason="not with this interpreter")


def branch(child: Callable[[int], object], *, alone: bool = False) -> tuple[str, int, int]:
    """Branch in a fork. alone: into a new pid namespace.

    Returns what the child said, and the statuses with which the two processes ended.
    """
    readable, writable = os.pipe()
    ready_fd, closed_fd = os.pipe()

    def first() -> None:
        os.dup2(writable, 1)
        os.close(ready_fd)
        if alone:
            unshare(Clone.NEWPID)
        branching.go_on_in_child(child, closed_fd)

    first_pid = process.fork(first)
    os.close(writable)
    os.close(closed_fd)
    with os.fdopen(readable) as said, os.fdopen(ready_fd):
        text = said.read()
    # The second process is our own child, not the first one's.
    ended = {pid: os.waitstatus_to_exitcode(status) for pid, status in (os.wait(), os.wait())}
    first_status = ended.pop(first_pid)
    (second_status,) = ended.values()
    return text, first_status, second_status


def test_the_second_process_sees_and_changes_the_memory_of_the_first() -> None:
    shown = {"before": os.getpid()}

    def child(pid: int) -> None:
        shown["pid"] = pid
        same = shown["before"] != os.getpid() == pid
        os.execv("/bin/sh", ["sh", "-c", f"echo {same}; exit 7"])

    assert branch(child) == ("True\n", 0, 7)


def test_the_first_of_a_new_pid_namespace_knows_its_pid_outside(tmp_path: Path) -> None:
    def child(pid: int) -> None:
        (tmp_path / "pid").write_text(f"{pid} {os.getpid()}")
        os.execv("/bin/true", ["true"])

    assert branch(child, alone=True) == ("", 0, 0)
    outside, inside = map(int, (tmp_path / "pid").read_text().split())
    assert inside == 1
    assert outside > 1


@pytest.mark.parametrize("fails", [True, False])
def test_a_second_process_that_does_not_execute_ends_and_so_does_the_first(fails: bool) -> None:
    def child(_: int) -> None:
        os.write(1, b"here")
        if fails:
            raise ValueError

    assert branch(child) == ("here", 0, process.FORKED_CHILD_FAILED)


def test_much_python_may_run_before_the_execve() -> None:
    def deep(left: int) -> int:
        return left and 1 + sorted([left], key=lambda one: deep(one - 1))[0] // left

    def child(_: int) -> None:
        numbers = [[number] * 100 for number in range(10_000)]
        deep(100)
        os.execv("/bin/sh", ["sh", "-c", f"echo {len(numbers)}"])

    assert branch(child) == ("10000\n", 0, 0)
