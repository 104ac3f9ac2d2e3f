# SPDX-License-Identifier: Apache-2.0
"""Where something is mounted inside a container's root: opened, made to fit, and checked.

The paths are the request's, what lies there is the image's or a volume's: links that lead into
/proc, or that pass another folder off as /proc, are refused (CVE-2019-16884, CVE-2019-19921,
CVE-2023-27561). All else a link may do stays inside the root.
"""

import errno
import os

from pycri.kernel.paths import is_directory, make_directory_beneath, make_file_beneath
from pycri.kernel.syscalls import PROC_SUPER_MAGIC, filesystem_type
from pycri.model.plan import PROC_TARGETS, MountFilesystem

_ORDINARY = ("proc", "sysfs")
"""File systems of the kernel that must lie where their path says, as runc demands it."""


def open_target(root_fd: int, path: str, tree: int) -> int:
    """Open, and make where missing, a folder or a file as the mount `tree` is one.

    Returns an O_PATH descriptor, caller closes.
    Raises: OSError with the path: EPERM inside a proc file system, EISDIR, ENOTDIR, ELOOP.
    """
    wants_directory = is_directory(tree)
    make = make_directory_beneath if wants_directory else make_file_beneath
    fd = make(root_fd, path)
    try:
        _check_proc(fd, path, tree)
        if is_directory(fd) and not wants_directory:
            raise OSError(errno.EISDIR, "is a folder, but what is mounted there is a file", path)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_filesystem_target(root_fd: int, step: MountFilesystem) -> int:
    """Open, and make where missing, the folder for a file system of the kernel's."""
    follow = step.filesystem not in _ORDINARY
    return make_directory_beneath(root_fd, step.target, follow=follow)


def _check_proc(fd: int, path: str, tree: int) -> None:
    if path == "/proc" and filesystem_type(tree) != PROC_SUPER_MAGIC:
        raise OSError(errno.EPERM, "only a proc file system may be mounted there", path)
    if path not in PROC_TARGETS and filesystem_type(fd) == PROC_SUPER_MAGIC:
        raise OSError(errno.EPERM, "is inside a proc file system", path)
