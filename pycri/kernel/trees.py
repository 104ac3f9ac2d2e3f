# SPDX-License-Identifier: Apache-2.0
"""Whole trees of files: removed, measured. However deep they are, few descriptors are open.

Nobody else may change a tree meanwhile: the way back up is "..".
"""

import os
import stat
import zlib
from collections.abc import Callable
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 4096
_Visit = Callable[[int, os.DirEntry[str]], None]
_Leave = Callable[[int, str], None]


def remove_tree(parent_fd: int, name: str) -> None:
    """Remove a folder and all that is in it. Borrows parent_fd. Raises: OSError."""

    def unlink(folder_fd: int, entry: os.DirEntry[str]) -> None:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=folder_fd)

    fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    _walk(fd, unlink, lambda folder_fd, gone: os.rmdir(gone, dir_fd=folder_fd))
    os.rmdir(name, dir_fd=parent_fd)


class Measure(NamedTuple):
    """What is in a tree, its root not counted.

    size_bytes: of the disk. inodes: a file with several names counts once. fingerprint: of all
    names, kinds, modes, owners, sizes, times and devices; the order does not matter to it.
    """

    size_bytes: int
    inodes: int
    fingerprint: int


def measure_tree(path: str) -> Measure:
    """Look at every file below a folder. Contents are not read. Raises: OSError."""
    size_bytes = inodes = fingerprint = 0
    linked: set[int] = set()

    def look(_: int, entry: os.DirEntry[str]) -> None:
        nonlocal size_bytes, inodes, fingerprint
        found = entry.stat(follow_symlinks=False)
        is_directory = stat.S_ISDIR(found.st_mode)
        # What a folder takes depends on its history and on the file system.
        size = _PAGE if is_directory else found.st_size
        described = (
            f"{entry.name}\0{found.st_mode} {found.st_uid} {found.st_gid} {size} "
            f"{found.st_mtime_ns} {found.st_rdev}"
        )
        fingerprint += zlib.crc32(os.fsencode(described))
        if not is_directory and found.st_nlink > 1:
            if found.st_ino in linked:
                return
            linked.add(found.st_ino)
        inodes += 1
        if is_directory or stat.S_ISREG(found.st_mode):
            size_bytes += min(-(-size // _PAGE) * _PAGE, max(found.st_blocks * 512, _PAGE))

    _walk(os.open(path, _DIRECTORY), look, lambda _fd, _name: None)
    return Measure(size_bytes, inodes, fingerprint)


def _walk(fd: int, visit: _Visit, leave: _Leave) -> None:
    """Visit all entries below a folder; leave each folder when all in it has been visited.

    Takes fd. The descriptors given are of the folder that has the entry.
    """
    names: list[str] = []
    pending = [_visit_all(fd, visit)]
    try:
        while True:
            if pending[-1]:
                names.append(pending[-1].pop())
                fd = _move(fd, names[-1])
                pending.append(_visit_all(fd, visit))
                continue
            pending.pop()
            if not names:
                return
            fd = _move(fd, "..")
            leave(fd, names.pop())
    finally:
        os.close(fd)


def _visit_all(fd: int, visit: _Visit) -> list[str]:
    """Visit the entries of a folder; return those that are folders."""
    folders = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            visit(fd, entry)
    return folders


def _move(fd: int, name: str) -> int:
    """Return a descriptor of a folder seen from `fd`, which is closed."""
    following = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return following
