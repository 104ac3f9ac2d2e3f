# SPDX-License-Identifier: Apache-2.0
"""What the spawner keeps of each task: identity, pidfd, a copy of every stdio descriptor."""

import os
import signal

import msgspec

from pycri.kernel import process
from pycri.kernel.fds import close_all
from pycri.model.ids import TaskId
from pycri.wire.messages import ExitRecord, TaskInfo


class Task:
    """A container or a pod's init. Owns its descriptors; streams: those named in `info.streams`.

    adopted: taken over from a former spawner: not our child, so only its pidfd tells of its end.
    forgotten: the daemon wants to hear no more of it; it is dropped at its end.
    """

    def __init__(self, info: TaskInfo, pidfd: int, streams: dict[str, int], *, adopted: bool):
        self.info = info
        self.pidfd = pidfd
        self.streams = streams
        self.adopted = adopted
        self.forgotten = False
        self.record: ExitRecord | None = None

    @property
    def running(self) -> bool:
        """True until the task's end has been seen."""
        return self.record is None

    def send_signal(self, number: int) -> None:
        """Send a signal by pidfd, so never to a process that got the same pid; ended is fine."""
        if not self.running:
            return
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def describe(self) -> TaskInfo:
        """Return the task as it is now, for the daemon."""
        if self.record is None:
            return self.info
        return TaskInfo(
            id=self.info.id,
            kind=self.info.kind,
            pid=self.info.pid,
            start_time=self.info.start_time,
            log_path=self.info.log_path,
            exit_code=self.record.exit_code,
            finished_ns=self.record.finished_ns,
        )

    def give_away(self, name: str) -> int:
        """Part from a stream. Returns its descriptor, caller closes."""
        fd = self.streams.pop(name)
        self.info = msgspec.structs.replace(self.info, streams=tuple(self.streams))
        return fd

    def close(self) -> None:
        """Close every descriptor; again is fine."""
        close_all((self.pidfd, *self.streams.values()) if self.pidfd >= 0 else ())
        self.pidfd, self.streams = -1, {}


def new_task(task_id: TaskId, kind: str, pid: int, log_path: str, streams: dict[str, int]) -> Task:
    """Describe a child that was just forked. streams: kept descriptors by name, now the task's."""
    info = TaskInfo(
        id=task_id,
        kind=kind,
        pid=pid,
        start_time=process.start_time(pid),
        log_path=log_path,
        streams=tuple(streams),
    )
    return Task(info, os.pidfd_open(pid), streams, adopted=False)


def ended_task(record: ExitRecord) -> Task:
    """Describe a task of which only the exit record is left."""
    task = Task(TaskInfo(id=record.id, kind="ended", pid=0, start_time=0), -1, {}, adopted=True)
    task.record = record
    return task
