# SPDX-License-Identifier: Apache-2.0
"""User namespaces and id-mapped mounts (user_namespaces(7), mount_setattr(2)).

A process in a new user namespace has no rights on the host any more, and its maps are written by
one that has. So what needs both is done by two: `child_inside` forks one that moves, while its
parent stays and writes the maps, and pins what the child makes.

An id-mapped mount shows the same files under other owners: nothing is chowned. overlay file
systems cannot be mapped themselves, their layers can (Linux >= 5.19).
"""

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pycri.kernel import mounts, process
from pycri.kernel.syscalls import (
    AT_EMPTY_PATH,
    Clone,
    mount_setattr_idmap,
    prctl,
    setfsgid,
    setfsuid,
    setns,
    unshare,
)
from pycri.model.security import IdMapping, IdMappings

_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2


@contextmanager
def child_inside(ids: IdMappings, work: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """Fork a child that moves to a new user namespace, does `work` there, and waits.

    It has all rights in there, and no id yet (`become_root`). Yields its pid and an O_PATH
    descriptor of its folder in /proc once `work` has returned; the child ends, and is reaped,
    when the context is left. The pid is that of the caller's pid namespace, which /proc may not
    show; the descriptor is right in any.
    Raises: OSError if there can be no such namespace; ChildProcessError if `work` has failed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def child() -> None:
        ours.close()
        _live_inside(theirs, work)

    pid = process.fork(child)
    theirs.close()
    process_fd = -1
    try:
        with ours:
            process_fd = _receive_process(ours)
            _write_maps(process_fd, ids)
            ours.send(b"mapped")
            if not ours.recv(16):
                raise ChildProcessError("the child in the new user namespace has failed")
            yield pid, process_fd
    finally:
        if process_fd >= 0:
            os.close(process_fd)
        os.waitpid(pid, 0)


def open_namespace(process_fd: int, kind: str) -> int:
    """Open a namespace of the process whose /proc folder `process_fd` is; caller closes."""
    return os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process_fd)


def new_user_namespace(ids: IdMappings) -> int:
    """Make a user namespace of which only the maps matter. Returns a descriptor, caller closes."""
    with child_inside(ids, lambda: None) as (_, process_fd):
        return open_namespace(process_fd, "user")


def set_idmap(tree_fd: int, userns_fd: int) -> None:
    """Show the files of a detached mount under the owners that a user namespace gives them.

    Of this mount only, not of those below. Borrows both.
    Raises: OSError with EINVAL where the file system cannot, EPERM where the mount is mapped.
    """
    mount_setattr_idmap(tree_fd, "", AT_EMPTY_PATH, userns_fd)


def act_as(uid: int, gid: int) -> None:
    """Make files as this user of the host from here on, with all rights as before (setfsuid(2)).

    Rights would go with root's id but for SECBIT_NO_SETUID_FIXUP (capabilities(7)), which in turn
    goes when a user namespace is entered.
    """
    prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    setfsgid(gid)
    setfsuid(uid)


def enter(userns_fd: int) -> None:
    """Join a user namespace as its root; borrows the descriptor. The host's rights are gone."""
    setns(userns_fd, Clone.NEWUSER)
    become_root()


def become_root() -> None:
    """Be root of the user namespace joined before, which the caller's own ids are unknown to."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def new_mapped_overlay(
    layers: list[int], folder: int | None, place: str, label: str = "", *, append: bool
) -> int:
    """Make an overlay of detached, id-mapped layers (topmost first); takes all the descriptors.

    folder: detached tree that holds the folders `upper` and `work`; None for an overlay that
    nobody can write to. place: an empty folder of the caller's mount namespace, where they are
    attached by numbers, for overlay takes attached mounts only (until Linux 6.15).
    label: as in `mounts.new_overlay`. append: the kernel knows "lowerdir+".
    Returns a detached mount, caller closes.
    """
    lower = tuple(_attach_numbered(tree, place, number) for number, tree in enumerate(layers))
    upper, work = "", ""
    if folder is not None:
        writable = _attach_numbered(folder, place, len(lower))
        upper, work = f"{writable}/upper", f"{writable}/work"
    if append:
        return mounts.new_overlay(lower, upper, work, label)
    return mounts.mount_overlay(lower, upper, work, place, label)


def _attach_numbered(tree: int, place: str, number: int) -> str:
    path = f"{place}/{number}"
    os.mkdir(path)
    mounts.attach_at(tree, path)
    os.close(tree)
    return path


def _live_inside(theirs: socket.socket, work: Callable[[], object]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Opened while it leads to the folder of this process for sure, whatever namespace /proc is of.
    process_fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unshare(Clone.NEWUSER)
    except OSError as error:
        theirs.send(str(error.errno).encode())
        return
    socket.send_fds(theirs, [b"0"], [process_fd])
    os.close(process_fd)
    if not theirs.recv(16):
        return
    work()
    theirs.send(b"done")
    theirs.recv(16)


def _receive_process(ours: socket.socket) -> int:
    answer, fds, _, _ = socket.recv_fds(ours, 16, 1)
    if not fds:
        number = int(answer or errno.ECHILD)
        raise OSError(number, os.strerror(number), "user namespace")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _write_maps(process_fd: int, ids: IdMappings) -> None:
    for name, lines in (("uid_map", ids.uids), ("gid_map", ids.gids)):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=process_fd)
        try:
            # In one write: there is no second (user_namespaces(7)).
            os.write(fd, _map_text(lines))
        except OSError as error:
            error.filename = name
            raise
        finally:
            os.close(fd)


def _map_text(lines: tuple[IdMapping, ...]) -> bytes:
    return "".join(f"{m.container_id} {m.host_id} {m.length}\n" for m in lines).encode()
