# SPDX-License-Identifier: Apache-2.0
"""The spawner's loop: fork, reap, keep descriptors, answer the daemon. It decides nothing.

One thread, one selector, nothing that blocks: whatever may block happens in a forked child, which
reports over a socket; a daemon or a monitor that does not read is parted from. Every handler is
short; an error in one of them does not end the loop.
"""

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from pycri.kernel.fds import close_all
from pycri.kernel.sockets import open_tcp_sockets_in
from pycri.model.ids import TaskId
from pycri.spawner.births import Birth, Nursery
from pycri.spawner.ends import Ends
from pycri.spawner.orders import target_of
from pycri.spawner.pumps import Pump
from pycri.spawner.relays import Relays
from pycri.spawner.surroundings import Surroundings
from pycri.spawner.tasks import Task
from pycri.wire.channel import Channel
from pycri.wire.messages import (
    FROM_DAEMON,
    FROM_MONITOR,
    WIRE_VERSION,
    Attach,
    Copied,
    DaemonMessage,
    Done,
    Exec,
    Exited,
    ExitRecord,
    Failed,
    Finished,
    Forget,
    HangUp,
    Hello,
    ListTasks,
    OpenSockets,
    Order,
    Quit,
    Reopened,
    ReopenLog,
    SandboxStarted,
    Signal,
    Sockets,
    SpawnerMessage,
    StartContainer,
    StartSandbox,
    Tasks,
    TaskStarted,
    Welcome,
)

_TICK_S = 0.01
_REST_S = 0.01  # after that no call follows on the last one, which a fork would hold up


