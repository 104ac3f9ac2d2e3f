# SPDX-License-Identifier: Apache-2.0
"""The monitor: one epoll loop that pumps the output of every container into its log.

Forked by the spawner, and does not need it: when the spawner ends, pumping goes on, and a new one
connects to the listener and asks for everything (HandOver). The newest connection is the
controller. The monitor ends only when it has no controller and keeps no task, or is killed; then
the spawner forks another and gives it the same descriptors (stdio.py: what that can cost).

    epoll ─▶ stream readable ─▶ ready ──pump──▶ MORE: ready again, behind the others
                                  ▲             IDLE: the epoll tells
                                  │             ENDED: closed
                  │             BLOCKED, until the attachment that is behind can be written to
                                  └── looked at ◀── HELD, until flushed after HOLD_S
                                      again soon

Streams are edge-triggered: a pipe that holds an unfinished line is always readable. While one is
held, the loop looks again after 1, 2, 4 ... ms, because not every write wakes the epoll (stdio.py);
after HOLD_S the line is logged as a piece, the pipe is empty and costs nothing any more.
"""

import errno
import gc
import os
import resource
import select
import signal
import socket
import time
import traceback
from collections import deque
from contextlib import suppress
from typing import NoReturn, assert_never

import msgspec

from pycri.kernel.fds import close_all, close_inherited
from pycri.model.ids import TaskId
from pycri.monitor.attachments import Attachments
from pycri.monitor.stdio import ScratchPipe, State, Stream, Task
from pycri.wire.channel import Channel
from pycri.wire.messages import (
    TO_MONITOR,
    WIRE_VERSION,
    CloseStdin,
    Copied,
    Copy,
    Drop,
    Finish,
    Finished,
    HandedOver,
    HandOver,
    Keep,
    Kept,
    MonitorCommand,
    MonitorReply,
    Reopen,
    Reopened,
)

HOLD_S = 1.0
"""How long an unfinished line waits for its end before it is logged as a piece."""

TURN = 256 << 10
"""Bytes a stream may log before the others have their turn."""

DRAIN = 1 << 20
"""Bytes taken to be in a pipe at most: the default of fs.pipe-max-size."""

_IGNORED_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)

_FIRST_LOOK_S = 0.001
_LONGEST_LOOK_S = 0.064


class _Hold:
    """One unfinished line: until when, and when to look again. logged: what came before it."""

    def __init__(self, logged: int, now_s: float) -> None:
        self.logged = logged
        self.until_s = now_s + HOLD_S
        self.delay_s = _FIRST_LOOK_S
        self.look_s = now_s + self.delay_s

    def postpone(self, now_s: float) -> None:
        self.delay_s = min(2 * self.delay_s, _LONGEST_LOOK_S)
        self.look_s = min(now_s + self.delay_s, self.until_s)


