# SPDX-License-Identifier: Apache-2.0
"""Apply the mount steps of a ContainerPlan beneath a container's root.

Two passes, because the sources are the host's and the targets are not: `open_sources` clones
every source as a detached tree while the host's mounts are still in sight; `apply_steps` attaches
them beneath the root, from within the container's own, otherwise empty mount namespace.
"""

import errno
import os
import stat
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from pycri.kernel import lsm, mounts
from pycri.kernel.paths import (
    is_directory,
    make_directory_beneath,
    open_beneath,
)
from pycri.model.plan import (
    BindMount,
    MakeDevice,
    MakeDirectory,
    MakeSymlink,
    MaskPath,
    MountFilesystem,
    MountImage,
    MountOverlay,
    ReadOnlyPath,
    ReadOnlyRoot,
    Step,
    WritablePath,
)
from pycri.spawner.images import attach_image, open_image
from pycri.spawner.mapped import MappedSources, act_as_root
from pycri.spawner.report import Report
from pycri.spawner.targets import open_filesystem_target, open_target

_UPPER_BUSY_S = 2.0
_PAUSE_S = 0.005
_LABELLED_BY_XATTR = ("mqueue",)
"""Their instance is the namespace's and there already: it takes no label as an option."""


def open_sources(
    steps: Sequence[Step], report: Report, mapped: MappedSources, *, append: bool
) -> list[int]:
    """Make the overlays and clone each bind source.

    append: the kernel knows overlay's "lowerdir+". Returns detached mounts, one for every
    MountOverlay, MountImage and BindMount, in the order of the steps; they die with the caller.
    Of an overlay to be shown mapped, the layers only are opened: `mapped` makes it later.
    """
    trees = []
    for step in sources_of(steps):
        report.doing(step)
        trees.append(_open_tree(step, mapped, append=append))
    return trees


