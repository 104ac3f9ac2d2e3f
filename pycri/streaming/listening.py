# SPDX-License-Identifier: Apache-2.0
"""The client's way: from the wire through a sub-protocol to what acts on it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from pycri.streaming.context import CLIENT_LEFT, Context
from pycri.streaming.departures import Broken, Left
from pycri.streaming.wire import Wire

Event_co = TypeVar("Event_co", covariant=True)
Event = TypeVar("Event")


class Receiver(Protocol[Event_co]):
    """What the sub-protocols have in common."""

    def receive(self, data: memoryview) -> Sequence[Event_co]:
        """Take what came, at first once even if nothing has."""

    def replies(self) -> bytes:
        """Return what is to be sent because of what was received, once."""


class Listener(Generic[Event]):
    """Reads one client. act: called with each event but a departure, one after another."""

    def __init__(
        self,
        wire: Wire,
        receiver: Receiver[Event],
        context: Context,
        act: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._wire = wire
        self._receiver = receiver
        self._buffers = context.buffers
        self._act = act

    async def run(self, answer: bytes, first: bytes) -> str:
        """Send `answer`, take what the client sends until it leaves; return how it did.

        first: what has come from the client already. Raises OSError.
        """
        await self._wire.send(answer)
        left = await self._take(memoryview(first))
        while not left:
            await self._wire.wait_readable()
            with self._buffers.borrowed() as buffer:
                size = await self._wire.receive(buffer)
                left = await self._take(buffer[:size]) if size else CLIENT_LEFT
        return left

    async def _take(self, data: memoryview) -> str:
        """Act on what has come. Returns how the client leaves, "" if it does not."""
        events = self._receiver.receive(data)
        if replies := self._receiver.replies():
            await self._wire.send(replies)
        for event in events:
            if isinstance(event, Left):
                return CLIENT_LEFT
            if isinstance(event, Broken):
                return f"the client broke the protocol: {event.reason}"
            await self._act(event)
        return ""
