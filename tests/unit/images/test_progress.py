# SPDX-License-Identifier: Apache-2.0
"""How far the layers of a pull are, at each of their steps."""

import asyncio
from collections.abc import AsyncIterator

from pycri.images.manifest import Descriptor
from pycri.images.progress import PullProgress, Transfers
from pycri.model.ids import Digest

BLOB = Descriptor(digest=Digest("sha256:" + "a" * 64), size=10)
LAYER = Digest("sha256:" + "b" * 64)


class Pieces:
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        assert descriptor == BLOB
        for piece in self.pieces:
            yield piece


def test_a_layer_waits_comes_is_unpacked_and_is_whole() -> None:
    transfers, whole = Transfers(), set[Digest]()
    progress = PullProgress(transfers, whole)
    seen = []

    def look() -> None:
        (layer,) = progress.layers()
        seen.append((layer.received_bytes, layer.state))

    async def main() -> None:
        assert progress.layers() == ()
        progress.begin(iter([(BLOB, LAYER)]))
        look()
        with transfers.counting(Pieces(b"12", b"345", b"67890"), LAYER) as source:
            look()
            async for _ in source.blob(BLOB):
                look()
            look()
        whole.add(LAYER)
        look()

    asyncio.run(main())
    assert seen == [
        (0, "waiting"), (0, "fetching"), (2, "fetching"), (5, "fetching"), (10, "unpacking"),
        (10, "unpacking"), (10, "whole"),
    ]  # fmt: skip


def test_a_blob_that_is_asked_for_again_counts_from_its_beginning() -> None:
    transfers = Transfers()

    async def main() -> None:
        with transfers.counting(Pieces(b"123"), LAYER) as source:
            for _ in range(2):
                async for _ in source.blob(BLOB):
                    assert transfers.received_bytes(LAYER) == 3
        assert transfers.received_bytes(LAYER) is None

    asyncio.run(main())


def test_two_pulls_see_the_one_transfer_of_a_layer_that_both_want() -> None:
    transfers = Transfers()
    pulls = [PullProgress(transfers, ()) for _ in range(2)]

    async def main() -> None:
        for pull in pulls:
            pull.begin(iter([(BLOB, LAYER)]))
        with transfers.counting(Pieces(b"123"), LAYER) as source:
            async for _ in source.blob(BLOB):
                pass
            assert [pull.layers()[0].received_bytes for pull in pulls] == [3, 3]

    asyncio.run(main())
