# SPDX-License-Identifier: Apache-2.0
"""Carry what a descriptor delivers to a client."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

from pycri.streaming.wire import Buffers

Send = Callable[[memoryview], Awaitable[None]]

PIPE_BYTES = 1 << 20
"""Of a session's pipes, the most an unprivileged process may have: with larger ones a piece is
larger, and processes that take turns on a busy processor do so less often."""


class Pump:
    """Reads a non-blocking descriptor, which it borrows, and awaits `send` with each piece."""

    def __init__(self, fd: int, send: Send, buffers: Buffers) -> None:
        self._fd = fd
        self._send = send
        self._buffers = buffers
        self._left: int | None = None
        self._stopped = False
        self._waiting: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Carry until the end of file; after `finish` what is there at that moment.

        Raises OSError of the descriptor, and what `send` raises.
        """
        more = True
        while more:
            more = await self._carry()
            # Others' turn: a source that never runs dry must not keep the loop.
            await asyncio.sleep(0)

    def finish(self) -> None:
        """All that is waited for has been written.

        So it is in the pipe, behind which others may still write: no more is read than it can hold.
        """
        self._left = PIPE_BYTES
        self._wake()

    def stop(self) -> None:
        """End `run` behind the piece under way."""
        self._stopped = True
        self._wake()

    async def _carry(self) -> bool:
        """Carry one piece, having waited for it if need be. Returns False at the end."""
        if self._stopped or (self._left is not None and self._left <= 0):
            return False
        finishing = self._left is not None
        with self._buffers.borrowed() as buffer:
            size = self._read(buffer)
            if size:
                await self._send(buffer[:size])
        if size is None and self._left is None:
            await self._wait()
            return True
        # A piece that was read before the end does not count, though it was sent after it.
        if size and finishing and self._left is not None:
            self._left -= size
        return bool(size)

    def _read(self, buffer: memoryview) -> int | None:
        """Return the number of bytes read, 0 at the end of file, None if there are none now."""
        try:
            return os.readv(self._fd, [buffer])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a pty whose other side is closed
                return 0
            raise

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.add_reader(self._fd, self._wake)
        try:
            await self._waiting
        finally:
            loop.remove_reader(self._fd)
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
