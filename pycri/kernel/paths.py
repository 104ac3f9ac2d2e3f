# SPDX-License-Identifier: Apache-2.0
"""Open and make things beneath a root without ever leaving it (openat2(2), RESOLVE_IN_ROOT).

Links inside the root are followed as the process in the container would follow them: an absolute
link starts again at the root, ".." stops there. Magic links of procfs are refused.
"""

import os
import stat

from pycri.kernel.syscalls import Resolve, openat2

_IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS


def open_beneath(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as seen from `root_fd` as root. Borrows root_fd; caller closes the result."""
    while True:
        try:
            return openat2(root_fd, path.lstrip("/") or ".", flags | os.O_CLOEXEC, mode, _IN_ROOT)
        except BlockingIOError:
            # EAGAIN: a rename or mount raced with the walk; the kernel asks to try again.
            continue


def make_directory_beneath(root_fd: int, path: str, mode: int = 0o755) -> int:
    """Open a folder, making it and its parents where missing. Caller closes the O_PATH result.

    The walk goes one name at a time, each opened beneath the root, so that links on the way are
    followed inside it only.
    """
    walked = ""
    current = open_beneath(root_fd, "/", os.O_PATH | os.O_DIRECTORY)
    for name in _names(path):
        walked += "/" + name
        try:
            following = _open_or_make(root_fd, current, walked, name, mode)
        finally:
            os.close(current)
        current = following
    return current


def make_file_beneath(root_fd: int, path: str, mode: int = 0o644) -> int:
    """Open a file of any type, making it empty (and its folders) where missing. O_PATH result."""
    try:
        return open_beneath(root_fd, path, os.O_PATH)
    except FileNotFoundError:
        pass
    parent, _, name = path.rstrip("/").rpartition("/")
    parent_fd = make_directory_beneath(root_fd, parent)
    try:
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            os.close(os.open(name, flags, mode, dir_fd=parent_fd))
        except OSError as error:
            error.filename = path
            raise
    finally:
        os.close(parent_fd)
    return open_beneath(root_fd, path, os.O_PATH)


def is_directory(fd: int) -> bool:
    """Tell whether the descriptor is of a folder; borrows fd."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def _open_or_make(root_fd: int, parent_fd: int, walked: str, name: str, mode: int) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return open_beneath(root_fd, walked, flags)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        # Somebody else made it, or it is a dangling link: opening again tells which.
        pass
    except OSError as error:
        error.filename = walked
        raise
    return open_beneath(root_fd, walked, flags)


def _names(path: str) -> list[str]:
    """Split a path; ".." is refused: after a link it would mean another folder than it says."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise OSError(22, "path must not contain '..'", path)
    return names
