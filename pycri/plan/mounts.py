# SPDX-License-Identifier: Apache-2.0
"""What is mounted beneath a container's root, and in which order.

    1  the root: layers and a writable upper folder            (container.py)
    2  the kernel's file systems: /proc, /dev, /sys and below  (plan_kernel_filesystems)
    3  nodes and links in /dev                                 (devices.py)
    4  volumes of the image                                    (plan_volumes)
    5  binds and images, shallow before deep: the pod's files  (plan_binds)
       in /etc, the request's mounts, those of its devices
    6  masked and read-only paths, the root read-only          (security.py)

The request wins: what it mounts at a path takes the place of the default there. Of two requests
for one path the later one is seen: it is mounted above the other, as containerd and runc do it.
Sources: OCI runtime-spec config-linux.md "Default Filesystems"; CRI Mount; containerd for the
options.
"""

import posixpath
from collections.abc import Iterable, Mapping

import msgspec

from pycri.errors import InvalidRequest, RecursiveReadOnlyUnsupported
from pycri.model.container import Mount, Propagation
from pycri.model.host import HostFacts
from pycri.model.plan import (
    PROC_TARGETS,
    BindMount,
    MakeDirectory,
    MakeSymlink,
    MountFilesystem,
    MountImage,
    ReadOnlyPath,
    Step,
    WritablePath,
)
from pycri.plan.cgroups import plan_cgroup

_RECURSIVE_READ_ONLY = (5, 12)
"""mount_setattr(2) with AT_RECURSIVE."""
_SAFE = ("nosuid", "nodev", "noexec")
_CGROUP_ROOT = "/sys/fs/cgroup"
_SHM = "/dev/shm"  # noqa: S108 - the pod's, not a temporary file of ours
_PROPAGATION = {
    Propagation.PRIVATE: "private",
    Propagation.HOST_TO_CONTAINER: "slave",
    Propagation.BIDIRECTIONAL: "shared",
}


