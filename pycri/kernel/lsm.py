# SPDX-License-Identifier: Apache-2.0
"""Linux security modules: which profiles are loaded, what a process is to be after its execve.

The labels of a process are files of /proc/PID/attr. Once a child is inside a container, /proc is
whatever the container makes of it: a label written to a file there may go nowhere (CVE-2019-16884).
So /proc is opened while it is still the host's, and the files are opened below that.
"""

import errno
import os

_PROFILES = "/sys/kernel/security/apparmor/profiles"
_READ_LIMIT = 1 << 22
_SELINUX_XATTR = "security.selinux"


def open_proc() -> int:
    """Return a descriptor of /proc, O_PATH, caller closes."""
    return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def own_pid(proc_fd: int) -> int:
    """Return the caller's pid as `proc_fd` shows it, whatever pid namespace he is in."""
    return int(os.readlink("self", dir_fd=proc_fd))


def set_apparmor_exec(proc_fd: int, profile: str) -> None:
    """Confine the caller by a loaded profile from its next execve on; borrows `proc_fd`."""
    _write(proc_fd, "self/attr/apparmor/exec", f"exec {profile}")


def set_selinux_exec(proc_fd: int, label: str) -> None:
    """Label the caller from its next execve on; borrows `proc_fd`."""
    _write(proc_fd, "self/attr/exec", label)


def set_file_label(file: int | str, label: str) -> None:
    """Give a file or folder a label of SELinux, by its path or a descriptor, borrowed."""
    os.setxattr(file, _SELINUX_XATTR, label.encode())


def relabel(path: str, label: str) -> None:
    """Give a file, or a folder and all below it, a label of SELinux; links are not followed but
    at `path` itself. A file system without labels is left alone.
    """
    try:
        set_file_label(path, label)
        if os.path.isdir(path):
            _relabel_below(path, label.encode())
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise


def read_apparmor_profiles() -> frozenset[str]:
    """Return the names of the loaded profiles; none where AppArmor is off."""
    try:
        with open(_PROFILES, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(_READ_LIMIT).splitlines()
    except OSError:
        return frozenset()
    # "NAME (MODE)"; a name may hold spaces.
    return frozenset(line.rpartition(" (")[0] for line in lines)


def _relabel_below(path: str, label: bytes) -> None:
    for _, folders, files, fd in os.fwalk(path):
        for name in (*folders, *files):
            # By the folder's descriptor: what lies between is not looked up again.
            os.setxattr(f"/proc/self/fd/{fd}/{name}", _SELINUX_XATTR, label, follow_symlinks=False)


def _write(proc_fd: int, path: str, text: str) -> None:
    # The kernel refuses one who has changed his credentials since he opened it: opened here.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
