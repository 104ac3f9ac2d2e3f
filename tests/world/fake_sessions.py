# SPDX-License-Identifier: Apache-2.0
"""A streaming server whose processes are plain children of the test, and whose pods are sockets."""

import asyncio
import os
import pty
import signal
import socket
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pycri.config import StreamingSettings
from pycri.errors import NotFound, SetupFailed, Unavailable
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest
from pycri.streaming.interface import Request
from pycri.streaming.server import StreamingServer


class ChildProcess:
    """A child with pipes, or with a terminal."""

    def __init__(self, request: ExecRequest) -> None:
        self.ended = asyncio.Event()
        self.sizes: list[tuple[int, int]] = []
        self.stdin_fd = self.stdout_fd = self.stderr_fd = None
        if request.tty:
            master, slave = pty.openpty()
            self._start(request, slave, slave, slave)
            os.close(slave)
            self.stdin_fd = os.dup(master) if request.stdin else None
            self.stdout_fd = master
            return
        inside_in, self.stdin_fd = _input_pipe(wanted=request.stdin)
        self.stdout_fd, inside_out = _output_pipe(wanted=request.stdout)
        self.stderr_fd, inside_err = _output_pipe(wanted=request.stderr)
        self._start(request, inside_in, inside_out, inside_err)
        for fd in (inside_in, inside_out, inside_err):
            os.close(fd)

    def _start(self, request: ExecRequest, stdin: int, stdout: int, stderr: int) -> None:
        self._child = subprocess.Popen(
            request.cmd, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    async def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))
        assert self.stdout_fd is not None
        termios.tcsetwinsize(self.stdout_fd, (height, width))

    async def wait(self) -> int:
        pidfd = os.pidfd_open(self._child.pid)
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(pidfd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._child.wait() & 255

    def wait_ended(self) -> None:
        """Wait until it has ended by itself; it is collected later."""
        os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)

    async def end(self) -> None:
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self.ended.set()


def _input_pipe(*, wanted: bool) -> tuple[int, int | None]:
    if not wanted:
        return os.open(os.devnull, os.O_RDONLY), None
    return os.pipe()


def _output_pipe(*, wanted: bool) -> tuple[int | None, int]:
    if not wanted:
        return None, os.open(os.devnull, os.O_WRONLY)
    return os.pipe()


class FakeSessions:
    """Knows the container "c" and the pod "p"; the command "missing" cannot be started.

    processes: those that were started; a start waits for `gate`. attach gives one that echoes.
    """

    def __init__(self) -> None:
        self.processes: list[ChildProcess] = []
        self.starting = asyncio.Event()
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def admit(self, request: Request) -> Request:
        name = request.pod_id if isinstance(request, PortForwardRequest) else request.container_id
        if name not in ("c", "p"):
            raise NotFound("container", name)
        return request

    async def exec(self, request: ExecRequest) -> ChildProcess:
        self.starting.set()
        await self.gate.wait()
        if request.cmd == ("missing",):
            raise SetupFailed("exec missing", 2, "no such file")
        process = ChildProcess(request)
        self.processes.append(process)
        self.started.set()
        return process

    async def attach(self, request: AttachRequest) -> ChildProcess:
        return await self.exec(
            ExecRequest(
                container_id=request.container_id,
                cmd=("cat",),
                tty=request.tty,
                stdin=request.stdin,
                stdout=request.stdout,
                stderr=request.stderr,
            )
        )

    async def connect(self, request: PortForwardRequest, port: int) -> int:
        try:
            return socket.create_connection(("127.0.0.1", port)).detach()
        except OSError as error:
            raise Unavailable(f"port {port}: {error.strerror}") from error


def impatient(**timeouts_s: float) -> StreamingSettings:
    """Settings with time-outs of less than a second, which a node's cannot be."""
    return StreamingSettings(**timeouts_s)  # type: ignore[arg-type]


@asynccontextmanager
async def streaming(
    settings: StreamingSettings | None = None,
) -> AsyncIterator[tuple[StreamingServer, FakeSessions]]:
    """A running server and its fakes."""
    sessions = FakeSessions()
    server = StreamingServer(settings or StreamingSettings(), sessions)
    await server.start()
    try:
        yield server, sessions
    finally:
        await server.close()
