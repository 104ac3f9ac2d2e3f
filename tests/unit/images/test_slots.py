# SPDX-License-Identifier: Apache-2.0
"""Slots of unpackers: held while there is work, lent while the network is waited for."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from pycri.images import slots
from pycri.images.manifest import Descriptor
from pycri.images.slots import Slot, Slots
from pycri.model.ids import Digest

BLOB = Descriptor(digest=Digest("sha256:" + "0" * 64), size=0)


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_PATIENCE_S", 0.02)


class Source:
    """Pieces that come when a test puts them; None ends the blob."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        try:
            while (piece := await self.pieces.get()) is not None:
                yield piece
        finally:
            self.closed = True


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def read(slot: Slot, source: Source, taken: list[bytes]) -> None:
    async for piece in slot.lent_while_waiting(source).blob(BLOB):
        taken.append(piece)


async def wait_taken(all_slots: Slots) -> None:
    """Return once somebody else could have a slot."""
    async with all_slots.taken():
        pass


def test_a_slot_is_lent_while_nothing_comes_and_taken_again_for_what_does() -> None:
    async def main() -> None:
        all_slots, source, taken = Slots(1), Source(), list[bytes]()
        async with all_slots.taken() as slot:
            reading = asyncio.create_task(read(slot, source, taken))
            await wait_taken(all_slots)
            async with all_slots.taken():
                source.pieces.put_nowait(b"one")
                await asyncio.sleep(0.05)  # in which it would have been read
                assert not taken
            source.pieces.put_nowait(None)
            await reading
            assert taken == [b"one"]
            with pytest.raises(TimeoutError):  # held again at the end
                await asyncio.wait_for(wait_taken(all_slots), 0.05)
        await wait_taken(all_slots)

    run(main())


def test_a_slot_is_kept_while_much_comes() -> None:
    async def main() -> None:
        all_slots, source, taken = Slots(1), Source(), list[bytes]()
        async with all_slots.taken() as slot:
            reading = asyncio.create_task(read(slot, source, taken))
            waiting = asyncio.create_task(wait_taken(all_slots))
            for _ in range(20):
                await asyncio.sleep(0.005)
                source.pieces.put_nowait(bytes(slots._WORTH_BYTES))
            source.pieces.put_nowait(None)
            await reading
            assert not waiting.done() and len(taken) == 20
        await waiting

    run(main())


def test_a_source_that_drips_lends_its_slot_between_the_drops() -> None:
    async def main() -> None:
        all_slots, source, taken = Slots(1), Source(), list[bytes]()
        async with all_slots.taken() as slot:
            reading = asyncio.create_task(read(slot, source, taken))
            waiting = asyncio.create_task(wait_taken(all_slots))
            while not waiting.done():
                await asyncio.sleep(0.005)
                source.pieces.put_nowait(b"drop")
            source.pieces.put_nowait(None)
            await reading
            assert len(taken) >= 3

    run(main())


def test_a_reader_that_takes_its_time_keeps_its_slot() -> None:
    async def main() -> None:
        all_slots, source = Slots(1), Source()
        source.pieces.put_nowait(b"one")
        async with all_slots.taken() as slot:
            async for _ in slot.lent_while_waiting(source).blob(BLOB):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(wait_taken(all_slots), 0.1)
                break

    run(main())


@pytest.mark.parametrize("lent", [True, False])
def test_a_reader_that_is_cancelled_leaves_no_slot_taken(lent: bool) -> None:
    async def main() -> None:
        all_slots, source = Slots(1), Source()

        async def work() -> None:
            async with all_slots.taken() as slot:
                await read(slot, source, [])

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        if lent:
            async with all_slots.taken():
                source.pieces.put_nowait(b"one")
                await asyncio.sleep(0.05)  # it waits for its slot
                working.cancel()
                await asyncio.wait([working])
        else:
            working.cancel()
            await asyncio.wait([working])
        assert source.closed
        async with all_slots.taken():
            with pytest.raises(TimeoutError):  # there is one, not two
                await asyncio.wait_for(wait_taken(all_slots), 0.05)

    run(main())
