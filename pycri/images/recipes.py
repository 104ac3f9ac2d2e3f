# SPDX-License-Identifier: Apache-2.0
"""Recipes: how the archive of a layer is made again from its folder, byte by byte.

Blobs are not kept. The folder has the content of a layer's files; its recipe is all else of the
archive, in the order in which it came: headers, names, padding, the end. Both together give back
the very archive of the diff id, to export it, or to see that the folder still is what was verified.

    gzip of     b"L" length (u32) bytes                     bytes of the archive
                b"F" size (u64) length (u16) path           content of the file at `path`

A layer whose archive says something twice (a file replaced by a later member) has no recipe: the
first is nowhere in the folder. Nor has one whose recipe would itself be huge.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from isal import igzip, igzip_lib, isal_zlib

from pycri.errors import CorruptImage

LONGEST_RECIPE: Final = 256 * 1024 * 1024
_GZIP: Final = 31  # window bits: a gzip header and trailer
_RUN: Final = 256 * 1024
_LITERAL: Final = struct.Struct("<cI")
_CONTENT: Final = struct.Struct("<cQH")
_DAMAGED: Final = (OSError, EOFError, struct.error, igzip_lib.IsalError)


class RecipeWriter:
    """Writes the recipe of an archive that is being read; borrows `fd`, a new file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, _GZIP)
        self._run = bytearray()
        self._records = bytearray()
        self._written = 0
        self.is_possible = True

    def literal(self, piece: bytes | memoryview) -> None:
        """Note bytes of the archive that are nowhere in the folder."""
        self._run += piece
        if len(self._run) >= _RUN:
            self._end_run()

    def content(self, path: str, size: int) -> None:
        """Note that `size` bytes of the archive are what the file at `path` has."""
        self._end_run()
        name = os.fsencode(path)
        self._write(_CONTENT.pack(b"F", size, len(name)) + name)

    def give_up(self) -> None:
        """Note that something of the archive is lost; no recipe will come of it."""
        self.is_possible = False

    def finish(self) -> bool:
        """Write what is left; tell whether it has become a recipe."""
        self._end_run()
        self._compress()
        if self.is_possible:
            self._put(self._compressor.flush())
        return self.is_possible

    def _end_run(self) -> None:
        if self._run:
            self._write(_LITERAL.pack(b"L", len(self._run)) + self._run)
            self._run.clear()

    def _write(self, record: bytes) -> None:
        self._records += record
        if len(self._records) >= _RUN:
            self._compress()

    def _compress(self) -> None:
        if self.is_possible:
            self._put(self._compressor.compress(self._records))
        self._records.clear()

    def _put(self, data: bytes) -> None:
        self._written += len(data)
        if self._written > LONGEST_RECIPE:
            self.give_up()
            return
        while data:
            data = data[os.write(self._fd, data) :]


def read_recipe(path: str) -> "Iterator[bytes | tuple[str, int]]":
    """Yield the parts of the archive in turn: bytes, or the path and size of a file's content.

    Raises: CorruptImage if the recipe is damaged; FileNotFoundError.
    """
    with igzip.open(path, "rb") as file:  # type: ignore[no-untyped-call]
        try:
            while kind := file.read(1):
                yield _read_part(kind, file)
        except _DAMAGED as error:  # type: ignore[misc]  # isal's stubs lack the base of its error
            raise CorruptImage(f"the recipe of a layer is damaged: {error}") from error


def read_archive_size(path: str) -> int:
    """Return how long the archive is. Raises: as `read_recipe`."""
    parts = read_recipe(path)
    return sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)


def _read_part(kind: bytes, file: BinaryIO) -> bytes | tuple[str, int]:
    layout = _LITERAL if kind == b"L" else _CONTENT
    fields = layout.unpack(kind + file.read(layout.size - 1))
    if kind == b"L":
        return _read_exactly(file, fields[1])
    if kind != b"F":
        raise CorruptImage(f"the recipe of a layer has a part of the unknown kind {kind!r}")
    return os.fsdecode(_read_exactly(file, fields[2])), fields[1]


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends too early")
    return data
