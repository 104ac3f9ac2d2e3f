# SPDX-License-Identifier: Apache-2.0
"""Container Device Interface: a spec file as written, and what its devices add to a container.

Source: CDI SPEC.md, versions 0.3.0 to 1.0.0. The first half has the names and the shape of the
file, in JSON or YAML; a field it does not know makes a file unreadable, as with CDI's own library.
"""

from typing import Annotated

import msgspec

from pycri.model.hooks import Hooks
from pycri.model.plan import BindMount, MountFilesystem

_Id = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 32) - 1)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
"""Of a device; majors have 12 bits, minors 20."""


class _Written(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """As in the file. Not told apart: a list that is absent and one that is empty."""


class CdiNode(_Written, frozen=True, kw_only=True):
    """path: in the container; host_path: "" for the same. type, major and minor: the host's node
    tells what is not given. permissions: of "rwm"."""

    path: str
    host_path: str = ""
    type: str = ""
    major: _Number = 0
    minor: _Number = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: _Id | None = None
    gid: _Id | None = None


class CdiMount(_Written, frozen=True, kw_only=True):
    """options: of mount(8). type: "" or "bind"; else a file system to be mounted new."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class CdiHook(_Written, frozen=True, kw_only=True):
    """A program to be run. args: with its name first. timeout: seconds."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class CdiChanges(_Written, frozen=True, kw_only=True):
    """containerEdits of a device, or of a whole file. intel_rdt: kept to be refused."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[CdiNode, ...] = ()
    mounts: tuple[CdiMount, ...] = ()
    hooks: tuple[CdiHook, ...] = ()
    additional_gids: tuple[_Id, ...] = ()
    intel_rdt: dict[str, str | bool] | None = None


class CdiDevice(_Written, frozen=True, kw_only=True):
    name: str
    annotations: dict[str, str] = {}
    container_edits: CdiChanges = CdiChanges()


class CdiSpec(_Written, frozen=True, kw_only=True):
    """One file. kind: "vendor/class"; a device's whole name is "vendor/class=name"."""

    cdi_version: str
    kind: str
    annotations: dict[str, str] = {}
    devices: tuple[CdiDevice, ...] = ()
    container_edits: CdiChanges = CdiChanges()


class CdiName(msgspec.Struct, frozen=True, kw_only=True):
    """A device asked for, "vendor/class=name", and the field of the request that names it."""

    name: str
    field: str


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node to be made. kind, numbers, mode: as in MakeDevice; access: a subset of "rwm".

    uid, gid: None for those of the container's process.
    """

    path: str
    kind: str
    major: int
    minor: int
    access: str
    mode: int = 0o666
    uid: int | None = None
    gid: int | None = None


class DeviceEdits(msgspec.Struct, frozen=True, kw_only=True):
    """What all CDI devices of a container add to it; in a container's record, since files change.

    env: names and values. groups: further groups of the process. hooks: in the
        order of the devices.
    """

    env: tuple[tuple[str, bytes], ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[BindMount | MountFilesystem, ...] = ()
    groups: tuple[int, ...] = ()
    hooks: Hooks = Hooks()
