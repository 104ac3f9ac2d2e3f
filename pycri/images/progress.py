# SPDX-License-Identifier: Apache-2.0
"""How far pulls are: counted where blobs pass, looked at by whoever waits. Memory only.

Layers are shared by pulls, so what has come of a blob is counted once, by its layer; a pull knows
which layers it is about, and looks.
"""

from collections.abc import AsyncIterator, Container, Iterator
from contextlib import aclosing, contextmanager
from typing import Literal, Protocol

import msgspec

from pycri.images.manifest import Descriptor
from pycri.model.ids import Digest

LayerState = Literal["waiting", "fetching", "unpacking", "whole"]


class LayerProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of a pull. digest, size_bytes: of the blob as the source has it.

    received_bytes: of the blob; all of it once the layer is whole, though it was there before.
    """

    digest: Digest
    size_bytes: int
    received_bytes: int
    state: LayerState


class BlobSource(Protocol):
    """The part of a ContentSource that layers are fetched from."""

    def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]: ...


class Transfers:
    """The layers being fetched, by diff id, and how many bytes of each blob have come."""

    def __init__(self) -> None:
        self._received: dict[Digest, int] = {}
        self.total_bytes = 0
        """What has come of all blobs since the start."""

    @contextmanager
    def counting(self, source: BlobSource, diff_id: Digest) -> "Iterator[BlobSource]":
        """Give a source that counts what passes as this layer's, until the block ends."""
        self._received[diff_id] = 0
        try:
            yield _Counted(source, diff_id, self)
        finally:
            del self._received[diff_id]

    def begin(self, diff_id: Digest) -> None:
        """Count a layer's blob from its first byte."""
        self._received[diff_id] = 0

    def add(self, diff_id: Digest, size: int) -> None:
        """Count bytes that have come."""
        self._received[diff_id] += size
        self.total_bytes += size

    @property
    def under_way(self) -> int:
        """How many layers are being fetched."""
        return len(self._received)

    def received_bytes(self, diff_id: Digest) -> int | None:
        """Return what has come of a layer's blob; None of one that nobody fetches."""
        return self._received.get(diff_id)


class _Counted:
    def __init__(self, source: BlobSource, diff_id: Digest, transfers: Transfers) -> None:
        self._source = source
        self._diff_id = diff_id
        self._transfers = transfers

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        self._transfers.begin(self._diff_id)
        async with aclosing(self._source.blob(descriptor)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                self._transfers.add(self._diff_id, len(piece))
                yield piece


class PullProgress:
    """The layers of one pull, once its manifest is known; none before."""

    def __init__(self, transfers: Transfers, whole: Container[Digest]) -> None:
        self._transfers = transfers
        self._whole = whole
        self._layers: tuple[tuple[Descriptor, Digest], ...] = ()

    def begin(self, layers: Iterator[tuple[Descriptor, Digest]]) -> None:
        """Set what is pulled: blobs with the diff ids of their layers, bottom first."""
        self._layers = tuple(layers)

    def layers(self) -> tuple[LayerProgress, ...]:
        """Return how far each layer is, bottom first."""
        return tuple(self._layer(blob, diff_id) for blob, diff_id in self._layers)

    def _layer(self, blob: Descriptor, diff_id: Digest) -> LayerProgress:
        received = self._transfers.received_bytes(diff_id)
        state: LayerState = "waiting"
        if diff_id in self._whole:
            received, state = blob.size, "whole"
        elif received is not None:
            state = "fetching" if received < blob.size else "unpacking"
        return LayerProgress(
            digest=blob.digest, size_bytes=blob.size, received_bytes=received or 0, state=state
        )
