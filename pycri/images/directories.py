# SPDX-License-Identifier: Apache-2.0
"""The folders of a layer while it is unpacked: opened once, given their attributes last.

Until the end every folder is root's, mode 0700, without attributes: so what is made in it takes
over neither a group (the set-group-ID bit) nor an access list, and files get what the archive says
by being created. Times must be last anyway: making a file in a folder changes the folder's.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from pycri.errors import CorruptImage
from pycri.images.attributes import set_attributes
from pycri.images.claims import real_path
from pycri.images.tar import Member
from pycri.kernel.paths import make_directory_beneath, open_beneath
from pycri.kernel.syscalls import Resolve

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT_OPEN: Final = 64


class _Parent(NamedTuple):
    fd: int
    path: str


class Directories:
    """The folders beneath `root_fd`, which is borrowed."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._open: dict[str, _Parent] = {}
        self._retired: list[int] = []
        self._made: list[str] = []
        # By inode: one that has been removed and is used again is then described again.
        self._described: dict[int, tuple[str, Member]] = {}
        # The state folder may be set-group-ID, or have an access list that is inherited.
        os.fchown(root_fd, os.geteuid(), os.getegid())
        os.fchmod(root_fd, 0o755)
        with contextlib.suppress(OSError):
            os.removexattr(root_fd, "system.posix_acl_default")

    def open_parent(self, written: str) -> _Parent:
        """Return a folder as an archive writes it, made if missing. It stays ours.

        Raises: CorruptImage for "..".
        """
        self._close_retired()
        parent = self._open.get(written)
        if parent is None:
            if len(self._open) >= _KEPT_OPEN:
                os.close(self._open.pop(next(iter(self._open))).fd)
            path = "/".join(split(written))
            parent = self._open[written] = _Parent(self._open_or_make(path), path)
        return parent

    def _open_or_make(self, path: str) -> int:
        try:
            return open_beneath(self._root_fd, path, DIRECTORY)
        except FileNotFoundError:
            os.close(make_directory_beneath(self._root_fd, path, dangling=False))
            fd = open_beneath(self._root_fd, path, DIRECTORY)
            self._made.append(real_path(self._root_fd, path, fd))
            return fd

    def describe(self, path: str, member: Member, fd: int) -> None:
        """Remember what the folder `path`, open as `fd`, shall become. "": the root."""
        inode = os.fstat(fd).st_ino
        self._described.pop(inode, None)
        self._described[inode] = (path, member)

    def open_existing(self, path: str) -> int:
        """Return a folder that must be there; caller closes."""
        return open_beneath(self._root_fd, path, DIRECTORY)

    def forget_opened(self) -> None:
        """Forget where paths lead: something was removed. The last parent stays open for now."""
        self._retired += [parent.fd for parent in self._open.values()]
        self._open.clear()

    def close(self) -> None:
        """Close what is open."""
        self.forget_opened()
        self._close_retired()

    def _close_retired(self) -> None:
        while self._retired:
            os.close(self._retired.pop())

    def finish(self) -> tuple[str, ...]:
        """Give the folders their attributes; return the paths of those that nobody described."""
        described = set[int]()
        for inode, (path, member) in self._described.items():
            try:
                fd = open_beneath(self._root_fd, path, DIRECTORY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                continue  # a later member was put in its place
            try:
                found = os.fstat(fd)
                if found.st_ino == inode:
                    set_attributes(fd, member, mode=found.st_mode & 0o7777)
                    described.add(inode)
            finally:
                os.close(fd)
        above = {path: None for made in self._made for path in _with_parents(made)}
        return tuple(path for path in above if self._is_other_than(described, path))

    def _is_other_than(self, described: set[int], path: str) -> bool:
        """Tell whether there is a folder at `path`, none of those described."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = open_beneath(self._root_fd, path, flags, extra=Resolve.NO_SYMLINKS)
        except OSError:
            return False  # a later member was put in its place
        try:
            return os.fstat(fd).st_ino not in described
        finally:
            os.close(fd)


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def split(written: str) -> list[str]:
    """Return the names in a path of an archive. Raises: CorruptImage for ".."."""
    names = [name for name in written.split("/") if name not in ("", ".")]
    if ".." in names:
        raise CorruptImage(f"the layer's tar has a path that leads out of it: {written!r}")
    return names
