# SPDX-License-Identifier: Apache-2.0
"""One stream of a connection: what has come of a request, what of the answer waits to be sent."""

import collections
from collections.abc import Mapping


class Stream:
    """whole: the request has been handed out. cut_short: as its body was too large.

    window: how many bytes the client lets us send. unsent: how many wait.
    """

    def __init__(self, stream_id: int, headers: Mapping[str, str], window: int) -> None:
        self.id = stream_id
        self.headers = headers
        self.body = bytearray()
        self.whole = self.cut_short = False
        self.window = window
        self.unsent = 0
        self.trailers: bytes | None = None
        self._waiting: collections.deque[memoryview] = collections.deque()

    def put(self, data: bytes) -> None:
        """Add data to what waits."""
        if data:
            self._waiting.append(memoryview(data))
            self.unsent += len(data)

    def take(self, most: int) -> bytes:
        """Return the next piece of what waits, of at most so many bytes."""
        first = self._waiting.popleft()
        if len(first) > most:
            self._waiting.appendleft(first[most:])
            first = first[:most]
        self.unsent -= len(first)
        return bytes(first)
