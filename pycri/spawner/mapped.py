# SPDX-License-Identifier: Apache-2.0
"""What is done for a container in a user namespace: mapped sources before it is entered, entering.

host's mounts in sight         the layers of each overlay, and binds that ask for it, become
                               detached id-mapped mounts (`MappedSources.open_layers`, `map_bind`)
own mount namespace, not yet   overlays are made of them (`make_overlays`); all other steps
the user namespace's
user namespace                 `enter`: a second mount namespace, which it owns. The kernel
                               locks what is copied there: no root of the container can
                               take a mask away or make a read-only mount writable
                               (mount_namespaces(7), "Restrictions on mount namespaces")
"""

import errno
import os

from pycri.errors import SetupFailed
from pycri.kernel import idmaps, mounts
from pycri.kernel.syscalls import Clone, unshare
from pycri.model.plan import BindMount, JoinUserNamespace, MountImage, MountOverlay, Step
from pycri.model.security import IdMappings
from pycri.spawner.report import Report

UNMADE = -1
"""Stands for the tree of an overlay that is still to be made."""


class MappedSources:
    """The user namespaces and mapped layers that one plan needs; all descriptors close on exec."""

    def __init__(self, own: JoinUserNamespace | None) -> None:
        self._namespaces: dict[IdMappings, int] = {}
        self._layers: list[tuple[list[int], int | None]] = []
        if own is not None:
            self._namespaces[own.ids] = os.open(own.path, os.O_RDONLY | os.O_CLOEXEC)

    def namespace(self, ids: IdMappings) -> int:
        """Return the descriptor of a user namespace with these maps, the pod's where it fits."""
        if ids not in self._namespaces:
            self._namespaces[ids] = idmaps.new_user_namespace(ids)
        return self._namespaces[ids]

    def map_bind(self, tree: int, step: BindMount) -> None:
        """Show a detached tree mapped, if the step says so; borrows it."""
        if step.ids is None:
            return
        try:
            idmaps.set_idmap(tree, self.namespace(step.ids))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            reason = "the file system cannot be id-mapped"
            what = f"{step.ids_field}: " if step.ids_field else ""
            raise SetupFailed(str(step), errno.EINVAL, f"{what}{step.source}: {reason}") from error

    def open_layers(self, step: MountOverlay | MountImage) -> int:
        """Clone and map the layers of an overlay. Returns UNMADE."""
        assert step.ids is not None
        userns_fd = self.namespace(step.ids)
        layers = []
        for path in step.layers:
            tree = mounts.clone_tree(path, recursive=False)
            layers.append(tree)
            _set_idmap(tree, userns_fd, path)
        folder = None
        if isinstance(step, MountOverlay):
            # Not mapped: overlay itself makes files there, as an id that a map would not have.
            folder = mounts.clone_tree(os.path.dirname(step.upper), recursive=False)
        elif len(layers) == 1:
            layers.append(mounts.clone_tree(step.empty, recursive=False))
        self._layers.append((layers, folder))
        return UNMADE

    def make_overlays(
        self, steps: list[Step], trees: list[int], root: str, report: Report, *, append: bool
    ) -> str:
        """Make the overlays that `open_layers` prepared, and put them into `trees`.

        steps: those that the trees are of. root: an empty folder of the caller's own mount
        namespace. Returns the folder where to attach the container's root.
        """
        if not self._layers:
            return root
        tmpfs = mounts.new_filesystem("tmpfs", ("size=64k", "mode=755"))
        mounts.attach_at(tmpfs, root)
        os.close(tmpfs)
        prepared = iter(self._layers)
        for index, step in enumerate(steps):
            if trees[index] != UNMADE:
                continue
            report.doing(step)
            layers, folder = next(prepared)
            place = f"{root}/{index}"
            os.mkdir(place)
            assert isinstance(step, MountOverlay | MountImage)
            trees[index] = idmaps.new_mapped_overlay(
                layers, folder, place, step.label, append=append
            )
            if isinstance(step, MountImage):
                mounts.set_attributes(trees[index], step.attributes)
        os.mkdir(f"{root}/root")
        return f"{root}/root"


def act_as_root(ids: IdMappings) -> None:
    """Make what is made from here on the mapped root's, with the host's rights as before."""
    idmaps.act_as(*_root(ids))


def give_to_root(stdio: tuple[int, int, int], ids: IdMappings) -> None:
    """Make pipes the mapped root's, who then can give them to the container's user.

    A pty needs no such thing: it is its root's who opened it.
    """
    null = os.makedev(1, 3)
    for fd in set(stdio):
        if os.fstat(fd).st_rdev != null:
            os.fchown(fd, *_root(ids))


def enter(userns_fd: int) -> None:
    """Leave the host's rights behind: join the user namespace, in mounts of its own."""
    idmaps.enter(userns_fd)
    unshare(Clone.NEWNS)


def _root(ids: IdMappings) -> tuple[int, int]:
    uid, gid = ids.host_uid(0), ids.host_gid(0)
    assert uid is not None
    assert gid is not None
    return uid, gid


def _set_idmap(tree: int, userns_fd: int, path: str) -> None:
    try:
        idmaps.set_idmap(tree, userns_fd)
    except OSError as error:
        error.filename = path
        raise
