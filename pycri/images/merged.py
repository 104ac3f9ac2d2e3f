# SPDX-License-Identifier: Apache-2.0
"""Look at the files of stacked layers as overlayfs would show them, without a mount.

Layers are folders with overlayfs's own marks (kernel Documentation/filesystems/overlayfs.rst):

    0/0 char device                  a whiteout: what lower layers have of this name is hidden
    trusted.overlay.opaque=y         a folder that hides what lower layers have in it
    folders of one name              merged; anything else hides what is below it

Links are followed in the merged tree and nowhere else: an absolute one begins at its root, ".."
stops there. So nothing outside of the layers is ever looked at, whatever an image holds.
"""

import errno
import os
import stat
from collections import deque
from contextlib import ExitStack
from typing import NamedTuple

from pycri.images.claims import is_whiteout

_LINK_LIMIT = 40
"""As in the kernel, path_resolution(7)."""
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Entry(NamedTuple):
    """What is seen under a name: descriptors of one file, or of the folders merged, top first.

    levels: which layer each is of; 0 is the topmost.
    """

    fds: tuple[int, ...]
    levels: tuple[int, ...]
    mode: int

    def beneath(self) -> "Entry":
        """Return what of a folder is not of the topmost layer."""
        first = 1 if self.levels[:1] == (0,) else 0
        return self._replace(fds=self.fds[first:], levels=self.levels[first:])


def read_merged_file(layers: tuple[str, ...], path: str, limit_bytes: int) -> bytes | None:
    """Return at most `limit_bytes` of a regular file; None if there is no such name.

    layers: folders, topmost first.
    Raises: OSError: ENOENT for a link that leads nowhere, ELOOP, ENOTDIR, EINVAL for anything
        that is no regular file. Pipes and devices are not opened.
    """
    with ExitStack() as opened:
        entry = resolve(open_root(layers, opened), path, opened)
        if entry is None:
            return None
        if not stat.S_ISREG(entry.mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        # The descriptor is O_PATH: this opens the very file that was looked at.
        with open(f"/proc/self/fd/{entry.fds[0]}", "rb") as file:
            return file.read(limit_bytes)


def open_root(layers: tuple[str, ...], opened: ExitStack) -> Entry:
    """Return the root of the merged tree. layers: folders, topmost first."""
    fds = tuple(_keep(os.open(layer, _FOLDER), opened) for layer in layers)
    return Entry(fds, tuple(range(len(fds))), stat.S_IFDIR)


def resolve(root: Entry, path: str, opened: ExitStack) -> Entry | None:
    """Return what is seen at a path, links followed; None if there is no such name.

    Raises: OSError: ENOENT for a link that leads nowhere, ELOOP, ENOTDIR.
    """
    walked, names, links = [root], deque(_names(path)), 0
    while names:
        name = names.popleft()
        if not stat.S_ISDIR(walked[-1].mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if name == "..":
            walked = walked[:-1] or [root]
            continue
        entry = look(walked[-1], name, opened)
        if entry is None:
            if links:
                raise FileNotFoundError(errno.ENOENT, "is a link that leads nowhere", path)
            return None
        if not stat.S_ISLNK(entry.mode):
            walked.append(entry)
            continue
        links += 1
        if links > _LINK_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink("", dir_fd=entry.fds[0])
        walked = [root] if target.startswith("/") else walked
        names.extendleft(reversed(_names(target)))
    return walked[-1]


def look(folder: Entry, name: str, opened: ExitStack) -> Entry | None:
    """Return what the merged folder shows under `name`; links are not followed."""
    fds: list[int] = []
    levels: list[int] = []
    for layer_fd, level in zip(folder.fds, folder.levels, strict=True):
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = _keep(os.open(name, flags, dir_fd=layer_fd), opened)
        except FileNotFoundError:
            continue
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            if fds or is_whiteout(status):
                break
            return Entry((fd,), (level,), status.st_mode)
        fds.append(fd)
        levels.append(level)
        if _is_opaque(fd):
            break
    return Entry(tuple(fds), tuple(levels), stat.S_IFDIR) if fds else None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _keep(fd: int, opened: ExitStack) -> int:
    opened.callback(os.close, fd)
    return fd
