# SPDX-License-Identifier: Apache-2.0
"""Slots: how many layers are unpacked at the same time, whoever pulls them.

They bound what unpacking takes of processors and memory. Waiting takes neither: a fetch whose
source brings little gives its slot to others, and takes one again for what has come. So a registry
that stalls or drips keeps nobody else from unpacking.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from pycri.images.manifest import Descriptor
from pycri.images.progress import BlobSource

_PATIENCE_S: Final = 0.5
_WORTH_BYTES: Final = 64 * 1024
"""How long a slot is kept while fewer bytes than these come."""


class Slots:
    """`count` slots, given in the order in which they are asked for."""

    def __init__(self, count: int) -> None:
        self._semaphore = asyncio.Semaphore(count)

    @asynccontextmanager
    async def taken(self) -> "AsyncIterator[Slot]":
        """Wait for a slot, and have it until the block ends."""
        slot = Slot(self._semaphore)
        await slot.take()
        try:
            yield slot
        finally:
            slot.give_back()


class Slot:
    """One slot, held or lent."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore
        self._is_held = False

    async def take(self) -> None:
        """Wait until it is held."""
        if not self._is_held:
            await self._semaphore.acquire()
            self._is_held = True

    def give_back(self) -> None:
        """Let others have it."""
        if self._is_held:
            self._is_held = False
            self._semaphore.release()

    def lent_while_waiting(self, source: BlobSource) -> BlobSource:
        """Give a source that lends the slot while little comes; it is held for each piece, and
        when the blob has ended."""
        return _Lending(source, self)


class _Lending:
    def __init__(self, source: BlobSource, slot: Slot) -> None:
        self._source = source
        self._slot = slot

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        waited_s, came = 0.0, 0
        loop = asyncio.get_running_loop()
        async with aclosing(self._source.blob(descriptor)) as pieces:  # type: ignore[type-var]
            while True:
                began_s = loop.time()
                timer = loop.call_later(_PATIENCE_S - waited_s, self._slot.give_back)
                try:
                    piece = await anext(pieces, None)
                finally:
                    timer.cancel()
                waited_s += loop.time() - began_s
                await self._slot.take()
                if piece is None:
                    return
                came += len(piece)
                if came >= _WORTH_BYTES:
                    waited_s, came = 0.0, 0
                yield piece
