# SPDX-License-Identifier: Apache-2.0
"""Containers: what was asked (ContainerSpec) and what is known (ContainerRecord).

The state is derived from facts, in this order:

    finished_ns set  -> EXITED        exit_code, reason and message are set with it
    started_ns set   -> RUNNING
    otherwise        -> CREATED

    CREATED ──StartContainer──▶ RUNNING ──exit record──▶ EXITED ──RemoveContainer──▶ (no record)
       └────── start failed: EXITED, reason StartError ──────▶
"""

import enum

import msgspec

from pycri.model.cdi import CdiName, DeviceEdits
from pycri.model.ids import ContainerId, Digest, ImageId, PodId
from pycri.model.image import ImageConfig, layer_keys
from pycri.model.pod import Stage
from pycri.model.resources import Resources
from pycri.model.security import ContainerSecurity, IdMappings, User


class ContainerState(enum.Enum):
    """CRI ContainerState."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


class Propagation(enum.Enum):
    """CRI MountPropagation."""

    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class ContainerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """CRI ContainerMetadata: unique within its pod."""

    name: str
    attempt: int = 0


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """CRI ImageSpec: the reference as the caller wrote it."""

    image: str
    annotations: dict[str, str] = {}
    user_specified_image: str = ""
    runtime_handler: str = ""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """CRI Mount: a bind mount, or an image's files. container_path is inside the root.

    host_path: absolute; "" with an image.
    options: among "noexec", "nodev", "nosuid" and their opposites without "no"; later ones win.
    image_sub_path: relative to the image's root; "" for all of it.
    ids: how owners are shown and written; None as they are.
    """

    container_path: str
    host_path: str
    readonly: bool = False
    recursive_read_only: bool = False
    propagation: Propagation = Propagation.PRIVATE
    selinux_relabel: bool = False
    options: tuple[str, ...] = ()
    image: ImageSpec | None = None
    image_sub_path: str = ""
    ids: IdMappings | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """CRI Device. permissions: a subset of "rwm"."""

    container_path: str
    host_path: str
    permissions: str


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A container as asked (CRI ContainerConfig), valid and complete.

    env: names and values in the order given; later ones win.
    log_path: relative to the pod's log_directory, or "" for no log.
    stop_signal: a number of signal(7), 0 for the image's or SIGTERM.
    """

    metadata: ContainerMetadata
    image: ImageSpec
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[tuple[str, bytes], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[CdiName, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()
    stop_signal: int = 0


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command printed and how it ended. exit_code: 0-255; 128+n if signal n ended it."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class VolumeImage(msgspec.Struct, frozen=True, kw_only=True):
    """The image behind a mount that names one, as it was at the creation.

    mount: index in `ContainerSpec.mounts`. layers: bottom first.
    """

    mount: int
    image_id: ImageId
    layers: tuple[Digest, ...]


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True, weakref=True):
    """All that is known of one container.

    image_id: what the status shows as image_ref and image_id.
    image_layers, image_config: as they were at the creation; the layers stay on disk as long as
        this container does, whatever becomes of the image. volume_images: likewise.
    device_edits: what its CDI devices add, as it was at the creation.
    seccomp_text: the node's profile that it runs under, as it was at the creation: the filter of
        an exec must be that of the container, whatever becomes of the file.
    log_path: absolute, or "". cgroup: path below each hierarchy's mount point, begins with "/".
    pid, pid_start_time: the init process in the host's pid namespace while it runs, and field 22
        of its /proc/PID/stat; together they name a process.
    reason: "Completed", "Error", "OOMKilled", "StartError" or "ContainerStatusUnknown".
    """

    id: ContainerId
    pod_id: PodId
    spec: ContainerSpec
    image_id: ImageId
    image_layers: tuple[Digest, ...] = ()
    image_config: ImageConfig = ImageConfig()
    volume_images: tuple[VolumeImage, ...] = ()
    device_edits: DeviceEdits = DeviceEdits()
    seccomp_text: bytes = b""
    user: User
    stop_signal: int
    cgroup: str
    log_path: str
    created_ns: int
    started_ns: int | None = None
    finished_ns: int | None = None
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    pid: int = 0
    pid_start_time: int = 0
    timeline: tuple[Stage, ...] = ()
    updated_resources: Resources | None = None
    """The limits after UpdateContainerResources. The spec stays as it was asked for: a retry of
    CreateContainer is compared with it."""

    @property
    def resources(self) -> Resources:
        """The limits in force, or for the start to come."""
        return self.updated_resources or self.spec.resources

    @property
    def layers_in_use(self) -> frozenset[Digest]:
        """What its root and its volumes have in the image store, which must stay on disk."""
        stacks = (self.image_layers, *(volume.layers for volume in self.volume_images))
        return frozenset().union(*map(layer_keys, stacks))

    @property
    def state(self) -> ContainerState:
        """The CRI state, derived from the times."""
        if self.finished_ns is not None:
            return ContainerState.EXITED
        return ContainerState.RUNNING if self.started_ns is not None else ContainerState.CREATED
