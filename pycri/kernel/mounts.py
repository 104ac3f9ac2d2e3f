# SPDX-License-Identifier: Apache-2.0
"""Mounts by descriptor: clone, make, attach; the mount table.

Nothing here takes a path inside a container: targets are descriptors opened beneath its root by
`paths.py`. New mounts are detached until they are attached, so a failure leaves nothing behind.
"""

import errno
import os

from pycri.kernel.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    UMOUNT_NOFOLLOW,
    Clone,
    FsConfig,
    MountAttr,
    MountFlag,
    fsconfig,
    fsmount,
    fsopen,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    pivot_root,
    setns,
    umount2,
    unshare,
)

ATTRIBUTES = {
    "ro": MountAttr.RDONLY,
    "nosuid": MountAttr.NOSUID,
    "nodev": MountAttr.NODEV,
    "noexec": MountAttr.NOEXEC,
}
PROPAGATION = {
    "private": MountFlag.PRIVATE,
    "slave": MountFlag.SLAVE,
    "shared": MountFlag.SHARED,
}
_PROPAGATING = frozenset(("shared", "master"))
_NO_PROPAGATION = MountFlag(0)


def clone_tree(path: str, *, recursive: bool) -> int:
    """Clone the mount at a host path, symlinks followed. Returns a detached tree, caller closes."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return open_tree(AT_FDCWD, path, flags)


def clone_fd(fd: int, *, recursive: bool = False) -> int:
    """Clone the mount tree at what `fd` refers to. Returns a detached tree, caller closes."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    return open_tree(fd, "", flags | (AT_RECURSIVE if recursive else 0))


def set_attributes(fd: int, names: tuple[str, ...], *, recursive: bool = False) -> None:
    """Set mount attributes ("ro", "nosuid", ...) on a mount; "rro" is "ro" on all below too.

    "rw", "suid", "dev" and "exec" take away what the mount that was cloned may have had.
    """
    if "rro" in names:
        mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, MountAttr.RDONLY, _NO_PROPAGATION)
    attributes = _attributes(names)
    cleared = _attributes(tuple("ro" if name == "rw" else f"no{name}" for name in names))
    if attributes or cleared:
        flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        mount_setattr(fd, "", flags, attributes, _NO_PROPAGATION, cleared)


def set_propagation(fd: int, name: str, *, recursive: bool = True) -> None:
    """Set the propagation of a mount, and all below: "private", "slave" or "shared"."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    mount_setattr(fd, "", flags, MountAttr(0), PROPAGATION[name])


def new_filesystem(
    filesystem: str, options: tuple[str, ...] = (), attributes: tuple[str, ...] = ()
) -> int:
    """Make a new instance of a kernel file system. Returns a detached mount, caller closes."""
    context = fsopen(filesystem)
    try:
        _configure(context, "source", filesystem)
        for option in options:
            key, has_value, value = option.partition("=")
            _configure(context, key, value if has_value else None)
        fsconfig(context, FsConfig.CMD_CREATE, None, None)
        return fsmount(context, _attributes(attributes))
    except OSError as error:
        error.filename = error.filename or filesystem
        raise
    finally:
        os.close(context)


def new_overlay(layers: tuple[str, ...], upper: str = "", work: str = "", label: str = "") -> int:
    """Make an overlay of `layers` (topmost first). Returns a detached mount, caller closes.

    upper, work: "" for one that nobody can write to; it then needs two layers at least.
    label: SELinux's, of all files in it; "" leaves each its own.
    Volatile: the upper folder is never synced and never mounted twice, since a container's root
    does not outlive a power loss. Needs "lowerdir+" (Linux >= 6.8).
    """
    lower = tuple(f"lowerdir+={layer}" for layer in layers)
    context = (f"context={label}",) if label else ()
    return new_filesystem("overlay", (*lower, *_writable(upper, work), *context))


def new_overlay_by_path(
    layers: tuple[str, ...], upper: str, work: str, scratch: str, label: str = ""
) -> int:
    """Do the same on Linux < 6.8: by mount(2) at `scratch`, in a mount namespace of a moment.

    Mounts cloned in there would get no propagation from the host's, so the caller is put back, at
    the root folder. Returns a detached mount, caller closes.
    """
    home_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    unshare(Clone.NEWNS)
    mount("", "/", "", MountFlag.REC | MountFlag.PRIVATE)
    # mount(2) takes a page of options: the paths of forty layers, but descriptors of hundreds.
    # They must be of this namespace, or the kernel refuses their mounts.
    layer_fds = [os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for layer in layers]
    lower = tuple(f"/proc/self/fd/{fd}" for fd in layer_fds)
    tree_fd = mount_overlay(lower, upper, work, scratch, label)
    setns(home_fd, Clone.NEWNS)
    for fd in (home_fd, *layer_fds):
        os.close(fd)
    return tree_fd


def mount_overlay(
    layers: tuple[str, ...], upper: str, work: str, place: str, label: str = ""
) -> int:
    """Mount an overlay by mount(2) at `place`. Returns a clone, detached; caller closes.

    All options have to fit in a page; the mount at `place` stays.
    """
    # In quotes, since a label's categories are separated as options are.
    context = (f'context="{label}"',) if label else ()
    data = ",".join((f"lowerdir={':'.join(layers)}", *_writable(upper, work), *context))
    mount("overlay", place, "overlay", MountFlag(0), data)
    return clone_tree(place, recursive=False)


def _writable(upper: str, work: str) -> tuple[str, ...]:
    return (f"upperdir={upper}", f"workdir={work}", "volatile") if upper else ()


def attach(tree_fd: int, target_fd: int) -> None:
    """Attach a detached mount or tree at an O_PATH descriptor; borrows both."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    move_mount(tree_fd, "", target_fd, "", flags)


