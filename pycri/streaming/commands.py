# SPDX-License-Identifier: Apache-2.0
"""Exec and attach sessions: between a client's channels and a process.

A session ends when the process has ended and all is sent, when the client leaves or breaks the
rules, when nothing moves for the idle time-out, or when the server stops. However it does, its
descriptors are closed and its process is released.
"""

import asyncio
import contextlib
from typing import Any

from pycri.errors import PycriError
from pycri.logs import Log
from pycri.model.streams import ExecRequest
from pycri.streaming.channels import (
    CommandChannels,
    Event,
    Ready,
    Refused,
    Request,
    Resized,
    Stdin,
    StdinEnded,
)
from pycri.streaming.context import CLIENT_LEFT, Context, cancel
from pycri.streaming.interface import Process
from pycri.streaming.listening import Listener
from pycri.streaming.status import Failure, Outcome
from pycri.streaming.stdio import Stdio
from pycri.streaming.wire import Wire

_log = Log("streaming")

_FAREWELL_S = 2.0
"""For telling a client why its session is cut short."""


class CommandSession:
    """One session. Borrows the wire."""

    def __init__(
        self, wire: Wire, channels: CommandChannels, request: Request, context: Context
    ) -> None:
        self._wire = wire
        self._channels = channels
        self._request = request
        self._context = context
        self._listener = Listener(wire, channels, context, self._act)
        self._ready = asyncio.Event()
        self._begun = asyncio.Event()
        self._stdio: Stdio | None = None

    async def run(self, answer: bytes, first: bytes) -> str:
        """Serve to the end; return how it came. As Listener.run.

        Raises OSError when the client was lost.
        """
        working = asyncio.create_task(self._work())
        reading = asyncio.create_task(self._listener.run(answer, first))
        stopping = asyncio.create_task(self._context.stopping.wait())
        idle = asyncio.create_task(self._context.wait_idle(self._wire))
        tasks: list[asyncio.Task[Any]] = [reading, working, stopping, idle]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                return await self._finish(working.result())
            await cancel(working)  # no frame of it must be under way
            if reading in done:
                reason = await reading
                return reason if reason == CLIENT_LEFT else await self._cut_short(reason)
            return await self._cut_short(
                "the runtime is stopping" if stopping in done else "the session was idle"
            )
        finally:
            await cancel(*tasks)
            if self._stdio is not None:
                await self._stdio.release()

    async def _finish(self, outcome: Outcome) -> str:
        async with asyncio.timeout(self._context.idle_timeout_s):
            await self._wire.send(self._channels.finish(outcome))
        return str(outcome)

    async def _cut_short(self, reason: str) -> str:
        """Tell the client, if it can still be told."""
        if not self._wire.torn:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._finish(Failure(reason))
        return reason

    async def _act(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._ready.set()
            return
        await self._begun.wait()
        assert self._stdio is not None
        match event:
            case Stdin(payload=payload):
                await self._stdio.feed(payload)
            case StdinEnded():
                self._stdio.end_input()
            case Resized(width=width, height=height) if self._request.tty:
                await self._stdio.resize(width, height)
            case Refused(channel=channel):
                self._stdio.refuse(channel)

    async def _work(self) -> Outcome:
        """Start the process, and carry its output to its end once all channels are there.

        A command starts while its client still opens them: its pipes hold what it prints. One that
        has a terminal wants to know its size, and an attachment may be the last there can be of the
        container's stdin: these start when the client is there.
        """
        request = self._request
        early = isinstance(request, ExecRequest) and not request.tty
        failure = await self._start() if early else None
        try:
            async with asyncio.timeout(self._context.creation_timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return Failure("timed out waiting for the client's streams")
        if not early:
            failure = await self._start()
        if failure is not None:
            return failure
        assert self._stdio is not None
        self._begun.set()
        return await self._stdio.carry(request)

    async def _start(self) -> Failure | None:
        """Start the process; return why it cannot be."""
        sessions, request = self._context.sessions, self._request
        if isinstance(request, ExecRequest):
            call = sessions.exec(request)
        else:
            call = sessions.attach(request)
        try:
            self._stdio = self._around(await self._context.obtain(call, self._dispose))
        except PycriError as error:
            return Failure(str(error))
        except Exception as error:  # noqa: BLE001  the edge: the client is told that it failed
            _log.exception("cannot start a session", error)
            return Failure(f"{type(error).__name__}: {error}")
        return None

    async def _dispose(self, process: Process) -> None:
        """End what was started for a client that left meanwhile."""
        await self._around(process).release()

    def _around(self, process: Process) -> Stdio:
        return Stdio(process, self._wire, self._channels, self._context)
