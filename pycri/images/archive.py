# SPDX-License-Identifier: Apache-2.0
"""The files of an image archive: a folder, or a tar, plain or compressed. Read in place.

The members of a tar are listed once and then read where they lie. A compressed one is unpacked
first, into a file without a name, which is gone with the last reader. Names are compared after
normalization; links within the tar are followed (`docker save` links layers that it has twice).
Nothing here is verified: a name is where to look, a digest is what must be found.
"""

import asyncio
import os
import posixpath
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from pycri.errors import CorruptImage, InvalidRequest
from pycri.images.blobs import BlobInput, decompressed, is_compressed

_READ: Final = 1024 * 1024
_LONGEST_DOCUMENT: Final = 8 * 1024 * 1024
_MOST_LINKS: Final = 10
_MOST_MEMBERS: Final = 1_000_000
_MOST_BYTES: Final = 1024**4


class Span(msgspec.Struct, frozen=True):
    """Where a file's bytes lie: in the file at `path`."""

    path: Path
    offset: int
    size: int


class Archive:
    """An archive that is open until `close`. name: for errors."""

    def __init__(self, name: str, folder: Path | None, members: dict[str, Span | str]) -> None:
        self.name = name
        self._folder = folder
        self._members = members
        self._unpacked_fd = -1

    @classmethod
    async def open(cls, path: Path, scratch: Path) -> Self:
        """Open the archive at `path`; scratch: a folder that has room for a compressed one.

        Raises: InvalidRequest if it cannot be opened; CorruptImage if it is no archive.
        """
        return await asyncio.to_thread(cls._open, path, scratch)

    @classmethod
    def _open(cls, path: Path, scratch: Path) -> Self:
        try:
            if path.is_dir():
                return cls(str(path), path, {})
            fd = _unpack(path, scratch)
        except OSError as error:
            raise InvalidRequest("path", str(error)) from error
        plain = path if fd < 0 else Path(f"/proc/self/fd/{fd}")
        try:
            archive = cls(str(path), None, _list_members(plain, str(path)))
        except BaseException:
            _close(fd)
            raise
        archive._unpacked_fd = fd
        return archive

    def close(self) -> None:
        """Give up what `open` took."""
        _close(self._unpacked_fd)

    def find(self, name: str) -> Span | None:
        """Return where a file of the archive lies; None if it has none of this name."""
        found: Span | str | None = posixpath.normpath(name)
        for _ in range(_MOST_LINKS):
            if not isinstance(found, str):
                return found
            found = self._beside(found) if self._folder else self._members.get(found)
        return None

    def _beside(self, name: str) -> Span | None:
        assert self._folder
        path = self._folder / name
        if name.startswith(("/", "../")) or not path.is_file():
            return None
        return Span(path, 0, path.stat().st_size)

    def need(self, name: str) -> Span:
        """Return where a file lies. Raises: CorruptImage if there is none."""
        span = self.find(name)
        if span is None:
            raise CorruptImage(f"{self.name} is not a whole archive: {name} is missing")
        return span

    async def read(self, name: str) -> bytes:
        """Return a document of the archive. Raises: CorruptImage if missing, or too long."""
        span = self.need(name)
        if span.size > _LONGEST_DOCUMENT:
            raise CorruptImage(f"{name} of {self.name} is over {_LONGEST_DOCUMENT} bytes")
        return await asyncio.to_thread(_read_span, span)


async def read_pieces(span: Span) -> AsyncIterator[bytes]:
    """Yield what lies there, piece by piece."""
    with await asyncio.to_thread(open_span, span) as file:
        left = span.size
        while left and (piece := await asyncio.to_thread(file.read, min(left, _READ))):
            left -= len(piece)
            yield piece


def open_span(span: Span) -> BinaryIO:
    """Return the file that holds it, at its first byte. Caller closes."""
    file = span.path.open("rb")
    file.seek(span.offset)
    return file


def _read_span(span: Span) -> bytes:
    with open_span(span) as file:
        return file.read(span.size)


def _list_members(path: Path, name: str) -> dict[str, Span | str]:
    """Return spans by name, and the names that links lead to."""
    members: dict[str, Span | str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for count, member in enumerate(archive):
                if count > _MOST_MEMBERS:
                    raise CorruptImage(f"{name} has more than {_MOST_MEMBERS} members")
                own = posixpath.normpath(member.name)
                if member.isreg():
                    members[own] = Span(path, member.offset_data, member.size)
                elif member.issym():
                    beside = posixpath.join(posixpath.dirname(own), member.linkname)
                    members[own] = posixpath.normpath(beside)
                elif member.islnk():
                    members[own] = posixpath.normpath(member.linkname)
    except tarfile.TarError as error:
        raise CorruptImage(f"{name} is neither a folder nor a tar of an image: {error}") from error
    return members


def _unpack(path: Path, scratch: Path) -> int:
    """Return a descriptor of the plain tar if it is compressed, else -1. Caller closes."""
    with path.open("rb") as file:
        source = BlobInput(file.fileno())
        if not is_compressed(source):
            return -1
        fd = os.open(scratch, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            for piece in decompressed(source):
                written += len(piece)
                if written > _MOST_BYTES:
                    raise CorruptImage(f"{path} unpacks to more than {_MOST_BYTES} bytes")
                _write_all(fd, memoryview(piece))
        except BaseException:
            os.close(fd)
            raise
    return fd


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