def apply_steps(steps: Iterable[Step], trees: list[int], root_path: str, report: Report) -> int:
    """Apply the steps in order. The first must be the MountOverlay, attached at `root_path`.

    trees: as `open_sources` returned them. Returns an O_PATH descriptor of the root.
    """
    sources = iter(trees)
    root_fd = -1
    for step in steps:
        report.doing(step)
        match step:
            case MountOverlay():
                mounts.attach_at(next(sources), root_path)
                root_fd = os.open(root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                if step.ids is not None:
                    act_as_root(step.ids)
            case BindMount():
                _attach_source(root_fd, next(sources), step)
            case MountImage():
                attach_image(root_fd, next(sources), step)
            case MountFilesystem():
                _mount_filesystem(root_fd, step)
            case _:
                _apply_entry(root_fd, step)
    return root_fd


def sources_of(steps: Iterable[Step]) -> list[Step]:
    """Return the steps that `open_sources` opens something for, in the same order."""
    return [s for s in steps if isinstance(s, MountOverlay | MountImage | BindMount)]


def _open_tree(step: Step, mapped: MappedSources, *, append: bool) -> int:
    if isinstance(step, MountOverlay) and step.label:
        # What is made in it gets the folder's label, which counts where a file is mapped.
        lsm.relabel(step.upper, step.label)
    match step:
        case BindMount():
            tree = _open_source(step)
            mapped.map_bind(tree, step)
            return tree
        case MountOverlay() | MountImage() if step.ids is not None:
            return mapped.open_layers(step)
        case MountImage():
            return open_image(step, append=append)
        case MountOverlay():
            return _open_overlay(step, append=append)
        case _:
            raise TypeError(f"{step} has no source")


def _open_source(step: BindMount) -> int:
    if step.create_source:
        # It exists: a file too may be bound. What cannot be is said by the next line.
        with suppress(FileExistsError):
            os.makedirs(step.source)
    if step.relabel:
        lsm.relabel(step.source, step.relabel)
    tree = mounts.clone_tree(step.source, recursive=step.recursive)
    # Propagation first: from here on nothing the host mounts below reaches a private tree.
    mounts.set_propagation(tree, step.propagation)
    mounts.set_attributes(tree, step.attributes)
    return tree


def _open_overlay(step: MountOverlay, *, append: bool) -> int:
    if append:
        deadline_s = time.monotonic() + _UPPER_BUSY_S
        while True:
            try:
                return mounts.new_overlay(step.layers, step.upper, step.work, step.label)
            except OSError as error:
                # A former try was killed, and the kernel has still to let go of its mount.
                if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                    raise
            time.sleep(_PAUSE_S)
    return mounts.new_overlay_by_path(step.layers, step.upper, step.work, step.upper, step.label)


def _attach_source(root_fd: int, tree: int, step: BindMount) -> None:
    _attach(root_fd, tree, open_target(root_fd, step.target, tree))


def _mount_filesystem(root_fd: int, step: MountFilesystem) -> None:
    by_option = step.label and step.filesystem not in _LABELLED_BY_XATTR
    context = (f"context={step.label}",) if by_option else ()
    tree = mounts.new_filesystem(step.filesystem, (*step.options, *context), step.attributes)
    _attach(root_fd, tree, open_filesystem_target(root_fd, step))
    if step.label and not by_option:
        folder = open_beneath(root_fd, step.target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            lsm.set_file_label(folder, step.label)
        finally:
            os.close(folder)


def _attach(root_fd: int, tree: int, target: int) -> None:
    """Attach a tree and close both descriptors."""
    try:
        mounts.attach(tree, target)
    finally:
        os.close(target)
        os.close(tree)


def _apply_entry(root_fd: int, step: Step) -> None:
    match step:
        case MakeDevice():
            _make_device(root_fd, step)
        case MakeSymlink():
            _make_symlink(root_fd, step)
        case MakeDirectory():
            os.close(make_directory_beneath(root_fd, step.path, step.mode))
        case MaskPath():
            _mask(root_fd, step.path)
        case ReadOnlyPath():
            _make_readonly(root_fd, step.path)
        case WritablePath():
            target = make_directory_beneath(root_fd, step.path)
            _attach(root_fd, mounts.clone_fd(target, recursive=True), target)
        case ReadOnlyRoot():
            mounts.set_attributes(root_fd, ("ro",))


def _make_device(root_fd: int, step: MakeDevice) -> None:
    kind = stat.S_IFBLK if step.kind == "b" else stat.S_IFCHR
    parent, _, name = step.path.rpartition("/")
    parent_fd = make_directory_beneath(root_fd, parent)
    try:
        _make_node(parent_fd, name, kind, step)
        # mknod(2) honours the umask; the plan's mode and owner are exact.
        os.chmod(name, step.mode, dir_fd=parent_fd)
        if step.uid or step.gid:
            os.chown(name, step.uid, step.gid, dir_fd=parent_fd, follow_symlinks=False)
    finally:
        os.close(parent_fd)


def _make_node(parent_fd: int, name: str, kind: int, step: MakeDevice) -> None:
    device = os.makedev(step.major, step.minor)
    try:
        os.mknod(name, kind | step.mode, device, dir_fd=parent_fd)
    except FileExistsError:
        # Outside /dev, which is new, the image may have the node already.
        found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if stat.S_IFMT(found.st_mode) != kind or found.st_rdev != device:
            reason = "something else is in the device's place"
            raise OSError(errno.EEXIST, reason, step.path) from None


def _make_symlink(root_fd: int, step: MakeSymlink) -> None:
    parent, _, name = step.path.rpartition("/")
    parent_fd = make_directory_beneath(root_fd, parent)
    try:
        os.symlink(step.destination, name, dir_fd=parent_fd)
    except FileExistsError:
        # The image or a volume brought its own.
        pass
    finally:
        os.close(parent_fd)


def _mask(root_fd: int, path: str) -> None:
    """Cover a path with nothing. What covers a file is the null device itself, checked."""
    try:
        target = open_beneath(root_fd, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return
    if is_directory(target):
        tree = mounts.new_filesystem("tmpfs", ("nr_blocks=1", "nr_inodes=1"), ("ro",))
    else:
        null = open_beneath(root_fd, "/dev/null", os.O_PATH | os.O_NOFOLLOW)
        try:
            # CVE-2025-31133: an image must not pass another file off as /dev/null.
            if not _is_null(null):
                raise OSError(22, "is not the null device", "/dev/null")
            tree = mounts.clone_fd(null)
        finally:
            os.close(null)
    _attach(root_fd, tree, target)


def _make_readonly(root_fd: int, path: str) -> None:
    try:
        target = open_beneath(root_fd, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        mounts.set_attributes(target, ("ro",), recursive=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Not a mount point (mount_setattr(2)): make it one.
        tree = mounts.clone_fd(target, recursive=True)
        mounts.set_attributes(tree, ("ro",), recursive=True)
        _attach(root_fd, tree, target)
    else:
        os.close(target)


def _is_null(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
