# SPDX-License-Identifier: Apache-2.0
"""What becomes of a child that has not executed yet when nobody waits for it any more."""

import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from pycri.spawner.births import Birth, Stdio
from pycri.spawner.report import Report
from pycri.wire.channel import Channel


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What a child is, and what it goes on as."""
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("tells_late", [False, True])
def test_a_child_that_moves_on_is_killed_where_it_has_gone(
    processes: list[subprocess.Popen[bytes]], tells_late: bool
) -> None:
    first, second = processes
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    birth = Birth(first.pid, Channel(ours), Stdio(terminal=True))
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
