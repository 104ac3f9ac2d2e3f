# SPDX-License-Identifier: Apache-2.0
"""One digest of all that a layer's folder holds: for layers whose archive cannot be made again.

    sha256 of, for each file in the order of its path, folders before what they hold:
        path 0 mode uid gid time device 0 extended attributes 0 content or target

A link counts as the file that it is a further name of: content that has been read is not read
again, its first path stands for it.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Final

_PIECE: Final = 1024 * 1024
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def digest_tree(root_fd: int) -> str:
    """Return the digest of a folder, which nobody changes meanwhile; borrows root_fd."""
    hashed = hashlib.sha256()
    first_paths: dict[int, str] = {}
    for folder, folders, files, folder_fd in os.fwalk(".", dir_fd=root_fd):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = os.path.join(folder, name)
            found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            hashed.update(_describe(path, found, f"/proc/self/fd/{folder_fd}/{name}"))
            first = first_paths.setdefault(found.st_ino, path)
            if first != path:
                hashed.update(os.fsencode(first))
            elif stat.S_ISLNK(found.st_mode):
                hashed.update(os.fsencode(os.readlink(name, dir_fd=folder_fd)))
            elif stat.S_ISREG(found.st_mode):
                for piece in _content(name, folder_fd):
                    hashed.update(piece)
    return "sha256:" + hashed.hexdigest()


def _describe(path: str, found: os.stat_result, file: str) -> bytes:
    # What a folder takes depends on its history.
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    numbers = (found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_rdev, size)
    xattrs = [
        (name, os.getxattr(file, name, follow_symlinks=False).hex())
        for name in sorted(os.listxattr(file, follow_symlinks=False))
    ]
    return os.fsencode(f"{path}\0{numbers}\0{xattrs}\0")


def _content(name: str, folder_fd: int) -> Iterator[bytes]:
    fd = os.open(name, _READ, dir_fd=folder_fd)
    with open(fd, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece
