# SPDX-License-Identifier: Apache-2.0
"""Children between fork and execve: their stdio, their report, what becomes of them.

fork ──Reached*──▶ Ready ──end-of-file──▶ executing (a sandbox: done)
  └─────Broken or end-of-file without Ready──▶ failed
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

from pycri.kernel import namespaces, process
from pycri.kernel.fds import close_all, close_inherited
from pycri.kernel.pages import make_own
from pycri.kernel.syscalls import Clone, setns, unshare
from pycri.model.ids import TaskId
from pycri.spawner.habits import Habits
from pycri.spawner.orders import await_order, perform
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings
from pycri.spawner.tasks import Task, new_task
from pycri.wire.channel import Channel
from pycri.wire.messages import (
    FROM_CHILD,
    Broken,
    ChildMessage,
    Exec,
    Failed,
    Moved,
    Order,
    Reached,
    Ready,
    StageMark,
    StartContainer,
    StartSandbox,
)

DEV_NULL = "/dev/null"


class Stdio:
    """Pipes of one child: its own ends, and ours by name. Owns all until they are given away.

    wanted: among "stdin", "stdout", "stderr"; the others are /dev/null, all with a terminal.
    """

    def __init__(self, *, terminal: bool, wanted: Sequence[str] = ()) -> None:
        null = os.open(DEV_NULL, os.O_RDWR | os.O_CLOEXEC)
        self.child = [null]
        self.ours: dict[str, int] = {}
        self.ends = (null, null, null)
        if terminal:
            return
        self.ends = (
            self._pipe_in("stdin") if "stdin" in wanted else null,
            self._pipe_out("stdout") if "stdout" in wanted else null,
            self._pipe_out("stderr") if "stderr" in wanted else null,
        )

    def close_child(self) -> None:
        """Close the child's ends in the parent, so that end-of-file is seen when it ends."""
        close_all(self.child)
        self.child = []

    def close(self) -> None:
        """Close everything that was not given away."""
        self.close_child()
        close_all(self.ours.values())
        self.ours = {}

    def _pipe_out(self, name: str) -> int:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        return self._keep(name, ours, theirs)

    def _pipe_in(self, name: str) -> int:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        return self._keep(name, ours, theirs)

    def _keep(self, name: str, ours: int, theirs: int) -> int:
        self.ours[name] = ours
        self.child.append(theirs)
        return theirs


class Birth:
    """One child that has not executed yet. Owns the report channel, the stdio, what it was sent."""

    def __init__(self, order: Order, pid: int, channel: Channel, stdio: Stdio) -> None:
        self.order = order
        self.pid = pid
        self.channel = channel
        self.stdio = stdio
        self.marks = [StageMark(stage="fork", at_ns=time.monotonic_ns())]
        self.received: dict[str, int] = {}
        self._broken: Broken | None = None
        self._ready = self._abandoned = False

    @property
    def failed(self) -> bool:
        """True when the child said so, or ended before it was ready."""
        return self._broken is not None or not self._ready

    def read(self) -> bool:
        """Read what the child reports. Returns True once the report has ended."""
        while True:
            try:
                received = self.channel.receive(FROM_CHILD)
            except BlockingIOError:
                return False
            if received is None:
                return True
            self._note(*received)

    def abandon(self) -> None:
        """Kill the child, also if it moves on meanwhile; it then fails like any other.

        Its pids are its own until it has settled: nothing of it is collected before.
        """
        self._abandoned = True
        self.read()
        os.kill(self.pid, signal.SIGKILL)

    def failure(self) -> Failed:
        """Return what went wrong, as an answer to the daemon."""
        last = self.marks[-1].stage
        broken = self._broken or Broken(step=f"after {last}", errno=0, reason="it was killed")
        return Failed(
            request=self.order.request,
            kind="setup",
            step=broken.step,
            errno=broken.errno,
            reason=broken.reason,
        )

    def streams(self) -> dict[str, int]:
        """Return our ends of the child's stdio by name; they stay this object's."""
        terminal = self.received.get("terminal")
        return self.stdio.ours if terminal is None else {"terminal": terminal}

    def become_task(self, task_id: TaskId, kind: str, log_path: str) -> Task:
        """Turn into a running task, which owns our ends of the stdio from here on."""
        task = new_task(task_id, kind, self.pid, log_path, self.streams())
        self.received.pop("terminal", None)
        self.stdio.ours = {}
        return task

    def close(self) -> None:
        """Close all that no task has taken."""
        self.channel.close()
        close_all(self.received.values())
        self.received = {}
        self.stdio.close()

    def _note(self, message: ChildMessage, fds: list[int]) -> None:
        match message:
            case Reached():
                self.marks.append(StageMark(stage=message.stage, at_ns=message.at_ns))
                self.received.update(zip([message.stage], fds, strict=False))
            case Broken():
                self._broken = message
            case Moved():
                self.pid = message.pid
                if self._abandoned:
                    os.kill(self.pid, signal.SIGKILL)
            case Ready():
                self._ready = True
                self.marks.append(StageMark(stage="identity", at_ns=message.at_ns))


