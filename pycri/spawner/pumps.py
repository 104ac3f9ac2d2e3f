# SPDX-License-Identifier: Apache-2.0
"""The spawner's side of the monitor: start one, take over from it, keep it supplied.

If the monitor dies, another is forked and given the same descriptors, so no container sees a
broken pipe. If the spawner died, the monitor still listens on its socket and hands all over.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence

from pycri.kernel import process
from pycri.monitor import loop
from pycri.spawner.tasks import Task
from pycri.wire.channel import Channel
from pycri.wire.messages import (
    FROM_MONITOR,
    CloseStdin,
    Copy,
    Drop,
    Finish,
    HandedOver,
    HandOver,
    Keep,
    Kept,
    MonitorCommand,
    Reopen,
)


class Pump:
    """The connection to the monitor of the moment.

    path: the monitor's socket. tasks: what a new monitor has to be given.
    """

    def __init__(self, path: str, tasks: Callable[[], Iterable[Task]]) -> None:
        self._path = path
        self._tasks = tasks
        self.channel: Channel | None = None
        self.pid = 0
        self._pidfd = -1

    def take_over(self) -> list[Task]:
        """Connect to a monitor that outlived its spawner. Returns its tasks; [] without one."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return []
        channel = Channel(sock)
        channel.send(HandOver())
        tasks = []
        while received := channel.receive(FROM_MONITOR):
            message, fds = received
            match message:
                case Kept():
                    streams = dict(zip(message.task.streams, fds[1:], strict=True))
                    tasks.append(Task(message.task, fds[0], streams, adopted=True))
                case HandedOver():
                    self._adopt(sock, message.pid)
                    return tasks
        # It died while handing over: what came is kept, and the next monitor gets it.
        channel.close()
        return tasks

    def start(self, forget: Callable[[], None]) -> None:
        """Fork a monitor and give it all running tasks. forget: run first in the child."""
        listener = self._listen()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def child() -> None:
            forget()
            os.setsid()
            loop.run(theirs, listener)

        self.pid = process.fork(child)
        theirs.close()
        listener.close()
        self._adopt(ours, self.pid)
        for task in self._tasks():
            if task.pidfd >= 0:
                self.keep(task)

    def keep(self, task: Task) -> None:
        """Let the monitor pump a task's streams and keep its descriptors."""
        self._send(Keep(task=task.info), (task.pidfd, *task.streams.values()))

    def finish(self, task: Task) -> bool:
        """Ask for the rest of an ended task's output. Returns False when there is no monitor."""
        return self._send(Finish(task=task.info.id))

    def reopen(self, request: int, task: Task) -> bool:
        """Ask for a new log file. Returns False when there is no monitor."""
        return self._send(Reopen(request=request, task=task.info.id))

    def copy(self, request: int, task: Task, streams: tuple[str, ...], fds: Sequence[int]) -> bool:
        """Ask for copies of a task's output. Returns False when there is no monitor."""
        message = Copy(request=request, task=task.info.id, streams=streams)
        return self._send(message, tuple(fds))

    def close_stdin(self, task: Task) -> None:
        """Let the monitor close the end of a task's stdin."""
        self._send(CloseStdin(task=task.info.id))

    def drop(self, task: Task) -> None:
        """Let the monitor close a task's descriptors."""
        self._send(Drop(task=task.info.id))

    def close(self) -> None:
        """End the connection; a monitor that keeps nothing ends then."""
        if self.channel:
            self.channel.close()
            self.channel = None
            os.close(self._pidfd)

    def _adopt(self, sock: socket.socket, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)
        sock.settimeout(0)
        self.channel, self.pid = Channel(sock), pid

    def _send(self, message: MonitorCommand, fds: tuple[int, ...] = ()) -> bool:
        if self.channel is None:
            return False
        try:
            self.channel.send(message, fds)
        except BlockingIOError:
            # Megabytes of commands unread: it is stuck. Its end brings another.
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            return False
        except OSError:
            # It is gone: the loop will see the end-of-file and start another.
            return False
        return True

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.path.lexists(self._path):
            os.unlink(self._path)
        listener.bind(self._path)
        os.chmod(self._path, 0o600)
        listener.listen(1)
        return listener
