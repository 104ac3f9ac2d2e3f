# SPDX-License-Identifier: Apache-2.0
"""What lies in /dev and which devices may be used.

The null device and its kin are made new; others are copied from facts about the host's nodes that
the daemon has read (`HostDevice`). /dev/console is no node: the executor puts the container's pty
there. Sources: OCI runtime-spec config-linux.md, "Default Devices"; CRI Device.
"""

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.cdi import DeviceNode
from pycri.model.container import Device
from pycri.model.plan import DeviceRule, MakeDevice, MakeSymlink, Step
from pycri.plan.mounts import clean_path, is_beneath

_DEFAULT_NUMBERS = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
_DEFAULT_DEVICES = (
    *(
        MakeDevice(path=f"/dev/{name}", kind="c", major=1, minor=minor)
        for name, minor in _DEFAULT_NUMBERS.items()
    ),
    MakeDevice(path="/dev/tty", kind="c", major=5, minor=0),
)
_SYMLINKS = (
    MakeSymlink(path="/dev/fd", destination="/proc/self/fd"),
    MakeSymlink(path="/dev/stdin", destination="/proc/self/fd/0"),
    MakeSymlink(path="/dev/stdout", destination="/proc/self/fd/1"),
    MakeSymlink(path="/dev/stderr", destination="/proc/self/fd/2"),
    MakeSymlink(path="/dev/core", destination="/proc/kcore"),
    MakeSymlink(path="/dev/ptmx", destination="pts/ptmx"),
)
_DEFAULT_RULES = (
    # Making a node is harmless where opening it is not allowed; image builders rely on it.
    DeviceRule(kind="c", major=None, minor=None, access="m"),
    DeviceRule(kind="b", major=None, minor=None, access="m"),
    *(
        DeviceRule(kind="c", major=device.major, minor=device.minor, access="rwm")
        for device in _DEFAULT_DEVICES
    ),
    # /dev/ptmx and the ptys of devpts (admin-guide/devices.txt).
    DeviceRule(kind="c", major=5, minor=2, access="rwm"),
    DeviceRule(kind="c", major=136, minor=None, access="rwm"),
)
_ALL_DEVICES = (DeviceRule(kind="a", major=None, minor=None, access="rwm"),)
_OWN_PATHS = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/ptmx", "/dev/console")  # noqa: S108 - not a temporary file of ours
"""What every container has of its own, never a copy of the host's."""


class HostDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device node of the host, as the daemon found it.

    path: below the `host_path` it was asked for by, also where that is a symlink, or in /dev.
    kind: "c" or "b". mode: permission bits.
    """

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


def plan_devices(
    requested: tuple[Device, ...],
    host_devices: tuple[HostDevice, ...],
    edits: tuple[DeviceNode, ...] = (),
    *,
    privileged: bool,
) -> tuple[Step, ...]:
    """Return the nodes and links of /dev. Privileged: all of the host's besides.

    A requested device wins over others at its path; its host_path may be a folder of devices.
    edits: nodes of CDI devices, which win over all.
    Raises: InvalidRequest if nothing in `host_devices` answers to a host_path.
    """
    nodes = {device.path: device for device in _DEFAULT_DEVICES}
    if privileged:
        shared = [d for d in host_devices if is_beneath(d.path, "/dev")]
        nodes |= {d.path: _copy(d, d.path) for d in shared if not _is_own(d.path)}
    for index, device in enumerate(requested):
        for found, path in _matches(index, device, host_devices):
            nodes[path] = _copy(found, path)
    nodes |= {edit.path: _edited(edit) for edit in edits}
    links = [link for link in _SYMLINKS if link.path not in nodes]
    return (*nodes.values(), *links)


def plan_device_rules(
    requested: tuple[Device, ...],
    host_devices: tuple[HostDevice, ...],
    edits: tuple[DeviceNode, ...] = (),
    *,
    privileged: bool,
) -> tuple[DeviceRule, ...]:
    """Return the device cgroup's allow list; privileged containers may use every device."""
    if privileged:
        return _ALL_DEVICES
    rules = list(_DEFAULT_RULES)
    for index, device in enumerate(requested):
        for found, _ in _matches(index, device, host_devices):
            rules.append(
                DeviceRule(
                    kind=found.kind,
                    major=found.major,
                    minor=found.minor,
                    access=device.permissions,
                )
            )
    rules += [
        DeviceRule(kind=edit.kind, major=edit.major, minor=edit.minor, access=edit.access)
        for edit in edits
    ]
    return tuple(dict.fromkeys(rules))


def _matches(
    index: int, device: Device, host_devices: tuple[HostDevice, ...]
) -> list[tuple[HostDevice, str]]:
    """Return the host's nodes at or below the requested path, each with its container path."""
    source = clean_path(device.host_path)
    target = clean_path(device.container_path or device.host_path)
    paths = [(node, clean_path(node.path)) for node in host_devices]
    found = [
        (node, clean_path(target + path.removeprefix(source)))
        for node, path in paths
        if is_beneath(path, source)
    ]
    if not found:
        raise InvalidRequest(f"config.devices[{index}].host_path", f"no device at {source}")
    return found


def _copy(device: HostDevice, path: str) -> MakeDevice:
    return MakeDevice(
        path=path,
        kind=device.kind,
        major=device.major,
        minor=device.minor,
        mode=device.mode,
        uid=device.uid,
        gid=device.gid,
    )


def _edited(edit: DeviceNode) -> MakeDevice:
    return MakeDevice(
        path=edit.path,
        kind=edit.kind,
        major=edit.major,
        minor=edit.minor,
        mode=edit.mode,
        uid=edit.uid or 0,
        gid=edit.gid or 0,
    )


def _is_own(path: str) -> bool:
    return any(is_beneath(path, own) for own in _OWN_PATHS)
