# SPDX-License-Identifier: Apache-2.0
"""SELinux: which label a container's process has, and which its files then need.

A process of a confined type may touch only files of the type that goes with it. So everything
that is the container's own gets the file label: its root, its tmpfs and pseudo terminals by mount
option, the pod's files and the volumes that ask for it (CRI Mount.selinux_relabel) by relabelling.
Labels are given only where one is asked for. Source: container-selinux; CRI SELinuxOption.
"""

import msgspec

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.container import Mount
from pycri.model.host import HostFacts
from pycri.model.plan import (
    BindMount,
    ContainerPlan,
    MountFilesystem,
    MountImage,
    MountOverlay,
    Step,
)
from pycri.model.pod import PodSpec
from pycri.model.security import ContainerSecurity
from pycri.plan.mounts import clean_path

IMAGES_LABEL = "system_u:object_r:container_ro_file_t:s0"
"""Of the files of images: overlay shows a container's label instead, but not to mmap(2)."""
_FILE_ROLE, _FILE_TYPE = "object_r", "container_file_t"
_LABELLED_FILESYSTEMS = ("tmpfs", "devpts", "mqueue")
_HOSTS_OWN = frozenset(
    f"/{name}"
    for name in (
        "", "bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "opt", "proc", "root",
        "run", "sbin", "srv", "sys", "tmp", "usr", "var", "var/lib", "var/log",
    )
)  # fmt: skip
"""Folders that the host could not be used without once they are a container's."""


def check_selinux(label: str, host: HostFacts) -> None:
    """Raise Unsupported for a label that the kernel would not know: it is asked for to confine."""
    if label and not host.selinux:
        field = "config.linux.security_context.selinux_options"
        raise Unsupported(f"{field}: this node has no SELinux")


def plan_selinux_label(pod: PodSpec, security: ContainerSecurity, host: HostFacts) -> str:
    """Return the label of a container's process, "" for none: its own, else its pod's.

    Raises: Unsupported on a node without SELinux.
    """
    if security.privileged:
        return ""
    check_selinux(security.selinux_label, host)
    return security.selinux_label or pod.selinux_label


def label_files(
    plan: ContainerPlan, mounts: tuple[Mount, ...], own_sources: tuple[str, ...]
) -> ContainerPlan:
    """Return the plan with the file label wherever a labelled process needs it.

    own_sources: host paths of the pod's own files and of its /dev/shm.
    Raises: InvalidRequest naming the mount whose source must keep its labels.
    """
    label = _file_label(plan.process.selinux_label)
    if not label:
        return plan
    wanted = {}
    for index, mount in enumerate(mounts):
        if mount.selinux_relabel:
            _check_source(f"config.mounts[{index}].selinux_relabel", mount.host_path)
            wanted[clean_path(mount.container_path)] = label
    steps = tuple(_label(step, label, wanted, own_sources) for step in plan.steps)
    return msgspec.structs.replace(plan, steps=steps)


def _label(step: Step, label: str, wanted: dict[str, str], own_sources: tuple[str, ...]) -> Step:
    match step:
        case MountOverlay() | MountImage():
            return msgspec.structs.replace(step, label=label)
        case MountFilesystem() if step.filesystem in _LABELLED_FILESYSTEMS:
            return msgspec.structs.replace(step, label=label)
        case BindMount() if step.target in wanted or step.source in own_sources:
            return msgspec.structs.replace(step, relabel=label)
        case _:
            return step


def _file_label(process_label: str) -> str:
    """Return the label of files for the label "user:role:type:level" of a process."""
    if not process_label:
        return ""
    user, _, _, level = process_label.split(":", 3)
    return f"{user}:{_FILE_ROLE}:{_FILE_TYPE}:{level}"


def _check_source(field: str, path: str) -> None:
    if clean_path(path) in _HOSTS_OWN:
        raise InvalidRequest(field, f"{path} is the host's own, and keeps its labels")
