# SPDX-License-Identifier: Apache-2.0
"""Layer blobs as streams: hashed as they come, decompressed, hashed again. Bounded memory.

    BlobInput (its digest) ──▶ decompressed ──▶ Hashed (the diff id) ──▶ PlainInput

The compression is told by the first bytes, as other runtimes do: media types lie. Gzip goes
through isal, several members one after another too; zstd through zstandard; else it is plain tar.
Runs in the unpack process only: it blocks.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from isal import igzip_lib

from pycri.errors import CorruptImage
from pycri.model.ids import Digest

if TYPE_CHECKING:
    from pycri.images.recipes import RecipeWriter

_READ: Final = 256 * 1024
_PIECE: Final = 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# A frame to be skipped, which parallel writers begin with; the first byte is 0x50 to 0x5f.
_ZSTD_SKIPPED_MAGIC: Final = b"\x2a\x4d\x18"
_ZSTD_WINDOW: Final = 128 * 1024 * 1024


class BlobInput:
    """The blob as it arrives; borrows `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = hashlib.sha256()
        self._head = b""
        self.size_bytes = 0

    def read(self, size: int = _READ) -> bytes:
        """Return at most `size` bytes, b"" at the end."""
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        piece = os.read(self._fd, min(size, _READ))
        self._hash.update(piece)
        self.size_bytes += len(piece)
        return piece

    def peek(self, size: int) -> bytes:
        """Return the first `size` bytes (fewer if there are no more), to be read again."""
        while len(self._head) < size:
            head, self._head = self._head, b""
            piece = self.read()
            self._head = head + piece
            if not piece:
                break
        return self._head[:size]

    @property
    def digest(self) -> Digest:
        """The digest of what was read so far."""
        return Digest("sha256:" + self._hash.hexdigest())


def is_compressed(source: BlobInput) -> bool:
    """Tell whether `decompressed` would decompress."""
    magic = source.peek(4)
    return magic.startswith(_GZIP_MAGIC) or magic == _ZSTD_MAGIC


def decompressed(source: BlobInput) -> Iterator[bytes]:
    """Yield the plain bytes in pieces of at most 1 MiB. Raises: CorruptImage."""
    magic = source.peek(4)
    if magic.startswith(_GZIP_MAGIC):
        return _gunzipped(source)
    if magic == _ZSTD_MAGIC or (magic[1:] == _ZSTD_SKIPPED_MAGIC and magic[0] >> 4 == 5):
        return _unzstd(source)
    return iter(source.read, b"")


def _gunzipped(source: BlobInput) -> Iterator[bytes]:
    data = source.read()
    while data:
        member = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
        yield from _gzip_member(member, data, source)
        data = member.unused_data or source.read()
        # Some writers pad the end of the file with zeros (gzip(1) ignores them too).
        while data and not data.strip(b"\0"):
            data = source.read()


def _gzip_member(
    member: igzip_lib.IgzipDecompressor, data: bytes, source: BlobInput
) -> Iterator[bytes]:
    while True:
        try:
            piece = member.decompress(data, _PIECE)
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub lacks the base
            raise CorruptImage(f"the layer is not valid gzip: {error}") from error
        if piece:
            yield piece
        if member.eof:
            return
        data = source.read() if member.needs_input else b""
        if member.needs_input and not data:
            raise CorruptImage("the layer's gzip stream ends too early")


def _unzstd(source: BlobInput) -> Iterator[bytes]:
    # Few images have zstd layers; the import costs every unpack process 14 ms.
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decompressor.stream_reader(
        source,  # type: ignore[arg-type]  # only its read() is called
        read_size=_READ,
        read_across_frames=True,
        closefd=False,
    ) as reader:
        try:
            while piece := reader.read(_PIECE):
                yield piece
        except zstandard.ZstdError as error:
            raise CorruptImage(f"the layer is not valid zstd: {error}") from error


class Hashed:
    """The plain pieces, hashed as they pass."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._hash.update(piece)
            yield piece

    @property
    def digest(self) -> Digest:
        """The digest of what has passed so far."""
        return Digest("sha256:" + self._hash.hexdigest())


class PlainInput:
    """The tar inside: read exactly, or piece by piece without a copy.

    recipe: takes note of what is read, and keeps the bytes unless they are read by `content`.
    size_bytes: what was read so far.
    """

    def __init__(
        self, pieces: Iterator[bytes], limit_bytes: int, recipe: "RecipeWriter | None" = None
    ) -> None:
        self._pieces = pieces
        self._recipe = recipe
        self._limit_bytes = limit_bytes
        self._rest = memoryview(b"")
        self.size_bytes = 0

    def content(self, size: int, path: str) -> Iterator[memoryview]:
        """Yield exactly `size` bytes, of which the file at `path` will have all.

        Raises: CorruptImage if there are fewer.
        """
        if self._recipe and size:
            self._recipe.content(path, size)
        return self._take(size)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield exactly `size` bytes. Raises: CorruptImage if there are fewer."""
        for piece in self._take(size):
            if self._recipe:
                self._recipe.literal(piece)
            yield piece

    def _take(self, size: int) -> Iterator[memoryview]:
        while size:
            if not self._rest and not self._refill():
                raise CorruptImage("the layer's tar ends too early")
            piece = self._rest[:size]
            self._rest = self._rest[size:]
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises: CorruptImage if there are fewer."""
        if len(self._rest) >= size:
            piece = bytes(self._rest[:size])
            self._rest = self._rest[size:]
            if self._recipe:
                self._recipe.literal(piece)
            return piece
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> None:
        """Read `size` bytes and forget them."""
        for _ in self.pieces(size):
            pass

    def at_end(self) -> bool:
        """Tell whether nothing is left."""
        return not self._rest and not self._refill()

    def rest(self) -> Iterator[memoryview]:
        """Yield what is left."""
        while not self.at_end():
            piece, self._rest = self._rest, memoryview(b"")
            yield piece

    def finish(self) -> None:
        """Read what is left."""
        for piece in self.rest():
            if self._recipe:
                self._recipe.literal(piece)

    def _refill(self) -> bool:
        piece = next(self._pieces, b"")
        self.size_bytes += len(piece)
        if self.size_bytes > self._limit_bytes:
            raise CorruptImage(f"the layer unpacks to more than {self._limit_bytes} bytes")
        self._rest = memoryview(piece)
        return bool(piece)
