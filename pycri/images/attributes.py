# SPDX-License-Identifier: Apache-2.0
"""Owner, mode, extended attributes and time of what is unpacked; no more calls than needed."""

import errno
import os
from typing import Final

from pycri.images.tar import Member

# Overlay's marks are ours to set; a label of the builder's host means nothing here.
FOREIGN_XATTRS: Final = ("trusted.overlay.", "user.overlay.", "security.selinux")
_SPECIAL: Final = 0o7000
"""Set-user-ID, set-group-ID, sticky."""


def mode_to_create(member: Member) -> int:
    """Return the mode to make a file with: its own, unless a change of owner would change it."""
    return 0o600 if member.mode & _SPECIAL else member.mode


def set_attributes(fd: int, member: Member, mode: int) -> None:
    """Give an open file, which has `mode` and is ours, what its member says."""
    # In this order: a change of owner takes the set-user-ID bit and the file capabilities away.
    if member.uid != os.geteuid() or member.gid != os.getegid():
        os.fchown(fd, member.uid, member.gid)
    if member.mode != mode:
        os.fchmod(fd, member.mode)
    if member.xattrs:
        set_xattrs(fd, member, follow_symlinks=True)
    os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))


def set_xattrs(target: int | str, member: Member, *, follow_symlinks: bool) -> None:
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
