# SPDX-License-Identifier: Apache-2.0
"""Namespaces: make, pin by a bind mount, join (namespaces(7))."""

import os
from contextlib import suppress

from pycri.kernel.mounts import unmount_all
from pycri.kernel.syscalls import Clone, MountFlag, mount, setns, unshare

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
    unmount_all(path)
    with suppress(FileNotFoundError):
        os.unlink(path)
