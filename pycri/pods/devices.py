# SPDX-License-Identifier: Apache-2.0
"""Facts about device nodes of the host, read for the plan of a container."""

import os
import stat
from collections.abc import Iterator

from pycri.errors import InvalidRequest
from pycri.model.container import ContainerSpec
from pycri.plan.devices import HostDevice


def read_devices(spec: ContainerSpec) -> tuple[HostDevice, ...]:
    """Return every node at or below the host paths asked for; privileged: all of /dev besides.

    Raises: InvalidRequest for a path that does not exist.
    """
    found: dict[str, HostDevice] = {}
    for index, device in enumerate(spec.devices):
        if not os.path.exists(device.host_path):
            field = f"config.devices[{index}].host_path"
            raise InvalidRequest(field, f"{device.host_path!r} does not exist")
        found |= {node.path: node for node in _nodes(device.host_path)}
    if spec.security.privileged:
        found |= {node.path: node for node in _nodes("/dev")}
    return tuple(found.values())


def read_device(path: str) -> HostDevice | None:
    """Return the node a path leads to; None if there is none."""
    try:
        return next(_node(path, os.stat(path)), None)
    except OSError:
        return None


def _nodes(path: str) -> Iterator[HostDevice]:
    """Walk a path, links at its top followed, those below not."""
    if not os.path.isdir(path):
        yield from _node(path, os.stat(path))
        return
    for folder, _, files in os.walk(path):
        for name in files:
            entry = f"{folder}/{name}"
            try:
                yield from _node(entry, os.lstat(entry))
            except FileNotFoundError:
                continue


def _node(path: str, status: os.stat_result) -> Iterator[HostDevice]:
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        yield HostDevice(
            path=path,
            kind="c" if stat.S_ISCHR(status.st_mode) else "b",
            major=os.major(status.st_rdev),
            minor=os.minor(status.st_rdev),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
        )