class Spawner:
    """The parent of all containers. Takes `listener`, the socket the daemon connects to."""

    def __init__(self, run_dir: str, listener: socket.socket, around: Surroundings) -> None:
        self._listener = listener
        self._selector = selectors.EpollSelector()
        self._tasks: dict[TaskId, Task] = {}
        self._daemon: Channel | None = None
        self._pump = Pump(f"{run_dir}/monitor.sock", self._tasks.values)
        self._ends = Ends(f"{run_dir}/exits", self._tasks, self._finish)
        self._nursery = Nursery(around, self._forget_in_child)
        self._relays = Relays(self._pump, self._send)
        self._wake_fd, self._signal_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._quitting = False

    def run(self) -> None:
        """Serve until the daemon says Quit."""
        self._watch(self._listener, self._accept)
        self._watch(self._wake_fd, self._reap)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._signal_fd, warn_on_full_buffer=False)
        for task in self._pump.take_over():
            self._adopt(task)
        self._ends.load_records()
        if self._pump.channel is None:
            self._pump.start(self._forget_in_child)
        self._watch(self._pump.channel, self._read_monitor)
        while not self._quitting:
            self._turn()

    def _turn(self) -> None:
        rests = self._nursery.wants_rest
        timeout_s = _TICK_S if self._ends.waiting else None
        ready = self._selector.select(_REST_S if rests else timeout_s)
        if rests and not ready:
            self._nursery.rest()
        for key, _ in ready:
            # An earlier handler of this turn may have closed it, and its number may be reused.
            current = self._selector.get_map().get(key.fd)
            if current is None or current.data is not key.data:
                continue
            try:
                key.data()
            except Exception:  # noqa: BLE001 - one of the two loops beside the daemon
                traceback.print_exc(file=sys.stderr)
        self._ends.look_again()

    # connections

    def _watch(self, source: Any, handler: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handler)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._drop_daemon()
        connection.settimeout(0)
        self._daemon = Channel(connection)
        self._watch(self._daemon, self._read_daemon)

    def _drop_daemon(self) -> None:
        """Part from a daemon. What it had begun ends: nobody else knows of those requests."""
        if self._daemon:
            self._selector.unregister(self._daemon)
            self._daemon.close()
            self._daemon = None
            self._nursery.abandon()
            self._ends.hang_up_all()

    def _read_daemon(self) -> None:
        assert self._daemon is not None
        try:
            received = self._daemon.receive(FROM_DAEMON)
        except BlockingIOError:
            return
        except msgspec.MsgspecError:
            # Not what was agreed on at Hello; the daemon sees the end, and asks anew.
            self._drop_daemon()
            raise
        if received is None:
            self._drop_daemon()
            return
        message, fds = received
        try:
            self._answer(message, fds)
        finally:
            close_all(fds)

    def _send(self, message: SpawnerMessage, fds: tuple[int, ...] = ()) -> None:
        """Send to the daemon. One that does not read is dropped: it lists all when it returns."""
        if self._daemon is None:
            return
        try:
            self._daemon.send(message, fds)
        except OSError:
            self._drop_daemon()

    def _greet(self) -> None:
        self._send(Welcome(version=WIRE_VERSION, pid=os.getpid(), monitor=self._pump.pid))

    def _forget_in_child(self) -> None:
        """Undo in a fork what would reach back into the spawner."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    # the daemon's messages

    def _answer(self, message: DaemonMessage, fds: list[int]) -> None:
        match message:
            case Hello():
                self._greet()
            case StartSandbox() | StartContainer() | Exec():
                self._begin(message)
            case ReopenLog():
                self._relays.reopen(message, self._tasks.get(message.task))
            case Attach():
                self._relays.attach(message, self._tasks.get(message.task), fds)
            case OpenSockets():
                self._open_sockets(message)
            case ListTasks():
                described = tuple(task.describe() for task in self._tasks.values())
                self._send(Tasks(request=message.request, tasks=described))
            case Signal() | HangUp() | Forget() | Quit():
                self._order(message)

    def _order(self, message: Signal | HangUp | Forget | Quit) -> None:
        match message:
            case Signal():
                if message.task in self._tasks:
                    self._tasks[message.task].send_signal(message.signal)
            case HangUp():
                self._ends.hang_up(message.exec)
            case Forget():
                self._forget(message.task)
            case Quit():
                if any(task.running for task in self._tasks.values()):
                    self._refuse(message.request, "state", "quit", "tasks are still running")
                    return
                self._quit()
        self._send(Done(request=message.request))

    def _refuse(self, request: int, kind: str, step: str, reason: str, errno: int = 0) -> None:
        self._send(Failed(request=request, kind=kind, step=step, errno=errno, reason=reason))

    def _begin(self, message: Order) -> None:
        request = message.request
        try:
            birth = self._nursery.begin(message, self._pidfd_of(target_of(message)))
        except LookupError as error:
            self._refuse(request, "state", "fork", str(error))
            return
        except OSError as error:
            self._refuse(request, "setup", "fork", error.strerror or "", error.errno or 0)
            return
        self._watch(birth.channel, lambda: self._read_birth(birth))

    def _pidfd_of(self, task_id: TaskId | None) -> int:
        """Return a running task's pidfd, which stays the task's; -1 for none."""
        if task_id is None:
            return -1
        task = self._tasks.get(task_id)
        if task is None or not task.running:
            raise LookupError(f"{task_id} is not running")
        return task.pidfd

    def _open_sockets(self, message: OpenSockets) -> None:
        try:
            sockets = open_tcp_sockets_in(message.path)
        except OSError as error:
            reason, number = error.strerror or "", error.errno or 0
            self._refuse(message.request, "setup", "open sockets", reason, number)
            return
        fds = tuple(each.detach() for each in sockets)
        self._send(Sockets(request=message.request), fds)
        close_all(fds)

    def _forget(self, task_id: TaskId) -> None:
        task = self._tasks.get(task_id)
        if task is not None and task.running:
            task.forgotten = True
            return
        if task is not None:
            del self._tasks[task_id]
            self._pump.drop(task)
            task.close()
        self._ends.forget(task_id)

    def _quit(self) -> None:
        for task_id in list(self._tasks):
            self._forget(task_id)
        self._pump.close()
        self._nursery.close()
        self._quitting = True

    def _read_birth(self, birth: Birth) -> None:
        if birth.read():
            self._settle(birth)

    def _settle(self, birth: Birth) -> None:
        self._selector.unregister(birth.channel)
        self._nursery.remove(birth)
        try:
            self._settled(birth)
        finally:
            birth.close()

    def _settled(self, birth: Birth) -> None:
        if birth.failed:
            self._send(birth.failure())
            return
        match order := birth.order:
            case StartSandbox():
                self._sandbox_settled(order, birth)
            case StartContainer():
                self._container_settled(order, birth)
            case Exec():
                self._exec_settled(order, birth)

    def _sandbox_settled(self, message: StartSandbox, birth: Birth) -> None:
        init_pid = None
        if message.plan.init:
            task = birth.become_task(message.plan.id, "init", "")
            self._add(task)
            init_pid = task.info.pid
        network = tuple(fd for stage, fd in birth.received.items() if stage == "network")
        marks = tuple(birth.marks)
        self._send(SandboxStarted(request=message.request, init_pid=init_pid, marks=marks), network)

    def _container_settled(self, message: StartContainer, birth: Birth) -> None:
        task = birth.become_task(message.plan.id, "container", message.plan.log_path)
        self._add(task)
        self._send(
            TaskStarted(
                request=message.request,
                pid=task.info.pid,
                start_time=task.info.start_time,
                started_ns=time.time_ns(),
                marks=tuple(birth.marks),
            )
        )

    def _exec_settled(self, message: Exec, birth: Birth) -> None:
        self._ends.expect_exec(birth.pid, message.plan.id)
        streams = birth.streams()
        self._send(
            TaskStarted(
                request=message.request,
                pid=birth.pid,
                start_time=0,
                started_ns=time.time_ns(),
                streams=tuple(streams),
                marks=tuple(birth.marks),
            ),
            tuple(streams.values()),
        )

    def _add(self, task: Task) -> None:
        self._tasks[task.info.id] = task
        self._pump.keep(task)

    def _adopt(self, task: Task) -> None:
        """Take over a task of a former spawner: its pidfd becomes readable when it ends."""
        self._tasks[task.info.id] = task

        def ended() -> None:
            self._selector.unregister(task.pidfd)
            self._ends.await_status(task)

        self._watch(task.pidfd, ended)

    # ends

    def _reap(self) -> None:
        try:
            while os.read(self._wake_fd, 4096):
                continue
        except BlockingIOError:
            pass
        while (pid := self._ends.next_ended()) is not None:
            self._nursery.lose(pid)
            birth = self._nursery.find(pid)
            if birth is not None:
                birth.read()
                if birth.pid == pid:  # else it has moved, and only what began it has ended
                    self._settle(birth)
            record = self._ends.collect(pid)
            if record is not None:
                self._announce(record)

    def _finish(self, task: Task, record: ExitRecord) -> None:
        """A task has ended: let the monitor write out the rest before anyone is told."""
        if task.info.kind != "container" or not self._pump.finish(task):
            self._announce(record)

    def _announce(self, record: ExitRecord) -> None:
        task = self._tasks.get(record.id)
        if task is not None and task.forgotten:
            self._forget(record.id)
        else:
            self._send(Exited(record=record))

    # the monitor's messages

    def _read_monitor(self) -> None:
        channel = self._pump.channel
        assert channel is not None
        try:
            received = channel.receive(FROM_MONITOR)
        except BlockingIOError:
            return
        if received is None:
            self._replace_monitor()
            return
        match received[0]:
            case Finished(task=task_id):
                task = self._tasks.get(task_id)
                if task and task.record:
                    self._announce(task.record)
            case Reopened() | Copied():
                self._relays.answered(received[0])

    def _replace_monitor(self) -> None:
        assert self._pump.channel is not None
        self._selector.unregister(self._pump.channel)
        self._pump.close()
        self._relays.lost()
        self._pump.start(self._forget_in_child)
        self._watch(self._pump.channel, self._read_monitor)
        self._greet()
        for task in self._tasks.values():
            if task.record:
                self._finish(task, task.record)