class Nursery:
    """Forks children and knows those that have not executed yet.

    forget: run first in each child, to undo what would reach back into the spawner.
    """

    def __init__(self, around: Surroundings, forget: Callable[[], None]) -> None:
        self._around = around
        self._forget = forget
        self._births: dict[int, Birth] = {}
        self._waiting: tuple[int, Channel] | None = None
        self._is_wanted = self._is_forked = False
        self._habits = Habits()
        self._own_pid_namespace = namespaces.open_own("pid")

    @property
    def wants_rest(self) -> bool:
        """True if there is something to do once nothing is asked for: call `rest` then."""
        return self._wants_child() or self._is_forked

    def rest(self) -> None:
        """Prepare for the next order, a step at a time."""
        if self._wants_child():
            self.prepare()
            self._is_forked = True
        else:
            # The child has copied its pages by now; before, both would contend for them.
            make_own(self._habits.of_ours())
            self._is_forked = False

    def _wants_child(self) -> bool:
        return self._is_wanted and self._waiting is None and not self._births

    def prepare(self) -> None:
        """Fork the child that waits for the next order (`orders.py`).

        If there can be none now, that order makes do without.
        """
        self._is_wanted = False
        self._habits.learn()
        written = self._habits.of_children()
        with suppress(OSError):
            self._waiting = self._fork(
                (), lambda channel, report: await_order(channel, self._around, report, written)
            )

    def begin(self, order: Order, target: int) -> Birth:
        """Have an order performed by a child. target: pidfd of whose pid namespace to join, or -1.

        Raises: OSError if there can be no child.
        """
        stdio = _make_stdio(order)
        self._is_wanted = True
        try:
            pid, channel = self._hand_over(order, stdio, target) or self._fork_for(
                order, stdio, target
            )
        except OSError:
            stdio.close()
            raise
        stdio.close_child()
        birth = self._births[pid] = Birth(order, pid, channel, stdio)
        return birth

    def find(self, pid: int) -> Birth | None:
        """Return the birth whose process has, or had before it moved, this pid, if not settled.

        A process that has moved may end before it is known by its new pid: then all are asked.
        """
        if pid not in self._births and all(pid != birth.pid for birth in self._births.values()):
            for birth in self._births.values():
                birth.read()
        moved = (birth for birth in self._births.values() if birth.pid == pid)
        return self._births.get(pid) or next(moved, None)

    def lose(self, pid: int) -> None:
        """Take note that a child has ended, which may be the one that waited."""
        self._habits.lose(pid)
        if self._waiting is not None and self._waiting[0] == pid:
            self._waiting[1].close()
            self._waiting = None

    def close(self) -> None:
        """End the child that waits; there are no others."""
        if self._waiting is not None:
            pid, channel = self._waiting
            channel.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._waiting = None

    def abandon(self) -> None:
        """Kill all that have not executed yet; each then fails and is cleaned up as ever."""
        for birth in self._births.values():
            birth.abandon()

    def remove(self, birth: Birth) -> None:
        """Forget a birth that has settled."""
        self._births = {pid: other for pid, other in self._births.items() if other is not birth}

    def _hand_over(self, order: Order, stdio: Stdio, target: int) -> tuple[int, Channel] | None:
        """Give the order to the child that waits. Returns None if there is none, or not any more.

        Who is to be the first of a pid namespace must be born there.
        """
        if self._waiting is None or _is_first(order):
            return None
        pid, channel = self._waiting
        self._waiting = None
        try:
            channel.send(order, (*stdio.ends, *((target,) if target >= 0 else ())))
        except OSError:
            channel.close()
            return None
        self._habits.note(order, pid)
        return pid, channel

    def _fork_for(self, order: Order, stdio: Stdio, target: int) -> tuple[int, Channel]:
        def work(_: Channel, report: Report) -> None:
            perform(order, stdio.ends, target, self._around, report)

        with self._next_child_first() if _is_first(order) else nullcontext():
            return self._fork((*stdio.child, target), work)

    def _fork(
        self, fds: Sequence[int], work: Callable[[Channel, Report], object]
    ) -> tuple[int, Channel]:
        """Fork a child that has `fds` and does `work`. Returns its pid and the way to it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keep = (theirs.fileno(), *fds, self._around.empty_mounts_fd, self._around.pod_init_fd)

        def child() -> None:
            self._forget()
            close_inherited(keep)
            channel = Channel(theirs)
            _report_work(Report(channel), partial(work, channel))

        try:
            pid = process.fork(child)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(0)
        return pid, Channel(ours)

    @contextmanager
    def _next_child_first(self) -> Iterator[None]:
        """Let the next fork be born as the first of a new pid namespace; ours again afterwards.

        unshare and setns of a pid namespace change that of later children (pid_namespaces(7)).
        """
        unshare(Clone.NEWPID)
        try:
            yield
        finally:
            setns(self._own_pid_namespace, Clone.NEWPID)


def _make_stdio(order: Order) -> Stdio:
    match order:
        case StartSandbox():
            return Stdio(terminal=True)
        case StartContainer(plan=plan):
            wanted = ("stdin",) if plan.stdin else ()
            return Stdio(terminal=plan.process.terminal, wanted=("stdout", "stderr", *wanted))
        case Exec(plan=exec_plan):
            return Stdio(terminal=exec_plan.process.terminal, wanted=exec_plan.streams)


def _is_first(order: Order) -> bool:
    return isinstance(order, StartSandbox) and order.plan.init


def _report_work(report: Report, work: Callable[[Report], object]) -> None:
    try:
        work(report)
    except Exception as error:  # noqa: BLE001 - the child's last resort: tell, then end
        report.broken(error)
