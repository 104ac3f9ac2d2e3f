# SPDX-License-Identifier: Apache-2.0
"""The process behind one exec or attach session (`streaming.interface.Process`)."""

import asyncio
import os

from pycri.errors import PycriError, Unavailable
from pycri.kernel import terminal
from pycri.kernel.fds import close_all
from pycri.logs import Log
from pycri.pods.execs import RunningExec
from pycri.runtimes.client import Attachment, SpawnerClient

_log = Log("sessions")

HANGUP_GRACE_S = 2.0
"""How long a command whose caller is gone may take to end after SIGHUP."""


class ExecProcess:
    """A command with its own stdio.

    The terminal's master is kept beside the session's own duplicates: for its size, and because
    the kernel hangs up the terminal when the last of them is closed.
    """

    def __init__(self, spawner: SpawnerClient, running: RunningExec, *, stdin: bool) -> None:
        self._spawner = spawner
        self._running = running
        streams = running.process.streams
        self._master: int | None = streams.get("terminal")
        self.stdin_fd = streams.get("stdin")
        self.stdout_fd = streams.get("stdout")
        self.stderr_fd = streams.get("stderr")
        if self._master is not None:
            self.stdin_fd = os.dup(self._master) if stdin else None
            self.stdout_fd = os.dup(self._master)

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters."""
        if self._master is not None:
            terminal.set_size(self._master, width, height)

    async def wait(self) -> int:
        """Wait for the end. Raises Unavailable when the spawner was lost, and with it the code."""
        record = await asyncio.shield(self._running.process.exited)
        return record.exit_code

    async def end(self) -> None:
        """End what still runs: SIGHUP, then SIGKILL to the whole group; never raises."""
        if self._master is not None:
            close_all((self._master,))
            self._master = None
        try:
            if not _has_ended(self._running):
                await self._hang_up()
                await self._running.kill()
            await self._running.leave()
        except OSError as error:
            _log.exception("cannot end an exec", error, exec=self._running.id)

    async def _hang_up(self) -> None:
        exited = self._running.process.exited
        try:
            await self._spawner.hang_up(self._running.id)
            await asyncio.wait({exited}, timeout=HANGUP_GRACE_S)
        except PycriError:
            # The spawner is being replaced: nobody can say how the command takes it.
            return


class AttachedProcess:
    """A part in a container's stdio. With a terminal, `stdout_fd` is a pipe of its output.

    stdin_fd: with stdin_once the container's only one, so that closing it ends the stdin for good,
    also if we die.
    """

    def __init__(self, attachment: Attachment, *, stdin: bool) -> None:
        streams = attachment.streams
        self.stdin_fd: int | None = None
        self.stdout_fd = streams.get("terminal", streams.get("stdout"))
        self.stderr_fd = streams.get("stderr")
        self._master: int | None = None
        if "terminal" not in streams:
            self.stdin_fd = attachment.input_fd
        elif attachment.input_fd is not None:
            self._master = attachment.input_fd
            self.stdin_fd = os.dup(self._master) if stdin else None
        self._line_fd = attachment.line_fd
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[bool] = self._loop.create_future()
        self._task_ended = False
        os.set_blocking(self._line_fd, False)
        self._loop.add_reader(self._line_fd, self._read_line)

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters."""
        if self._master is not None:
            terminal.set_size(self._master, width, height)

    async def wait(self) -> int:
        """Wait until the container has ended and all was shown. Returns 0.

        Raises: Unavailable when the monitor was lost: the container goes on.
        """
        if not await asyncio.shield(self._over):
            raise Unavailable("the monitor was replaced, attach again")
        return 0

    async def end(self) -> None:
        """Detach."""
        if self._line_fd >= 0:
            self._loop.remove_reader(self._line_fd)
            close_all((self._line_fd,))
            self._line_fd = -1
        if self._master is not None:
            close_all((self._master,))
            self._master = None

    def _read_line(self) -> None:
        try:
            word = os.read(self._line_fd, 16)
        except BlockingIOError:
            return
        self._task_ended |= bool(word)
        if not word:
            self._loop.remove_reader(self._line_fd)
            self._over.set_result(self._task_ended)


def _has_ended(running: RunningExec) -> bool:
    exited = running.process.exited
    return exited.done() and not exited.cancelled() and exited.exception() is None
