# SPDX-License-Identifier: Apache-2.0
"""Lists in the messages of a stream, each so small that every client takes it."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

CHUNK_BYTES = 1 << 20
"""How much a message of a stream holds at most, unless one item alone is larger."""


T = TypeVar("T")


def chunks(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in messages of at most CHUNK_BYTES; nothing for none.

    Items are taken as the client takes messages: those of a long list are not all encoded at once.
    """
    chunk: list[T] = []
    size = 0
    for item in items:
        own = size_of(item)
        size += own
        if chunk and size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], own
        chunk.append(item)
    if chunk:
        yield chunk
