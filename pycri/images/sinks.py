# SPDX-License-Identifier: Apache-2.0
"""Where an exported archive goes: a tar, or a folder. Neither looks whole before it is.

A tar has no name until it is on the disk: nothing of it outlives a daemon that is killed (where the
file system cannot do that, as NFS cannot, a `.partial` file beside it does). A folder is no layout
until it has its index.json, which comes last; the next export to it goes on.
"""

import asyncio
import errno
import os
import secrets
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

from pycri.errors import CorruptImage, InvalidRequest
from pycri.kernel.syscalls import syncfs

INDEX: Final = "index.json"
_BLOCK: Final = 512
_NO_NAMELESS_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC

Producer = Callable[[int], Awaitable[int]]
"""Writes to the descriptor that it is given, and returns how many bytes."""


class Sink(Protocol):
    """Takes the files of an archive; names are relative. index.json comes last."""

    async def write(self, name: str, body: bytes) -> None: ...

    async def produce(self, name: str, size: int, producer: Producer) -> None:
        """Have a file written that will be of `size` bytes. Raises: CorruptImage if it is not."""
        ...


@asynccontextmanager
async def open_tar(path: Path) -> AsyncIterator[Sink]:
    """Give a sink that becomes the tar at `path`, in place of what is there, if the block succeeds.

    Raises: InvalidRequest if there can be no such file.
    """
    with _replacing(path) as fd:
        sink = TarSink(fd)
        yield sink
        await asyncio.to_thread(sink.finish)


@asynccontextmanager
async def open_folder(path: Path) -> AsyncIterator[Sink]:
    """Give a sink that becomes a layout in the folder `path`, made if missing.

    Raises: InvalidRequest if there is a layout already, or can be none.
    """
    try:
        (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest("path", str(error)) from error
    if (path / INDEX).exists():
        raise InvalidRequest("path", f"{path} holds a layout already")
    yield FolderSink(path)


class TarSink:
    """A tar at its end. Borrows `fd`, whose position is where it is written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def write(self, name: str, body: bytes) -> None:
        await asyncio.to_thread(self._write, name, body)

    async def produce(self, name: str, size: int, producer: Producer) -> None:
        await asyncio.to_thread(_write_all, self._fd, _header(name, size))
        _expect(name, size, await producer(self._fd))
        await asyncio.to_thread(_write_all, self._fd, bytes(-size % _BLOCK))

    def finish(self) -> None:
        """Write the end, and make all of it reach the disk."""
        _write_all(self._fd, bytes(2 * _BLOCK))
        os.fsync(self._fd)

    def _write(self, name: str, body: bytes) -> None:
        _write_all(self._fd, _header(name, len(body)) + body + bytes(-len(body) % _BLOCK))


class FolderSink:
    """A folder being filled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def write(self, name: str, body: bytes) -> None:
        await asyncio.to_thread(self._write, name, body)

    async def produce(self, name: str, size: int, producer: Producer) -> None:
        fd = os.open(self._path / name, _NEW, 0o644)
        try:
            _expect(name, size, await producer(fd))
        finally:
            os.close(fd)

    def _write(self, name: str, body: bytes) -> None:
        if name != INDEX:
            with open(os.open(self._path / name, _NEW, 0o644), "wb") as file:
                file.write(body)
            return
        folder_fd = os.open(self._path, _DIRECTORY)
        try:
            syncfs(folder_fd)
            with _replacing(self._path / name) as fd:
                _write_all(fd, body)
                os.fsync(fd)
        finally:
            os.close(folder_fd)


@contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """Give a new file that takes the place of `path` if the block succeeds."""
    try:
        folder_fd = os.open(path.parent, _DIRECTORY)
    except OSError as error:
        raise InvalidRequest("path", str(error)) from error
    try:
        if path.is_dir():
            raise InvalidRequest("path", f"{path} is a folder")
        temporary = f".{path.name}.partial-{secrets.token_hex(4)}"
        fd, has_name = _make(folder_fd, temporary)
        try:
            yield fd
            if not has_name:
                # Given a folder, Python takes the call that follows the link.
                os.link(f"/proc/self/fd/{fd}", temporary, dst_dir_fd=folder_fd)
                has_name = True
            os.rename(temporary, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            os.fsync(folder_fd)
        except BaseException:
            if has_name:
                os.unlink(temporary, dir_fd=folder_fd)
            raise
        finally:
            os.close(fd)
    finally:
        os.close(folder_fd)


def _make(folder_fd: int, name: str) -> tuple[int, bool]:
    """Return a new file, and whether it had to be given the name."""
    try:
        flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
        return os.open(".", flags, 0o600, dir_fd=folder_fd), False
    except OSError as error:
        if error.errno not in _NO_NAMELESS_FILES:
            raise
    return os.open(name, _NEW | os.O_EXCL, 0o600, dir_fd=folder_fd), True


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def _expect(name: str, size: int, written: int) -> None:
    if written != size:
        raise CorruptImage(f"{name} has {written} bytes, not {size}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
