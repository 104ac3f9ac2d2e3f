# SPDX-License-Identifier: Apache-2.0
"""Sparse files in tar archives: where the data that follow belong in the file.

    old GNU      type S; four pairs at 386 of the header, a mark at 482 that blocks of 21 more
                 pairs follow (mark at 504), the file's size at 483
    PAX 0.0      GNU.sparse.offset and .numbytes, again and again; .size
    PAX 0.1      GNU.sparse.map: "offset,length,offset,length"; .size, .name
    PAX 1.0      GNU.sparse.major=1; .realsize, .name; the map leads the data: numbers in decimal,
                 a line each, how many pairs first, padded to 512

Source: GNU tar manual, "Storing Sparse Files".
"""

from collections.abc import Iterator, Mapping
from typing import Final

from pycri.errors import CorruptImage
from pycri.images.blobs import PlainInput
from pycri.images.tarheader import BLOCK, number

PREFIX: Final = "GNU.sparse."
NAME: Final = "GNU.sparse.name"
MAP: Final = "GNU.sparse.map"
REPEATED: Final = ("GNU.sparse.offset", "GNU.sparse.numbytes")
_MOST_PARTS: Final = 262_144
_MOST_DIGITS: Final = 18
_PAIR: Final = 24


class SparseMap:
    """size: of the file. parts: (offset, length), in order and apart; their data follow each
    other in the archive, all else is holes."""

    __slots__ = ("parts", "size")

    def __init__(self, numbers: list[int], size: int, data_size: int) -> None:
        """Make one of offsets and lengths in turn. Raises: CorruptImage."""
        if len(numbers) % 2:
            raise _broken("it ends within a part")
        self.size = size
        self.parts = list(zip(numbers[::2], numbers[1::2], strict=True))
        end = 0
        for offset, length in self.parts:
            if offset < end or length < 0:
                raise _broken("its parts are not in order")
            end = offset + length
        if end > size:
            raise _broken("its parts are more than the file")
        if sum(length for _, length in self.parts) != data_size:
            raise _broken("its parts are not what the archive has")


def is_described(records: Mapping[str, bytes]) -> bool:
    """Tell whether the records of a member make it a sparse file."""
    return MAP in records or "GNU.sparse.major" in records


def read_gnu_map(stream: PlainInput, header: bytes, data_size: int) -> SparseMap:
    """Return the map of a member of type S, whose further blocks are next in the stream."""
    numbers = list(_pairs(header[386:482]))
    more, size = header[482], number(header[483:495])
    while more:
        block = stream.read(BLOCK)
        numbers += _pairs(block[:504])
        more = block[504]
        if len(numbers) > 2 * _MOST_PARTS:
            raise _broken(f"it has more than {_MOST_PARTS} parts")
    return SparseMap(numbers, size, data_size)


def _pairs(table: bytes) -> Iterator[int]:
    for at in range(0, len(table), _PAIR):
        offset, length = table[at : at + 12], table[at + 12 : at + _PAIR]
        if not length[0]:
            return
        yield number(offset)
        yield number(length)


def read_pax_map(
    stream: PlainInput, records: Mapping[str, bytes], data_size: int
) -> tuple[int, SparseMap]:
    """Return the map that PAX records describe, and how much of the data it took to read it."""
    if "GNU.sparse.major" not in records:
        size = _decimal(records.get("GNU.sparse.size", b""))
        written = records[MAP].split(b",", 2 * _MOST_PARTS + 1)
        return 0, SparseMap([_decimal(part) for part in written], size, data_size)
    if (records["GNU.sparse.major"], records.get("GNU.sparse.minor")) != (b"1", b"0"):
        raise _broken("it is of an unknown version")
    lines = _Lines(stream, data_size)
    parts = lines.next()
    if parts > _MOST_PARTS:
        raise _broken(f"it has more than {_MOST_PARTS} parts")
    numbers = [lines.next() for _ in range(2 * parts)]
    size = _decimal(records.get("GNU.sparse.realsize", b""))
    return lines.taken, SparseMap(numbers, size, data_size - lines.taken)


class _Lines:
    """Numbers, a line each, read block by block. taken: bytes read."""

    def __init__(self, stream: PlainInput, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._rest = b""
        self.taken = 0

    def next(self) -> int:
        while b"\n" not in self._rest:
            if len(self._rest) > _MOST_DIGITS or self.taken + BLOCK > self._limit:
                raise _broken("its map has no end")
            self._rest += self._stream.read(BLOCK)
            self.taken += BLOCK
        line, _, self._rest = self._rest.partition(b"\n")
        return _decimal(line)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        raise _broken("it has a number that is none")
    return int(value)


def _broken(why: str) -> CorruptImage:
    return CorruptImage(f"the layer's tar has a sparse file whose map is broken: {why}")
