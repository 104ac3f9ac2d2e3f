# SPDX-License-Identifier: Apache-2.0
"""The connection to a client, and waiting for descriptors, in an event loop.

Bytes go from a descriptor into a buffer and from it to another descriptor in one system call each;
Python sees only where they are. Nothing is stored up: who cannot write waits, and reads no more.
Failures of the connection are OSErrors, which for a session mean that its client is gone.
"""

import asyncio
import contextlib
import mmap
import os
import select
import socket
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Protocol

BUFFER_BYTES = 256 << 10
_FREE_BUFFERS = 8
_KEEPALIVE_S = 60


class Buffers:
    """Lends buffers. A reader borrows one only once there is something to read: idle sessions
    have none, and one whose receiver is slow keeps what is under way.

    Each is a mapping of its own: it costs the pages that were read into, and goes back whole, where
    a heap that two hundred had widened would stay wide.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    @contextmanager
    def borrowed(self) -> Iterator[memoryview]:
        """Lend a buffer; what was read into it must be gone at the block's end."""
        buffer = self._free.pop() if self._free else _map_buffer()
        try:
            yield buffer
        finally:
            if len(self._free) < _FREE_BUFFERS:
                self._free.append(buffer)


def _map_buffer() -> memoryview:
    return memoryview(mmap.mmap(-1, BUFFER_BYTES, mmap.MAP_PRIVATE))


async def wait_readable(fd: int) -> None:
    """Wait until reading `fd` does not block. One waits at a time."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(fd, _wake, future)
    try:
        await future
    finally:
        loop.remove_reader(fd)


async def wait_writable(fd: int) -> None:
    """Wait until writing `fd` does not block. One waits at a time."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_writer(fd, _wake, future)
    try:
        await future
    finally:
        loop.remove_writer(fd)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class HangupWatch:
    """Tells when a client has closed its connection, though what it sent before is not read yet.

    That cannot be seen by reading while a session has no use for more input.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    async def run(self, fd: int, work: Awaitable[None]) -> None:
        """Await `work`. Raises ConnectionResetError if the client of the socket leaves first."""
        gone = self._waiting[fd] = asyncio.get_running_loop().create_future()
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((gone, task), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionResetError("the client has left")
            await task
        finally:
            self._epoll.unregister(fd)
            del self._waiting[fd]
            task.cancel()
            await asyncio.wait((task,))

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if found := self._waiting.get(fd):
                _wake(found)


class Framing(Protocol):
    """How bytes of a channel travel; see CommandChannels and PortChannels."""

    def prefix(self, channel: int, size: int, /) -> bytes | None: ...
    def encode(self, channel: int, data: memoryview, /) -> bytes: ...


class Wire:
    """A connection to a client. Takes the socket; one reader, any number of writers."""

    def __init__(self, sock: socket.socket, hangups: HangupWatch) -> None:
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            sock.setsockopt(socket.IPPROTO_TCP, option, _KEEPALIVE_S)
        self._sock = sock
        self._hangups = hangups
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.active_s = self._loop.time()
        """When bytes went either way last, by the loop's clock."""
        self.torn = False
        """A frame was cut off in the middle: what is sent now means nothing to the client."""

    async def wait_readable(self) -> None:
        """Wait until there is something to read, or the client has closed."""
        if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            await wait_readable(self._sock.fileno())

    async def receive(self, buffer: memoryview) -> int:
        """Read what has come into `buffer`; 0 is the end."""
        while True:
            try:
                size = self._sock.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self.wait_readable()
            except ssl.SSLWantWriteError:
                async with self._writing:  # TLS must answer before it can go on
                    await wait_writable(self._sock.fileno())
            except ssl.SSLEOFError:
                return 0
            else:
                self.active_s = self._loop.time()
                return size

    async def send(self, *parts: bytes | memoryview) -> None:
        """Send parts of one frame, or whole frames, with nothing of another between them."""
        async with self._writing:
            rest = [memoryview(part) for part in parts if part]
            while rest:
                try:
                    sent = self._write(rest)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    await wait_writable(self._sock.fileno())
                    continue
                self.torn = True
                self.active_s = self._loop.time()
                rest = _without(rest, sent)
            self.torn = False

    async def send_framed(self, framing: Framing, channel: int, data: memoryview) -> None:
        """Send bytes of a channel, as they are if they can be."""
        head = framing.prefix(channel, len(data))
        if head is None:
            await self.send(framing.encode(channel, data))
        else:
            await self.send(head, data)

    async def while_there(self, work: Awaitable[None]) -> None:
        """Await `work`, in which nothing is read. Raises ConnectionResetError, see HangupWatch."""
        await self._hangups.run(self._sock.fileno(), work)

    async def secure(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake."""
        secured = context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        self._sock = secured
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await wait_readable(secured.fileno())
            except ssl.SSLWantWriteError:
                await wait_writable(secured.fileno())
            else:
                return

    async def finish(self, buffers: Buffers, timeout_s: float) -> None:
        """Close our way and wait for the client to close its.

        Closing while something unread has come would make the kernel drop what we sent last.
        """
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                if isinstance(self._sock, ssl.SSLSocket):
                    await self._end_tls()
                self._sock.shutdown(socket.SHUT_WR)
                with buffers.borrowed() as buffer:
                    while await self.receive(buffer):
                        continue

    async def _end_tls(self) -> None:
        assert isinstance(self._sock, ssl.SSLSocket)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._sock = self._sock.unwrap()

    def close(self) -> None:
        self._sock.close()

    def _write(self, parts: list[memoryview]) -> int:
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.send(parts[0])
        return self._sock.sendmsg(parts)


def _without(parts: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of `parts` when their first `sent` bytes are gone."""
    while parts and sent >= len(parts[0]):
        sent -= len(parts.pop(0))
    if sent:
        parts[0] = parts[0][sent:]
    return parts


def write_now(fd: int, data: memoryview | bytes) -> memoryview:
    """Write what a non-blocking descriptor takes now; return the rest."""
    rest = memoryview(data)
    with contextlib.suppress(BlockingIOError):
        while rest:
            rest = rest[os.write(fd, rest) :]
    return rest


async def write_all(fd: int, data: memoryview) -> None:
    """Write to a non-blocking descriptor as it takes it."""
    while data := write_now(fd, data):
        await wait_writable(fd)
