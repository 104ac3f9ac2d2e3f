# SPDX-License-Identifier: Apache-2.0
"""Namespaces: make, pin by a bind mount, join (namespaces(7))."""

import os

from pycri.kernel.syscalls import (
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    Clone,
    MountFlag,
    mount,
    setns,
    umount2,
    unshare,
)

CLONE_FLAGS = {
    "cgroup": Clone.NEWCGROUP,
    "ipc": Clone.NEWIPC,
    "mnt": Clone.NEWNS,
    "net": Clone.NEWNET,
    "pid": Clone.NEWPID,
    "user": Clone.NEWUSER,
    "uts": Clone.NEWUTS,
}
"""Kinds as /proc/PID/ns names them."""


def make_namespaces(kinds: tuple[str, ...]) -> None:
    """Move the caller to new namespaces of all the kinds at once (pid: its next child)."""
    flags = Clone(0)
    for kind in kinds:
        flags |= CLONE_FLAGS[kind]
    if flags:
        unshare(flags)


def open_own(kind: str) -> int:
    """Open the caller's own namespace. Returns a descriptor, caller closes."""
    return os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def join(kind: str, path: str) -> None:
    """Join the namespace pinned at `path`; fails with EINVAL if it is of another kind."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_FLAGS[kind])
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def pin(kind: str, path: str) -> None:
    """Hold the caller's namespace at `path`, a file that is made; needs the host's mounts."""
    _pin(f"/proc/self/ns/{kind}", path)


def pin_fd(fd: int, path: str) -> None:
    """Hold a namespace by its descriptor at `path`, likewise; borrows `fd`."""
    _pin(f"/proc/self/fd/{fd}", path)


def _pin(source: str, path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    mount(source, path, "", MountFlag.BIND)


def unpin(path: str) -> None:
    """Let go of a pinned namespace and remove the file; absent is fine."""
    try:
        umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if not os.path.lexists(path):
            return
        # EINVAL: the file is there and nothing is mounted on it, a pin that was never finished.
        if error.errno != 22:
            raise
    os.unlink(path)
