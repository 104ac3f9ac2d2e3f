# SPDX-License-Identifier: Apache-2.0
"""Read one file of an image as overlayfs would show it, without a mount.

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

_LINK_LIMIT = 40
"""As in the kernel, path_resolution(7)."""
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class _Entry(NamedTuple):
    """What is seen under a name: descriptors of one file, or of the folders merged, top first."""

    fds: tuple[int, ...]
    mode: int


def read_merged_file(layers: tuple[str, ...], path: str, limit_bytes: int) -> bytes | None:
    """Return at most `limit_bytes` of a regular file; None if there is no such name.

    layers: folders, topmost first.
    Raises: OSError: ENOENT for a link that leads nowhere, ELOOP, ENOTDIR, EINVAL for anything
        that is no regular file. Pipes and devices are not opened.
    """
    with ExitStack() as opened:
        entry = _resolve(layers, path, opened)
        if entry is None:
            return None
        if not stat.S_ISREG(entry.mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        # The descriptor is O_PATH: this opens the very file that was looked at.
        with open(f"/proc/self/fd/{entry.fds[0]}", "rb") as file:
            return file.read(limit_bytes)


def _resolve(layers: tuple[str, ...], path: str, opened: ExitStack) -> _Entry | None:
    root = _Entry(tuple(_keep(os.open(layer, _FOLDER), opened) for layer in layers), stat.S_IFDIR)
    walked, names, links = [root], deque(_names(path)), 0
    while names:
        name = names.popleft()
        if not stat.S_ISDIR(walked[-1].mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if name == "..":
            walked = walked[:-1] or [root]
            continue
        entry = _look(walked[-1], name, opened)
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


def _look(folder: _Entry, name: str, opened: ExitStack) -> _Entry | None:
    """Return what the merged folder shows under `name`."""
    fds: list[int] = []
    for layer_fd in folder.fds:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = _keep(os.open(name, flags, dir_fd=layer_fd), opened)
        except FileNotFoundError:
            continue
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            if fds or _is_whiteout(status):
                break
            return _Entry((fd,), status.st_mode)
        fds.append(fd)
        if _is_opaque(fd):
            break
    return _Entry(tuple(fds), stat.S_IFDIR) if fds else None


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _keep(fd: int, opened: ExitStack) -> int:
    opened.callback(os.close, fd)
    return fd
