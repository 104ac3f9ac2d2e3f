# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the private protocol: requests as coroutines, exits as callbacks.

The spawner may die at any instant. Then every request that waits fails with Unavailable, a new
spawner is started, which takes over from the monitor, and `on_replaced` is awaited so that the
daemon compares what it believes with what still runs. Requests made meanwhile wait for it.
"""

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

from pycri.config import Settings
from pycri.errors import SetupFailed, Unavailable, WrongState
from pycri.kernel.fds import close_all
from pycri.logs import Log
from pycri.model.host import HostFacts
from pycri.model.ids import TaskId
from pycri.model.plan import ContainerPlan, ExecPlan, SandboxPlan
from pycri.runtimes import launch
from pycri.wire.channel import Channel
from pycri.wire.messages import (
    FROM_SPAWNER,
    WIRE_VERSION,
    Attach,
    Attached,
    DaemonMessage,
    Done,
    Exec,
    Exited,
    ExitRecord,
    Failed,
    Forget,
    HangUp,
    Hello,
    ListTasks,
    OpenSockets,
    Quit,
    ReopenLog,
    SandboxStarted,
    Signal,
    Sockets,
    SpawnerMessage,
    StartContainer,
    StartSandbox,
    TaskInfo,
    Tasks,
    TaskStarted,
    Welcome,
)

_log = Log("spawner")
_HELLO_DEADLINE_S = 10.0
_QUIT_DEADLINE_S = 10.0
_REPLACE_PAUSES_S = (0.01, 0.1, 1.0)
"""Before each further try; the last for ever. A child that a dying spawner has just forked listens
in its place for the moment that it takes to close what it inherited."""

T = TypeVar("T")


class ExecProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A running exec. streams: our ends by name ("stdout", "stderr", "stdin" or "terminal"),
    which the receiver owns; exited: resolves to its record."""

    pid: int
    streams: dict[str, int]
    exited: asyncio.Future[ExitRecord]


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A part in a container's stdio. The receiver owns all descriptors.

    line_fd: tells the end, monitor/attachments.py. streams: reading ends by name.
    input_fd: writing end of stdin, or with a terminal its master; None if it has none any more.
    """

    line_fd: int
    streams: dict[str, int]
    input_fd: int | None


class SpawnerClient:
    """The connection to the spawner of the moment.

    on_exit: called in the loop with each container's or pod init's exit record.
    on_replaced: awaited after a new spawner has taken over.
    """

    def __init__(self, settings: Settings, host: HostFacts) -> None:
        self._settings = settings
        self._host = host
        self._channel: Channel | None = None
        self._waiting: dict[int, asyncio.Future[tuple[SpawnerMessage, list[int]]]] = {}
        self._execs: dict[TaskId, asyncio.Future[ExitRecord]] = {}
        self._next_request = 1
        self._welcome: asyncio.Future[Welcome] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._closing = False
        self.on_exit: Callable[[ExitRecord], None] = lambda _: None
        self.on_replaced: Callable[[], Awaitable[None]] | None = None
        self.pid = 0
        self.monitor_pid = 0

    async def attach(self, sock: socket.socket) -> None:
        """Speak over a connected socket, which is taken. Raises Unavailable on another version."""
        sock.settimeout(0)
        self._channel = Channel(sock)
        loop = asyncio.get_running_loop()
        self._welcome = loop.create_future()
        loop.add_reader(self._channel.fileno(), self._read)
        self._channel.send(Hello())
        try:
            async with asyncio.timeout(_HELLO_DEADLINE_S):
                welcome = await self._welcome
        except TimeoutError as error:
            raise Unavailable("the spawner does not answer") from error
        if welcome.version != WIRE_VERSION:
            raise Unavailable(
                f"the running spawner speaks version {welcome.version} of the private protocol, "
                f"this daemon {WIRE_VERSION}: end all pods before this upgrade"
            )
        self._connected.set()

    def problem(self) -> str | None:
        """Return why nothing can be started (the condition RuntimeReady), or None."""
        return None if self._channel is not None else "the spawner is being replaced"

    async def close(self) -> None:
        """End the connection; spawner and containers go on."""
        self._closing = True
        if self._replacing:
            self._replacing.cancel()
        self._disconnect("the daemon is stopping")

    async def start_sandbox(self, plan: SandboxPlan) -> tuple[SandboxStarted, int | None]:
        """Make a pod's namespaces. Returns the answer and a netlink socket, caller closes."""
        message, fds = await self._ask(lambda n: StartSandbox(request=n, plan=plan))
        answer = _expect(message, SandboxStarted)
        return answer, fds[0] if fds else None

    async def start_container(self, plan: ContainerPlan) -> TaskStarted:
        """Start a container. Raises SetupFailed with the step that failed."""
        message, _ = await self._ask(lambda n: StartContainer(request=n, plan=plan))
        return _expect(message, TaskStarted)

    async def exec(self, plan: ExecPlan) -> ExecProcess:
        """Start a further process in a running container."""
        exited: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._execs[plan.id] = exited
        try:
            message, fds = await self._ask(lambda n: Exec(request=n, plan=plan))
            answer = _expect(message, TaskStarted)
        except BaseException:
            self._execs.pop(plan.id, None)
            raise
        streams = dict(zip(answer.streams, fds, strict=True))
        return ExecProcess(pid=answer.pid, streams=streams, exited=exited)

    async def hang_up(self, exec_id: TaskId) -> None:
        """Send SIGHUP to an exec and its process group; one that has ended is fine."""
        await self._ask(lambda n: HangUp(request=n, exec=exec_id))

    async def attach_task(
        self, task: TaskId, names: Sequence[str], *, stdin: bool, once: bool
    ) -> Attachment:
        """Get copies of a container's output from now on: "stdout", "stderr" or "terminal".

        stdin: get its input too; once: for good, nobody else will get it.
        """
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(1 + len(names))]
        line_fd, *readers = (reader for reader, _ in pipes)
        writers = tuple(writer for _, writer in pipes)
        streams = tuple(names)
        try:
            message, fds = await self._ask(
                lambda n: Attach(request=n, task=task, streams=streams, stdin=stdin, once=once),
                writers,
            )
            _expect(message, Attached)
        except BaseException:
            close_all((line_fd, *readers))
            raise
        finally:
            close_all(writers)
        return Attachment(
            line_fd=line_fd,
            streams=dict(zip(names, readers, strict=True)),
            input_fd=fds[0] if fds else None,
        )

    async def open_sockets(self, path: str) -> list[socket.socket]:
        """Open non-blocking TCP sockets in a pinned network namespace: IPv4, then IPv6."""
        message, fds = await self._ask(lambda n: OpenSockets(request=n, path=path))
        _expect(message, Sockets)
        sockets = [socket.socket(fileno=fd) for fd in fds]
        for each in sockets:
            each.settimeout(0)
        return sockets

    async def signal(self, task: TaskId, number: int) -> None:
        """Send a signal to a task; one that has ended is fine."""
        await self._ask(lambda n: Signal(request=n, task=task, signal=number))

    async def reopen_log(self, task: TaskId) -> None:
        """Let the monitor open the task's log file anew."""
        message, _ = await self._ask(lambda n: ReopenLog(request=n, task=task))
        _expect(message, Done)

    async def forget(self, task: TaskId) -> None:
        """Drop an ended task, its descriptors and its exit record."""
        await self._ask(lambda n: Forget(request=n, task=task))

    async def list_tasks(self) -> dict[TaskId, TaskInfo]:
        """Return every task the spawner keeps, ended ones with their exit codes."""
        message, _ = await self._ask(lambda n: ListTasks(request=n))
        return {task.id: task for task in _expect(message, Tasks).tasks}

    async def quit(self) -> None:
        """End spawner and monitor, and wait until they have.

        Raises: WrongState while a task runs; Unavailable if they go on.
        """
        await self._wait_connected()  # then it is known whose end to wait for
        self._closing = True
        ends = _open_pidfds(self.pid, self.monitor_pid)
        try:
            message, _ = await self._ask(lambda n: Quit(request=n))
            _expect(message, Done)
            await asyncio.to_thread(_wait_ends, ends)
        finally:
            close_all(ends)

    async def _ask(
        self, message: Callable[[int], DaemonMessage], fds: Sequence[int] = ()
    ) -> tuple[SpawnerMessage, list[int]]:
        await self._wait_connected()
        assert self._channel is not None
        number = self._next_request
        self._next_request += 1
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(message(number), fds)
        except OSError as error:
            self._waiting.pop(number, None)
            raise Unavailable(f"the spawner does not take requests: {error.strerror}") from error
        answer: tuple[SpawnerMessage, list[int]] = await future
        return answer

    async def _wait_connected(self) -> None:
        """Wait for a spawner that is being replaced; usually that takes a tenth of a second."""
        if self._connected.is_set():
            return
        try:
            async with asyncio.timeout(_HELLO_DEADLINE_S):
                await self._connected.wait()
        except TimeoutError as error:
            raise Unavailable("the spawner is being replaced, try again") from error

    def _read(self) -> None:
        assert self._channel is not None
        try:
            while received := self._channel.receive(FROM_SPAWNER):
                self._dispatch(*received)
        except BlockingIOError:
            return
        except msgspec.MsgspecError as error:
            _log.exception("unreadable message from the spawner", error)
        self._lost()

    def _dispatch(self, message: SpawnerMessage, fds: list[int]) -> None:
        match message:
            case Exited(record=record):
                self._exited(record)
            case Welcome(pid=pid, monitor=monitor):
                self.pid, self.monitor_pid = pid, monitor
                _settle(self._welcome, message)
            case _:
                if not _settle(self._waiting.pop(message.request, None), (message, fds)):
                    close_all(fds)

    def _exited(self, record: ExitRecord) -> None:
        if record.id in self._execs:
            _settle(self._execs.pop(record.id), record)
        else:
            self.on_exit(record)

    def _lost(self) -> None:
        self._disconnect("the spawner ended, try again")
        if self._welcome is not None and not self._welcome.done():
            # Whoever waits for the greeting tries another.
            _fail(self._welcome, "the spawner ended before it answered")
        elif not self._closing:
            self._replacing = asyncio.create_task(self._replace())

    def _disconnect(self, reason: str) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
            self._connected.clear()
        for future in self._waiting.values():
            _fail(future, reason)
        for exited in self._execs.values():
            _fail(exited, reason)
        self._waiting.clear()
        self._execs.clear()

    async def _replace(self) -> None:
        """Connect to a spawner that lives, or start one, until one answers."""
        pauses = iter(_REPLACE_PAUSES_S)
        while True:
            try:
                sock = launch.connect(self._settings)
                if sock is None:
                    sock = await asyncio.to_thread(launch.start, self._settings, self._host)
                await self.attach(sock)
                break
            except (OSError, Unavailable) as error:
                _log.exception("cannot replace the spawner", error)
                self._disconnect("the spawner cannot be replaced")
                await asyncio.sleep(next(pauses, _REPLACE_PAUSES_S[-1]))
        _log.warning("spawner replaced", pid=self.pid)
        if self.on_replaced:
            await self.on_replaced()


def _open_pidfds(*pids: int) -> list[int]:
    """Return pidfds of those that have not ended yet."""
    pidfds: list[int] = []
    for pid in pids:
        with suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(pid))
    return pidfds


def _wait_ends(pidfds: Sequence[int]) -> None:
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_QUIT_DEADLINE_S * 1000):
            raise Unavailable("the spawner or the monitor does not end")


def _settle(future: asyncio.Future[T] | None, result: T) -> bool:
    """Resolve a future that somebody still waits for. Returns False when nobody does."""
    if future is None or future.done():
        return False
    future.set_result(result)
    return True


def _fail(future: asyncio.Future[T], reason: str) -> None:
    if not future.done():
        future.set_exception(Unavailable(reason))
        # The waiter may be gone; its exception is not worth a warning then.
        future.exception()


def _expect(message: SpawnerMessage, kind: type[T]) -> T:
    if isinstance(message, kind):
        return message
    if isinstance(message, Failed):
        if message.kind == "state":
            raise WrongState(message.reason)
        raise SetupFailed(message.step, message.errno, message.reason)
    raise Unavailable(f"unexpected answer {type(message).__name__} from the spawner")
