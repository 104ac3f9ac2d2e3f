# SPDX-License-Identifier: Apache-2.0
"""Read a pipe in the background, up to a limit; what is beyond is dropped, never refused."""

import asyncio
import os

_CHUNK = 65536


class Capture:
    """Collects what a non-blocking pipe delivers. Borrows the descriptor until `finish`."""

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def finish(self) -> bytes:
        """Take what the pipe still holds, stop reading, return all."""
        while self._read():
            continue
        self._loop.remove_reader(self._fd)
        return b"".join(self._chunks)

    def _read(self) -> bool:
        """Read one chunk. Returns False when there is nothing more for now."""
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._fd)
            return False
        room = self._limit - self._size
        if room > 0:
            self._chunks.append(chunk[:room])
            self._size += len(chunk[:room])
        return True
