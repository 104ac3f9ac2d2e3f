# SPDX-License-Identifier: Apache-2.0
"""Open and make things beneath a root without ever leaving it (openat2(2), RESOLVE_IN_ROOT).

Links inside the root are followed as the process in the container would follow them: an absolute
link starts again at the root, ".." stops there. Magic links of procfs are refused.
"""

import errno
import os
import stat
from contextlib import suppress

from pycri.kernel.syscalls import Resolve, openat2

_IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
_LINKS = 40
"""How many links are followed, as the kernel does (path_resolution(7))."""


def open_beneath(
    root_fd: int,
    path: str,
    flags: int,
    mode: int = 0,
    extra: Resolve = Resolve(0),  # noqa: B008 - an immutable number
) -> int:
    """Open `path` as seen from `root_fd` as root. Borrows root_fd; caller closes the result."""
    how = _IN_ROOT | extra
    while True:
        try:
            return openat2(root_fd, path.lstrip("/") or ".", flags | os.O_CLOEXEC, mode, how)
        except BlockingIOError:
            # EAGAIN: a rename or mount raced with the walk; the kernel asks to try again.
            continue


def make_directory_beneath(
    root_fd: int, path: str, mode: int = 0o755, *, follow: bool = True, dangling: bool = True
) -> int:
    """Open a folder, making it and its parents where missing. Caller closes the O_PATH result.

    The walk goes one name at a time, each opened beneath the root, so that links on the way are
    followed inside it only.
    dangling: make what a link that leads nowhere leads to, as runc does; else ELOOP.
    follow: False raises ELOOP at the first link instead.
    Raises: OSError with the path as walked: ENOTDIR at a file, ELOOP after 40 links.
    """
    extra = Resolve(0) if follow else Resolve.NO_SYMLINKS
    return _walk(root_fd, _names(path), mode, extra, links_left=_LINKS if dangling else 0)


def _walk(root_fd: int, names: list[str], mode: int, extra: Resolve, links_left: int) -> int:
    walked, ahead = "", names[::-1]
    current = open_beneath(root_fd, "/", os.O_PATH | os.O_DIRECTORY)
    try:
        while ahead:
            name = ahead.pop()
            following = _open_or_make(root_fd, current, f"{walked}/{name}", mode, extra)
            if isinstance(following, int):
                os.close(current)
                walked, current = f"{walked}/{name}", following
                continue
            if links_left == 0:
                number = errno.ELOOP
                raise OSError(number, os.strerror(number), f"{walked}/{name}")
            links_left -= 1
            ahead += _parts(following)[::-1]
            if following.startswith("/"):
                root = open_beneath(root_fd, "/", os.O_PATH | os.O_DIRECTORY)
                os.close(current)
                walked, current = "", root
    except BaseException:
        os.close(current)
        raise
    return current


def make_file_beneath(root_fd: int, path: str, mode: int = 0o644) -> int:
    """Open a file of any type, making it empty (and its folders) where missing. O_PATH result.

    What a dangling link leads to is made too. Raises: as `make_directory_beneath`.
    """
    target = "/".join(_names(path))
    for _ in range(_LINKS):
        try:
            return open_beneath(root_fd, target, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            # The walk makes what is missing, or names the file in its way.
            pass
        parent, _, name = target.rstrip("/").rpartition("/")
        parent_fd = _walk(root_fd, _parts(parent), 0o755, Resolve(0), _LINKS)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(name, flags, mode, dir_fd=parent_fd))
        except FileExistsError:
            # A dangling link, or somebody was faster: opening again tells.
            link = _read_link(parent_fd, name)
            if link is not None:
                target = link if link.startswith("/") else f"{parent}/{link}"
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(parent_fd)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def is_directory(fd: int) -> bool:
    """Tell whether the descriptor is of a folder; borrows fd."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def _open_or_make(
    root_fd: int, parent_fd: int, walked: str, mode: int, extra: Resolve
) -> int | str:
    """Return a descriptor of the folder, or where the dangling link at its place leads."""
    flags = os.O_PATH | os.O_DIRECTORY
    name = walked.rpartition("/")[2]
    with suppress(FileNotFoundError):
        return open_beneath(root_fd, walked, flags, extra=extra)
    try:
        os.mkdir(name, mode, dir_fd=parent_fd)
    except FileExistsError:
        # Somebody else made it, or it is a dangling link.
        link = _read_link(parent_fd, name)
        if link is not None:
            return link
    except OSError as error:
        error.filename = walked
        raise
    return open_beneath(root_fd, walked, flags, extra=extra)


def _read_link(parent_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _names(path: str) -> list[str]:
    """Split a path; ".." is refused: after a link it would mean another folder than it says."""
    names = _parts(path)
    if ".." in names:
        raise OSError(22, "path must not contain '..'", path)
    return names


def _parts(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]
