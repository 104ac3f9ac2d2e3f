# SPDX-License-Identifier: Apache-2.0
"""Owner, mode, extended attributes and time of what is unpacked; no more calls than needed."""

import errno
import os
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

# Overlay's marks are ours to set; a label of the builder's host means nothing here.
FOREIGN_XATTRS: Final = ("trusted.overlay.", "user.overlay.", "security.selinux")
_SPECIAL: Final = 0o7000
"""Set-user-ID, set-group-ID, sticky."""


class Described(Protocol):
    """What is said of a file: by a member of an archive, or by another file."""

    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def xattrs(self) -> Mapping[str, bytes]: ...


class Attributes(NamedTuple):
    """Those of a file as it is; of its extended attributes, those that an image may set."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, bytes]


def read_attributes(fd: int) -> Attributes:
    """Return those of what is open as `fd`, with O_PATH, too."""
    found, file = os.fstat(fd), f"/proc/self/fd/{fd}"
    xattrs = {
        name: os.getxattr(file, name)
        for name in os.listxattr(file)
        if not name.startswith(FOREIGN_XATTRS)
    }
    return Attributes(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, xattrs)


def mode_to_create(member: Described) -> int:
    """Return the mode to make a file with: its own, unless a change of owner would change it."""
    return 0o600 if member.mode & _SPECIAL else member.mode


def set_attributes(fd: int, member: Described, mode: int) -> None:
    """Give an open file, which has `mode` and is ours, what its member says."""
    # In this order: a change of owner takes the set-user-ID bit and the file capabilities away.
    if member.uid != os.geteuid() or member.gid != os.getegid():
        os.fchown(fd, member.uid, member.gid)
    if member.mode != mode:
        os.fchmod(fd, member.mode)
    if member.xattrs:
        set_xattrs(fd, member, follow_symlinks=True)
    os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))


def set_xattrs(target: int | str, member: Described, *, follow_symlinks: bool) -> None:
    """Set the extended attributes that an image may set."""
    for name, value in member.xattrs.items():
        if name.startswith(FOREIGN_XATTRS):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=follow_symlinks)
        except OSError as error:
            # A file system without this kind of attribute is no fault of the image.
            if error.errno != errno.ENOTSUP:
                raise
