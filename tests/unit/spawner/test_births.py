# SPDX-License-Identifier: Apache-2.0
"""Children that have not executed yet: abandoned, or not to be had at all."""

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from pycri.kernel import process
from pycri.model.ids import TaskId
from pycri.model.plan import CgroupPlan, SandboxPlan
from pycri.spawner.births import Birth, Nursery, Stdio
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings
from pycri.wire.channel import Channel
from pycri.wire.messages import StartSandbox


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What a child is, and what it goes on as."""
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield started
    for one in started:
        one.kill()
        one.wait()


@pytest.mark.parametrize("tells_late", [False, True])
def test_a_child_that_moves_on_is_killed_where_it_has_gone(
    processes: list[subprocess.Popen[bytes]], tells_late: bool
) -> None:
    first, second = processes
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    plan = SandboxPlan(id=TaskId("pod"), pins=(), cgroup=CgroupPlan(version=1, directories=()))
    order = StartSandbox(request=1, plan=plan)
    birth = Birth(order, first.pid, Channel(ours), Stdio(terminal=True))
    with theirs:
        report = Report(Channel(theirs))
        if not tells_late:
            report.moved(second.pid)
        birth.abandon()
        if tells_late:
            assert first.wait(10) == -signal.SIGKILL
            report.moved(second.pid)
            birth.read()
        assert second.wait(10) == -signal.SIGKILL
        assert birth.failed
        birth.close()


class _Around:
    empty_mounts_fd = pod_init_fd = -1


def test_a_fork_ahead_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Callable[[], object]) -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(process, "fork", fail)
    nursery = Nursery(cast(Surroundings, _Around()), lambda: None)
    before = len(os.listdir("/proc/self/fd"))
    nursery.prepare()
    assert len(os.listdir("/proc/self/fd")) == before
