# SPDX-License-Identifier: Apache-2.0
"""Events to any number of readers, each at its own pace within a bound.

The catalogue publishes in the step in which a change becomes visible, so the order of events is
that of the changes. While nobody reads, the latest events are kept for the first who comes: a
kubelet that reconnects, or that was faster to ask for them than the daemon to start, misses none.
"""

import asyncio
import collections
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from pycri.errors import OutOfResources
from pycri.model.events import Event

MOST_UNREAD: Final = 4096
"""How many events one reader may be behind. While nobody reads, half as many are kept."""
KEPT_NS: Final = 300 * 1_000_000_000
"""How long events are kept while nobody reads; the kubelet lists everything as often."""


class _Reader:
    """Who reads, and what it has not read; None at the end."""

    def __init__(self, kept: Iterable[Event]) -> None:
        self._unread: collections.deque[Event | None] = collections.deque(kept)
        self._arrived = asyncio.Event()
        self._arrived.set()
        self.fell_behind = False

    def put(self, event: Event | None) -> None:
        if event is None or len(self._unread) < MOST_UNREAD:
            self._unread.append(event)
        else:
            self._unread.clear()
            self.fell_behind = True
        self._arrived.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        while not self.fell_behind:
            while self._unread:
                event = self._unread.popleft()
                if event is None:
                    return
                yield event
            self._arrived.clear()
            await self._arrived.wait()
        raise OutOfResources(f"the reader fell {MOST_UNREAD} events behind")


class Events:
    """The only source of events."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._observers: list[Callable[[Event], None]] = []
        self._kept: collections.deque[Event] = collections.deque(maxlen=MOST_UNREAD // 2)
        self._last_ns = 0
        self._closed = False

    def publish(self, event: Event) -> None:
        """Hand an event to every reader; never waits. Its timestamp is set here."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        event = msgspec.structs.replace(event, timestamp_ns=self._last_ns)
        for observe in self._observers:
            observe(event)
        if not self._readers:
            self._kept.append(event)
        for reader in tuple(self._readers):
            reader.put(event)
            if reader.fell_behind:
                self._readers.discard(reader)

    def observe(self, observer: Callable[[Event], None]) -> None:
        """Have a part of the daemon called with every event; it must not raise."""
        self._observers.append(observer)

    @contextmanager
    def reading(self) -> Iterator[AsyncGenerator[Event, None]]:
        """Enter a reader: it misses nothing from here on, and first gets what nobody has read.

        Its events end with `close`. They raise OutOfResources once it is MOST_UNREAD behind.
        """
        reader = _Reader(self._take_kept())
        if self._closed:
            reader.put(None)
        self._readers.add(reader)
        try:
            yield reader.events()
        finally:
            self._readers.discard(reader)

    def readers(self) -> int:
        """Return how many read."""
        return len(self._readers)

    def close(self) -> None:
        """End all readers once they have read what there is."""
        self._closed = True
        for reader in self._readers:
            reader.put(None)

    def _take_kept(self) -> list[Event]:
        oldest_ns = time.time_ns() - KEPT_NS
        events = [event for event in self._kept if event.timestamp_ns >= oldest_ns]
        self._kept.clear()
        return events