class Monitor:
    """All that one monitor keeps. Takes both sockets."""

    def __init__(self, command_socket: socket.socket, listener: socket.socket) -> None:
        self._epoll = select.epoll()
        self._scratch = ScratchPipe()
        self._attachments = Attachments(self._epoll)
        self._tasks: dict[TaskId, Task] = {}
        self._streams: dict[int, tuple[Task, Stream]] = {}
        self._ready: dict[Stream, None] = {}
        self._held: dict[Stream, _Hold] = {}
        self._listener = listener
        listener.settimeout(0)
        self._epoll.register(listener, select.EPOLLIN)
        self._controller: Channel | None = None
        # A TaskId stands for a Kept, made when there is room for it: the task may have changed.
        self._outbox: deque[MonitorReply | TaskId] = deque()
        self._obey_only(command_socket)

    def serve(self) -> None:
        """Pump and obey until there is nothing to keep and nobody to obey."""
        while self._controller is not None or self._tasks or self._accept():
            self._wait()
            self._look_again()
            ready, self._ready = self._ready, {}
            for stream in ready:
                self._pump(stream, TURN)

    def _wait(self) -> None:
        control = []
        for fd, events in self._epoll.poll(self._timeout_s()):
            if fd in self._streams:
                _, stream = self._streams[fd]
                stream.hung_up |= bool(events & select.EPOLLHUP)
                self._ready[stream] = None
            elif self._attachments.owns(fd):
                self._set_going(self._attachments.handle(fd, events))
            else:
                control.append(fd)
        # Commands last: they close descriptors, and a number used again would get the old's event.
        for fd in control:
            if fd == self._listener.fileno():
                self._accept()
            else:
                self._send_replies()
                while self._receive():
                    pass

    def _timeout_s(self) -> float | None:
        if self._ready:
            return 0
        if not self._held:
            return None
        return max(0, min(hold.look_s for hold in self._held.values()) - time.monotonic())

    # streams

    def _set_going(self, stream: Stream | None) -> None:
        """Look at a stream again that may have been waiting for an attachment."""
        if stream is not None and self._streams.get(stream.fd, (None, None))[1] is stream:
            self._ready[stream] = None

    def _pump(self, stream: Stream, limit_bytes: int) -> None:
        if stream.fd not in self._streams:
            return
        try:
            self._settle(stream, stream.pump(limit_bytes))
        except Exception:  # noqa: BLE001 - one stream's trouble must not be every container's
            self._held.pop(stream, None)
            _report()

    def _settle(self, stream: Stream, state: State) -> None:
        if state is State.HELD and not stream.hung_up:
            self._hold(stream)
            return
        self._held.pop(stream, None)
        if state is State.HELD:
            stream.flush()
            self._ready[stream] = None
        elif state is State.MORE:
            self._ready[stream] = None
        elif state is State.BLOCKED:
            self._attachments.watch(stream)
        elif state is State.ENDED:
            task, _ = self._streams[stream.fd]
            self._unregister(stream)
            task.end_stream(stream)
            self._attachments.end_stream(stream)

    def _hold(self, stream: Stream) -> None:
        hold = self._held.get(stream)
        if hold is None or hold.logged != stream.logged:
            self._held[stream] = _Hold(stream.logged, time.monotonic())
        else:
            hold.postpone(time.monotonic())

    def _look_again(self) -> None:
        now_s = time.monotonic() if self._held else 0
        for stream, hold in list(self._held.items()):
            if now_s >= hold.until_s:
                self._flush(stream)
            elif now_s >= hold.look_s:
                self._ready[stream] = None

    def _flush(self, stream: Stream) -> None:
        del self._held[stream]
        # What came meanwhile, into a pipe that was not empty, woke nobody.
        self._ready[stream] = None
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - as in _pump
            _report()

    def _drain(self, task: Task) -> None:
        """Log and show what the streams of an ended task hold."""
        for stream in list(task.streams.values()):
            stream.outlets.patient = False
            self._pump(stream, DRAIN)
            if stream in self._held:
                self._flush(stream)
            self._attachments.end_stream(stream)
        self._attachments.end_task(task.info.id)

    def _unregister(self, stream: Stream) -> None:
        # Closing is not enough: the spawner has the same open file, which stays in the epoll.
        if self._streams.pop(stream.fd, None) is not None:
            self._epoll.unregister(stream.fd)
        self._ready.pop(stream, None)
        self._held.pop(stream, None)

    # the controller

    def _accept(self) -> bool:
        accepted = False
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return accepted
            accepted = True
            self._obey_only(connection)

    def _obey_only(self, connection: socket.socket) -> None:
        self._leave_controller()
        connection.settimeout(0)
        self._controller = Channel(connection)
        self._epoll.register(connection, select.EPOLLIN)

    def _leave_controller(self) -> None:
        controller, self._controller = self._controller, None
        self._outbox.clear()
        if controller is not None:
            self._epoll.unregister(controller.fileno())
            controller.close()

    def _receive(self) -> bool:
        """Obey one command, if there is one; tell whether there may be another."""
        if self._controller is None:
            return False
        try:
            received = self._controller.receive(TO_MONITOR)
        except BlockingIOError:
            return False
        except msgspec.MsgspecError:
            _report()
            return True
        except OSError:
            received = None
        if received is None:
            self._leave_controller()
            return False
        try:
            self._obey(*received)
        except Exception:  # noqa: BLE001 - one task's trouble must not be every container's
            _report()
        return True

    def _obey(self, command: MonitorCommand, fds: list[int]) -> None:
        match command:
            case Keep():
                self._keep(command, fds)
            case Copy():
                self._copy(command, fds)
            case HandOver():
                self._hand_over(command)
            case Drop():
                self._drop(command.task)
            case Finish() | Reopen() | CloseStdin():
                self._look_after(command, self._tasks.get(command.task))
            case _:
                assert_never(command)

    def _look_after(self, command: Finish | Reopen | CloseStdin, task: Task | None) -> None:
        match command:
            case Finish():
                if task is not None:
                    self._drain(task)
                self._reply(Finished(task=command.task))
            case Reopen():
                number = errno.ENOENT if task is None else task.log.reopen()
                self._reply(Reopened(request=command.request, errno=number))
            case CloseStdin():
                if task is not None:
                    task.close_stdin()

    def _keep(self, command: Keep, fds: list[int]) -> None:
        if command.task.id in self._tasks:
            close_all(fds)
            return
        try:
            task = Task(command.task, fds, self._scratch)
        except Exception:
            close_all(fds)
            raise
        self._tasks[command.task.id] = task
        for stream in task.streams.values():
            self._epoll.register(stream.fd, select.EPOLLIN | select.EPOLLET)
            self._streams[stream.fd] = (task, stream)

    def _copy(self, command: Copy, fds: list[int]) -> None:
        task = self._tasks.get(command.task)
        if task is None:
            close_all(fds)
        else:
            # What is there already was before.
            for stream in list(task.streams.values()):
                self._pump(stream, TURN)
            self._attachments.add(task, command.streams, fds)
        number = errno.ENOENT if task is None else 0
        self._reply(Copied(request=command.request, errno=number))

    def _drop(self, name: TaskId) -> None:
        task = self._tasks.pop(name, None)
        if task is None:
            return
        self._drain(task)
        for stream in task.streams.values():
            self._unregister(stream)
        task.close()

    def _hand_over(self, command: HandOver) -> None:
        if command.version != WIRE_VERSION:
            # There is no message for "no" that a spawner of another version is sure to know.
            self._leave_controller()
            return
        self._outbox.extend(self._tasks)
        self._reply(HandedOver(pid=os.getpid()))

    def _reply(self, reply: MonitorReply) -> None:
        self._outbox.append(reply)
        self._send_replies()

    def _send_replies(self) -> None:
        """Send what the controller takes now; never wait for it: it may be waiting for us."""
        while self._outbox and self._controller is not None:
            try:
                self._send(self._controller, self._outbox[0])
            except BlockingIOError:
                break
            except OSError:
                self._leave_controller()
                return
            self._outbox.popleft()
        if self._controller is not None:
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._outbox else 0)
            self._epoll.modify(self._controller.fileno(), wanted)

    def _send(self, controller: Channel, reply: MonitorReply | TaskId) -> None:
        if not isinstance(reply, str):
            controller.send(reply)
        elif reply in self._tasks:
            info, fds = self._tasks[reply].describe()
            controller.send(Kept(task=info), fds)


def _report() -> None:
    with suppress(OSError):
        os.write(2, traceback.format_exc().encode())


def run(command_socket: socket.socket, listener: socket.socket) -> NoReturn:
    """Be the monitor, in a child just forked by the spawner; ends the process.

    command_socket: the spawner's connection (SOCK_SEQPACKET). listener: where a later spawner
    connects. Takes both; closes every other inherited descriptor above 2, such as a container's
    ends of its pipes, whose end-of-file would never come.
    """
    gc.freeze()
    gc.enable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Control-C and a stopped service reach the whole group; containers outlive both. A full disk
    # or a closed reader is an errno, not a death.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    close_inherited((command_socket.fileno(), listener.fileno()))
    # Four descriptors a task: the usual soft limit of 1024 is too few, and a message whose
    # descriptors do not fit loses them.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Monitor(command_socket, listener).serve()
    os._exit(0)
