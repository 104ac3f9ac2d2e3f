# SPDX-License-Identifier: Apache-2.0
"""Lists in the messages of a stream, each so small that every client takes it."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

CHUNK_BYTES = 1 << 20
"""How much a message of a stream holds at most, unless one item alone is larger."""


class _Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802  protobuf's name


T = TypeVar("T", bound=_Sized)


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in messages of at most CHUNK_BYTES; nothing for none.

    Items are taken as the client takes messages: those of a long list are not all encoded at once.
    """
    chunk: list[T] = []
    size = 0
    for item in items:
        size += (own := item.ByteSize())
        if chunk and size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], own
        chunk.append(item)
    if chunk:
        yield chunk
