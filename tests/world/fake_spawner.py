# SPDX-License-Identifier: Apache-2.0
"""The other side of a real monitor, for its tests: forks it, keeps tasks, reads logs."""

import errno
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pycri.kernel.process import fork
from pycri.model.ids import TaskId
from pycri.monitor import loop
from pycri.wire.channel import Channel
from pycri.wire.messages import (
    FROM_MONITOR,
    Finish,
    Finished,
    Keep,
    MonitorCommand,
    MonitorReply,
    Reopen,
    Reopened,
    TaskInfo,
)

TASK = TaskId("7a" * 32)
OTHER = TaskId("0b" * 32)
DEADLINE_S = 20.0
ENTRY = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([PF]) ([^\n]*)\n", re.DOTALL
)


def read_entries(path: Path) -> list[tuple[str, str, bytes]]:
    """Return (stream, tag, text) of each entry; the file must hold nothing else."""
    content = path.read_bytes()
    found = list(ENTRY.finditer(content))
    assert sum(len(entry[0]) for entry in found) == len(content), "not whole entries"
    return [(entry[1].decode(), entry[2].decode(), entry[3]) for entry in found]


def read_text(path: Path, stream: str = "stdout") -> bytes:
    """Return what the stream's entries say, put together."""
    return b"".join(
        text + (b"\n" if tag == "F" else b"")
        for name, tag, text in read_entries(path)
        if name == stream
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)


class Spawner:
    """The monitor's other side. Owns the processes it forks and the descriptors it opens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._path = str(folder / "monitor.sock")
        self._listener.bind(self._path)
        self._listener.listen()
        self._children: set[int] = set()
        self._fds: set[int] = set()
        self.start_monitor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self._listener.close()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in self._fds:
            os.close(fd)

    def start_monitor(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(ours)
        ours.settimeout(DEADLINE_S)
        self.monitor_pid = self.fork(lambda: loop.run(theirs, self._listener))
        theirs.close()

    def kill_monitor(self) -> None:
        os.kill(self.monitor_pid, signal.SIGKILL)
        assert self.wait(self.monitor_pid) == -signal.SIGKILL
        self.channel.close()

    def connect(self) -> None:
        """Be a new spawner."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(DEADLINE_S)
        connection.connect(self._path)
        self.channel = Channel(connection)

    def fork(self, child: Callable[[], object]) -> int:
        pid = fork(child)
        self._children.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        _, status = os.waitpid(pid, 0)
        self._children.remove(pid)
        return os.waitstatus_to_exitcode(status)

    def own(self, *fds: int) -> tuple[int, ...]:
        self._fds.update(fds)
        return fds

    def close(self, *fds: int) -> None:
        for fd in fds:
            self._fds.remove(fd)
            os.close(fd)

    def run(self, child: Callable[[], object], *fds: int) -> int:
        """Fork a container; the writing ends `fds` are then its alone."""
        pid = self.fork(child)
        self.close(*fds)
        return pid

    def send(self, command: MonitorCommand, *fds: int) -> None:
        self.channel.send(command, fds)

    def receive(self) -> tuple[MonitorReply, list[int]]:
        received = self.channel.receive(FROM_MONITOR)
        assert received is not None
        self.own(*received[1])
        return received

    def keep(self, info: TaskInfo, *fds: int) -> None:
        pidfd = os.pidfd_open(os.getpid())
        self.send(Keep(task=info), pidfd, *fds)
        os.close(pidfd)

    def finish(self, task: TaskId = TASK) -> None:
        self.send(Finish(task=task))
        assert self.receive() == (Finished(task=task), [])

    def sync(self) -> None:
        """Wait until the monitor has seen all that was sent and written before."""
        for request in (-1, -2):  # it answers before it pumps, so the second answer tells
            self.send(Reopen(request=request, task=TaskId("unknown")))
            assert self.receive()[0] == Reopened(request=request, errno=errno.ENOENT)

    def pipes(self, *streams: str, task: TaskId = TASK) -> tuple[Path, list[int], list[int]]:
        """Keep a task with pipes. Returns the log's path, the reading and the writing ends."""
        path = self.folder / f"{task[:2]}.log"
        ends = [self.own(*os.pipe()) for _ in streams]
        readers, writers = [end[0] for end in ends], [end[1] for end in ends]
        self.keep(describe(path, *streams, task=task), *readers)
        return path, readers, writers


def describe(path: Path | None, *streams: str, task: TaskId = TASK) -> TaskInfo:
    return TaskInfo(
        id=task,
        kind="container",
        pid=os.getpid(),
        start_time=1,
        log_path=str(path or ""),
        streams=streams,
    )


def flood(fd: int, count: int, width: int = 100, batch: int = 500) -> None:
    """Write numbered lines of `width` bytes; each write ends in the middle of a line."""
    rest = b""
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        block = rest + b"".join(b"%0*d\n" % (width - 1, number) for number in numbers)
        cut = 0 if numbers.stop == count else 7
        block, rest = block[: len(block) - cut], block[len(block) - cut :]
        while block:
            block = block[os.write(fd, block) :]
