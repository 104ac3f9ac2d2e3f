# SPDX-License-Identifier: Apache-2.0
"""A process behind a session, and what flows between it and the client.

client ──▶ feed ──────────▶ stdin_fd
client ◀── Wire ◀── Pump ◀── stdout_fd, stderr_fd
"""

import asyncio
import contextlib
import fcntl
import os
from functools import partial

from pycri.errors import PycriError
from pycri.kernel.fds import close_all
from pycri.logs import Log
from pycri.streaming.channels import Channel, CommandChannels, Request
from pycri.streaming.context import Context, cancel
from pycri.streaming.interface import Process
from pycri.streaming.pump import PIPE_BYTES, Pump
from pycri.streaming.status import Exited, Failure, Outcome
from pycri.streaming.wire import Wire, write_all, write_now

_log = Log("streaming")


class Stdio:
    """Takes the process and its descriptors; borrows the wire."""

    def __init__(
        self, process: Process, wire: Wire, channels: CommandChannels, context: Context
    ) -> None:
        self._process = process
        self._wire = wire
        self._channels = channels
        self._context = context
        self._stdin_fd = process.stdin_fd
        outputs = ((Channel.STDOUT, process.stdout_fd), (Channel.STDERR, process.stderr_fd))
        self._outputs = {channel: fd for channel, fd in outputs if fd is not None}
        self._pumps: dict[Channel, Pump] = {}
        for fd in self._descriptors():
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # no pipe, or no more room for pipes
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    async def carry(self, request: Request) -> Outcome:
        """Carry output until the process has ended; return how it did."""
        wanted = {Channel.STDOUT: request.stdout, Channel.STDERR: request.stderr}
        for channel, fd in self._outputs.items():
            send = partial(self._wire.send_framed, self._channels, channel)
            self._pumps[channel] = Pump(
                fd, send if wanted[channel] else _drop, self._context.buffers
            )
        tasks = [asyncio.create_task(self._carry_output(channel)) for channel in self._pumps]
        try:
            outcome = await self._wait()
            for pump in self._pumps.values():
                pump.finish()
            for task in tasks:
                await task
        finally:
            await cancel(*tasks)
        return outcome

    async def feed(self, payload: memoryview | bytes) -> None:
        """Write to stdin as it takes it; what it does not take any more is dropped.

        Raises ConnectionResetError if the client leaves meanwhile.
        """
        if self._stdin_fd is None:
            return
        try:
            rest = write_now(self._stdin_fd, payload)
        except OSError:
            self.end_input()
            return
        if rest:
            await self._wire.while_there(self._feed_slowly(self._stdin_fd, rest))

    def end_input(self) -> None:
        """Close stdin."""
        if self._stdin_fd is not None:
            os.close(self._stdin_fd)
            self._stdin_fd = None

    def refuse(self, channel: Channel) -> None:
        """Close an output that the client does not want any more."""
        if pump := self._pumps.get(channel):
            pump.stop()

    async def resize(self, width: int, height: int) -> None:
        await self._context.ask(self._process.resize(width, height))

    async def release(self) -> None:
        """Close the descriptors, end what still runs. `carry` must have ended."""
        close_all(self._descriptors())
        self._stdin_fd = None
        self._outputs.clear()
        await self._context.ask(self._process.end())

    def _descriptors(self) -> list[int]:
        stdin = [] if self._stdin_fd is None else [self._stdin_fd]
        return [*stdin, *self._outputs.values()]

    async def _feed_slowly(self, fd: int, payload: memoryview) -> None:
        try:
            await write_all(fd, payload)
        except OSError:
            self.end_input()

    async def _carry_output(self, channel: Channel) -> None:
        """Carry one output to its end. Who cannot be sent to is seen to leave by the reader."""
        with contextlib.suppress(OSError):
            await self._pumps[channel].run()
            await self._wire.send(self._channels.end(channel))
        os.close(self._outputs.pop(channel))

    async def _wait(self) -> Outcome:
        try:
            return Exited(await self._context.ask(self._process.wait()))
        except PycriError as error:
            return Failure(str(error))
        except Exception as error:  # noqa: BLE001  the edge: the client is told that it failed
            _log.exception("cannot wait for a process", error)
            return Failure(f"{type(error).__name__}: {error}")


async def _drop(_: memoryview) -> None:
    """Take output that nobody has asked for, so that its writer can go on."""
