# SPDX-License-Identifier: Apache-2.0
"""How tasks and execs end: reap, find the exit code, make it durable.

Our own children are reaped by waitid(2). Tasks of a former spawner were re-parented when it died;
their pidfd tells that they ended, and the kernel (Linux >= 6.15) with which status once the new
parent has reaped them.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from pycri.kernel import process
from pycri.kernel.syscalls import pidfd_exit_status
from pycri.model.ids import TaskId
from pycri.spawner import exits
from pycri.spawner.tasks import Task, ended_task
from pycri.wire.messages import ExitRecord

UNKNOWN_EXIT_CODE = -1
_STATUS_DEADLINE_NS = 10_000_000_000


class Ends:
    """The end of everything the spawner forked.

    directory: of the exit records. finished: called with a task and its durable record.
    """

    def __init__(
        self,
        directory: str,
        tasks: dict[TaskId, Task],
        finished: Callable[[Task, ExitRecord], None],
    ) -> None:
        self._directory = directory
        self._tasks = tasks
        self._finished = finished
        self._execs: dict[int, TaskId] = {}
        self._waiting: dict[TaskId, int] = {}
        os.makedirs(directory, mode=0o700, exist_ok=True)

    @property
    def waiting(self) -> bool:
        """True while the status of an ended task is not known yet: call `look_again` soon."""
        return bool(self._waiting)

    def load_records(self) -> None:
        """Know the tasks whose end a former spawner recorded."""
        for record in exits.read_records(self._directory):
            task = self._tasks.setdefault(record.id, ended_task(record))
            task.record = record

    def expect_exec(self, pid: int, exec_id: TaskId) -> None:
        """Report the end of this child under the exec's id."""
        self._execs[pid] = exec_id

    def hang_up(self, exec_id: TaskId) -> None:
        """Send SIGHUP to the process group of an exec that runs; each leads one of its own."""
        for pid, known in self._execs.items():
            if known == exec_id:
                # Not collected yet, so the number is still its own.
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGHUP)

    def hang_up_all(self) -> None:
        """Hang up every exec: nobody is left who would hear of its end."""
        for exec_id in set(self._execs.values()):
            self.hang_up(exec_id)

    def next_ended(self) -> int | None:
        """Return the pid of an ended child that is still to be collected, or None."""
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        return found.si_pid if found else None

    def collect(self, pid: int) -> ExitRecord | None:
        """Reap a child. Returns the record to announce if it was an exec; tasks take their way."""
        _, status = os.waitpid(pid, 0)
        exec_id = self._execs.pop(pid, None)
        if exec_id is not None:
            return _record(exec_id, process.exit_code(status))
        for task in self._tasks.values():
            if task.info.pid == pid and task.running and not task.adopted:
                self._end(task, process.exit_code(status))
                break
        return None

    def await_status(self, task: Task) -> None:
        """An adopted task has ended: find out how, at once or at the next looks."""
        self._waiting[task.info.id] = time.monotonic_ns() + _STATUS_DEADLINE_NS
        self.look_again()

    def look_again(self) -> None:
        """Look for the status of the tasks waited for; give up on each after ten seconds."""
        for task_id, deadline_ns in list(self._waiting.items()):
            task = self._tasks[task_id]
            code = _adopted_exit_code(task)
            if code is None and time.monotonic_ns() < deadline_ns:
                continue
            del self._waiting[task_id]
            self._end(task, UNKNOWN_EXIT_CODE if code is None else code)

    def forget(self, task_id: TaskId) -> None:
        """Remove the exit record."""
        exits.remove_record(self._directory, task_id)

    def _end(self, task: Task, code: int) -> None:
        task.record = record = _record(task.info.id, code)
        try:
            exits.write_record(self._directory, record)
        finally:
            # With no room for the record it is still known, as long as we live.
            self._finished(task, record)


def _record(task_id: TaskId, code: int) -> ExitRecord:
    return ExitRecord(id=task_id, exit_code=code, finished_ns=time.time_ns())


def _adopted_exit_code(task: Task) -> int | None:
    try:
        status = pidfd_exit_status(task.pidfd)
    except OSError:
        # ENOTTY or EINVAL: a kernel that cannot tell.
        return UNKNOWN_EXIT_CODE
    return None if status is None else process.exit_code(status)