def attach_at(tree_fd: int, path: str) -> None:
    """Attach a detached mount or tree at a path of the current mount namespace."""
    move_mount(tree_fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)


def detach(root_fd: int) -> None:
    """Detach the attached mount whose root `root_fd` is; the caller's folder is "/" after it.

    By the current folder, since a mount namespace may have no path to it (umount2(2) takes one).
    """
    os.fchdir(root_fd)
    umount2(".", MNT_DETACH)
    os.chdir("/")


def pivot_into(root_fd: int) -> None:
    """Make the mount at `root_fd` the root of this mount namespace and drop the former one.

    With both arguments ".", the old root ends up on top of the new one and is detached from
    there, so no folder for it is needed (pivot_root(2), NOTES).
    """
    os.fchdir(root_fd)
    pivot_root(".", ".")
    umount2(".", MNT_DETACH)
    os.chdir("/")


def enter_empty_root(scratch: str) -> None:
    """Move the caller to a new mount namespace that holds one tiny tmpfs with the folder /root.

    scratch: any existing folder of the host, used as a mount point inside the new namespace only.
    Containers' mount namespaces are copied from this one, so making one costs the same however
    many mounts the host has, and none of the host's is ever in it.
    """
    unshare(Clone.NEWNS)
    mount("", "/", "", MountFlag.REC | MountFlag.PRIVATE)
    tree_fd = new_filesystem("tmpfs", ("size=16k", "nr_inodes=8", "mode=755"))
    attach_at(tree_fd, scratch)
    root_fd = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.mkdir("root", dir_fd=root_fd)
    pivot_into(root_fd)
    os.close(root_fd)
    os.close(tree_fd)


def unmount_all(path: str) -> None:
    """Unmount what lies on `path`, however much, with all beneath it; nothing is fine."""
    try:
        while True:
            umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def read_propagation(path: str) -> frozenset[str]:
    """Return what the mount that `path` lies on is, links followed: of "shared" and "master".

    "master": it is a slave. Neither: it is private (proc_pid_mountinfo(5), optional fields).
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
    finally:
        os.close(fd)
    wanted = facts["mnt_id"].strip()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            number, *rest = line.partition(" - ")[0].split(" ")
            if number == wanted:
                return frozenset(tag.partition(":")[0] for tag in rest[5:]) & _PROPAGATING
    return frozenset()


def _configure(context: int, key: str, value: str | None) -> None:
    command = FsConfig.SET_FLAG if value is None else FsConfig.SET_STRING
    fsconfig(context, command, key, value)


def _attributes(names: tuple[str, ...]) -> MountAttr:
    attributes = MountAttr(0)
    for name in names:
        attributes |= ATTRIBUTES.get(name, MountAttr(0))
    return attributes
