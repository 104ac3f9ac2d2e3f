# SPDX-License-Identifier: Apache-2.0
"""Port-forward sessions: between a client's channels and connections to a pod's ports.

    client ──▶ Wire ──▶ _read ──▶ Target ──▶ pod
    client ◀── Wire ◀── Pump ◀─── Target ◀── pod

Either side may half-close a connection. One that cannot be made is told to the client on its own
channel; the others go on. A target that does not read holds back the whole session: windows are
not counted in this protocol, and nothing is stored up.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from functools import partial
from typing import Any

from pycri.errors import PycriError
from pycri.logs import Log
from pycri.model.streams import PortForwardRequest
from pycri.streaming.context import Context, cancel
from pycri.streaming.listening import Listener
from pycri.streaming.ports import (
    Data,
    Dropped,
    Event,
    Half,
    InputEnded,
    Opened,
    PortChannels,
)
from pycri.streaming.pump import Pump
from pycri.streaming.wire import Wire, write_all, write_now

_FAREWELL_S = 2.0

_log = Log("streaming")


class Target:
    """One connection to a port."""

    def __init__(self) -> None:
        self.connected: asyncio.Future[socket.socket | None] = asyncio.Future()
        self.input_ended = asyncio.Event()
        self.pump: Pump | None = None
        self.dropped = False

    async def feed(self, payload: memoryview | bytes, wire: Wire) -> None:
        """Send to the pod as it takes it; what it does not take any more is dropped.

        Raises ConnectionResetError if the client leaves meanwhile.
        """
        sock = await self.connected
        if sock is None or self.input_ended.is_set():
            return
        try:
            rest = write_now(sock.fileno(), payload)
        except OSError:
            self.input_ended.set()
            return
        if rest:
            await wire.while_there(self._feed_slowly(sock, rest))

    async def end_input(self) -> None:
        """Half-close towards the pod."""
        sock = await self.connected
        if sock is not None and not self.input_ended.is_set():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            self.input_ended.set()

    def drop(self) -> None:
        """Close, behind the piece under way: a frame that was begun must be sent whole."""
        self.dropped = True
        self.input_ended.set()
        if self.pump is not None:
            self.pump.stop()

    async def _feed_slowly(self, sock: socket.socket, payload: memoryview) -> None:
        try:
            await write_all(sock.fileno(), payload)
        except OSError:
            self.input_ended.set()


class ForwardSession:
    """One session. Borrows the wire."""

    def __init__(
        self, wire: Wire, channels: PortChannels, request: PortForwardRequest, context: Context
    ) -> None:
        self._wire = wire
        self._channels = channels
        self._request = request
        self._context = context
        self._listener = Listener(wire, channels, context, self._act)
        self._targets: dict[int, Target] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False

    async def run(self, answer: bytes, first: bytes) -> str:
        """Serve to the end; return how it came. As Listener.run.

        Raises OSError when the client was lost.
        """
        reading = asyncio.create_task(self._listener.run(answer, first))
        stopping = asyncio.create_task(self._context.stopping.wait())
        idle = asyncio.create_task(self._context.wait_idle(self._wire))
        tasks: list[asyncio.Task[Any]] = [reading, stopping, idle]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._bid_farewell()
            if reading in done:
                return await reading
            return "the runtime is stopping" if stopping in done else "the session was idle"
        finally:
            self._over = True
            await cancel(*tasks, *self._tasks)

    async def _bid_farewell(self) -> None:
        await cancel(*self._tasks)
        if not self._wire.torn:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._wire.send(self._channels.go_away())

    async def _act(self, event: Event) -> None:
        match event:
            case Opened(connection=connection, port=port):
                target = self._targets[connection] = Target()
                self._begin(self._forward(connection, port, target))
            case Half(stream=stream):
                loop = asyncio.get_running_loop()
                loop.call_later(self._context.creation_timeout_s, self._give_up, stream)
            case Data(connection=connection, payload=payload) if connection in self._targets:
                await self._targets[connection].feed(payload, self._wire)
            case InputEnded(connection=connection) if connection in self._targets:
                await self._targets[connection].end_input()
            case Dropped(connection=connection) if connection in self._targets:
                self._targets[connection].drop()

    def _give_up(self, stream: int) -> None:
        if not self._over and (frames := self._channels.give_up(stream)):
            self._begin(self._wire.send(frames))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Forget a task. A client that is lost is the reader's to see."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, OSError):
            _log.exception("a forwarded connection failed", error)

    async def _forward(self, connection: int, port: int, target: Target) -> None:
        """Connect, and carry what the pod sends, until both ways are closed."""
        call = self._context.sessions.connect(self._request, port)
        try:
            try:
                fd = await self._context.obtain(call, _close)
            except (PycriError, OSError) as error:
                await self._wire.send(self._channels.fail(connection, str(error)))
                return
            with socket.socket(fileno=fd) as sock:
                sock.settimeout(0)
                target.connected.set_result(sock)
                await self._carry(connection, target, sock)
        finally:
            if not target.connected.done():
                target.connected.set_result(None)
            del self._targets[connection]

    async def _carry(self, connection: int, target: Target, sock: socket.socket) -> None:
        send = partial(self._wire.send_framed, self._channels, connection)
        target.pump = Pump(sock.fileno(), send, self._context.buffers)
        if target.dropped:
            return
        try:
            await target.pump.run()
        except OSError:  # of the pod's side, or the client's, where a reset does no harm
            await self._wire.send(self._channels.reset(connection))
            return
        await self._wire.send(self._channels.end(connection))
        if self._channels.takes_input(connection):
            await target.input_ended.wait()


async def _close(fd: int) -> None:
    os.close(fd)