def clean_path(path: str) -> str:
    """Return the absolute path without empty, "." and ".." parts; "" is "/".

    By text alone, to compare paths; what the path leads to is resolved beneath the root.
    """
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def is_beneath(path: str, folder: str) -> bool:
    """Tell whether a clean path is `folder` or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def plan_kernel_filesystems(
    shm: str, cgroup: str, host: HostFacts, *, privileged: bool
) -> tuple[Step, ...]:
    """Return /proc, /dev, /sys and what belongs below them, for a container's own namespaces.

    shm: host path of the pod's shared memory, "" for the host's own (host IPC).
    cgroup: the container's group, as in `cgroups.cgroup_path`.
    """
    read_only = () if privileged else ("ro",)
    return (
        MountFilesystem(filesystem="proc", target="/proc", attributes=_SAFE),
        MountFilesystem(
            filesystem="tmpfs",
            target="/dev",
            options=("mode=755", "size=65536k"),
            attributes=("nosuid",),
        ),
        MountFilesystem(
            filesystem="devpts",
            target="/dev/pts",
            options=("newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            attributes=("nosuid", "noexec"),
        ),
        BindMount(source=shm or _SHM, target=_SHM, attributes=_SAFE if shm else ()),
        MountFilesystem(filesystem="mqueue", target="/dev/mqueue", attributes=_SAFE),
        MountFilesystem(filesystem="sysfs", target="/sys", attributes=(*read_only, *_SAFE)),
        *(
            _cgroup1_steps(cgroup, host, read_only)
            if host.cgroup_version == 1
            else [_cgroup2_step(host, privileged=privileged)]
        ),
    )


class VolumeLayers(msgspec.Struct, frozen=True, kw_only=True):
    """Where the images of mounts are. empty: as in MountImage.

    layers: by the index of the mount, host folders, topmost first.
    """

    layers: Mapping[int, tuple[str, ...]] = {}
    empty: str = ""


def plan_binds(
    mounts: tuple[Mount, ...],
    files: dict[str, str],
    volumes: VolumeLayers,
    edits: tuple[BindMount | MountFilesystem, ...] = (),
    *,
    read_only_files: bool,
) -> tuple[Step, ...]:
    """Return all binds and images in the order to be made: shallow targets first.

    files: container path to host path of the pod's own files in /etc.
    edits: mounts of CDI devices; they take the place of others at their targets.
    read_only_files: the pod's files cannot be written, as with a read-only root.
    """
    edited = {step.target for step in edits}
    requested = [
        _image(index, mount, volumes) if mount.image else _bind(index, mount)
        for index, mount in enumerate(mounts)
    ]
    requested = [step for step in requested if step.target not in edited]
    taken = {step.target for step in requested} | edited
    attributes = ("ro",) if read_only_files else ()
    binds = [
        BindMount(source=source, target=target, attributes=attributes)
        for target, source in files.items()
        if target not in taken
    ]
    steps: list[BindMount | MountImage | MountFilesystem] = [*binds, *requested, *edits]
    return tuple(sorted(steps, key=lambda step: step.target.count("/")))


def check_mounts(mounts: tuple[Mount, ...], host: HostFacts) -> None:
    """Check what the fields of a mount do not tell by themselves.

    Raises: InvalidRequest for a target inside /proc, RecursiveReadOnlyUnsupported.
    """
    for index, mount in enumerate(mounts):
        field = f"config.mounts[{index}]"
        target = clean_path(mount.container_path)
        if target != "/proc" and is_beneath(target, "/proc") and target not in PROC_TARGETS:
            reason = f"{target} is inside /proc, where nothing may be mounted"
            raise InvalidRequest(f"{field}.container_path", reason)
        if mount.recursive_read_only and host.kernel < _RECURSIVE_READ_ONLY:
            raise RecursiveReadOnlyUnsupported(
                f"{field}.recursive_read_only: needs Linux {_RECURSIVE_READ_ONLY[0]}"
                f".{_RECURSIVE_READ_ONLY[1]}, this is {host.kernel[0]}.{host.kernel[1]}"
            )


def plan_volumes(
    volumes: tuple[str, ...], mounts: tuple[Mount, ...], *, readonly_rootfs: bool
) -> tuple[Step, ...]:
    """Return what makes the volumes an image declares writable, where no mount takes their place.

    Such a volume is a folder of the container's writable layer: it begins with what the image has
    there and goes with the container, as an anonymous volume of containerd's does. Only below a
    read-only root does that need a mount.
    """
    declared = sorted({clean_path(volume) for volume in volumes} - {"/"})
    make = WritablePath if readonly_rootfs else MakeDirectory
    return drop_covered((make(path=path) for path in declared), mounts)


def drop_covered(steps: Iterable[Step], mounts: tuple[Mount, ...]) -> tuple[Step, ...]:
    """Return the steps but those whose target lies at or below a requested mount.

    So a request for the host's /dev gets that, with none of our nodes made in it.
    """
    covers = {clean_path(mount.container_path) for mount in mounts}
    return tuple(
        step for step in steps if not any(is_beneath(_target(step), cover) for cover in covers)
    )


def _target(step: Step) -> str:
    match step:
        case BindMount() | MountImage() | MountFilesystem():
            return step.target
        case _:
            return getattr(step, "path", "/")


def _bind(index: int, mount: Mount) -> BindMount | MountImage:
    return BindMount(
        source=mount.host_path,
        target=_mount_target(index, mount),
        attributes=_attributes(index, mount),
        propagation=_PROPAGATION[mount.propagation],
        # The CRI calls a missing source an error; containerd and CRI-O make it: so do we.
        create_source=True,
        ids=mount.ids,
        ids_field=f"config.mounts[{index}].uidMappings" if mount.ids else "",
    )


def _image(index: int, mount: Mount, volumes: VolumeLayers) -> BindMount | MountImage:
    return MountImage(
        layers=volumes.layers[index],
        target=_mount_target(index, mount),
        empty=volumes.empty,
        sub_path=mount.image_sub_path.strip("/"),
        attributes=_attributes(index, mount),
    )


def _mount_target(index: int, mount: Mount) -> str:
    target = clean_path(mount.container_path)
    if target == "/":
        raise InvalidRequest(f"config.mounts[{index}].container_path", "must not be the root")
    return target


def _attributes(index: int, mount: Mount) -> tuple[str, ...]:
    """Return read-only and the options; of an option and its opposite the later one."""
    field = f"config.mounts[{index}].recursive_read_only"
    attributes = {"ro": "ro"} if mount.readonly else {}
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidRequest(field, "needs readonly")
        if mount.propagation is not Propagation.PRIVATE:
            raise InvalidRequest(field, "needs private propagation")
        attributes = {"ro": "rro"}
    attributes |= {option.removeprefix("no"): option for option in mount.options}
    return tuple(attributes.values())


def _cgroup2_step(host: HostFacts, *, privileged: bool) -> Step:
    if privileged:
        # It is in the host's cgroup namespace, where a new mount would set options of the whole
        # tree: without any named, nsdelegate and memory_recursiveprot would be lost to all.
        return BindMount(source=host.cgroup_root, target=_CGROUP_ROOT, attributes=_SAFE)
    # In a cgroup namespace of its own it sees its group as the root.
    return MountFilesystem(filesystem="cgroup2", target=_CGROUP_ROOT, attributes=("ro", *_SAFE))


def _cgroup1_steps(cgroup: str, host: HostFacts, read_only: tuple[str, ...]) -> list[Step]:
    attributes = (*read_only, *_SAFE)
    steps: list[Step] = [
        MountFilesystem(
            filesystem="tmpfs", target=_CGROUP_ROOT, options=("mode=755",), attributes=_SAFE
        )
    ]
    for source in plan_cgroup(cgroup, host).directories:
        name = posixpath.basename(source.removesuffix(cgroup))
        steps.append(
            BindMount(source=source, target=f"{_CGROUP_ROOT}/{name}", attributes=attributes)
        )
    for controllers, mount in sorted(host.cgroup1_mounts.items()):
        name = posixpath.basename(mount)
        aliases = [alias for alias in controllers.split(",") if "=" not in alias]
        steps += [
            MakeSymlink(path=f"{_CGROUP_ROOT}/{alias}", destination=name)
            for alias in aliases
            if alias != name
        ]
    # Last, or there would be nowhere to make the mount points.
    return [*steps, ReadOnlyPath(path=_CGROUP_ROOT)] if read_only else steps
