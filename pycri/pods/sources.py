# SPDX-License-Identifier: Apache-2.0
"""Facts about the host's mounts that a container's mounts are cloned from."""

import os

import msgspec

from pycri.errors import InvalidRequest
from pycri.kernel.mounts import read_propagation
from pycri.model.cdi import DeviceEdits
from pycri.model.container import ContainerSpec, Propagation
from pycri.model.plan import BindMount

_NEEDED = {
    "slave": ({"shared", "master"}, "a shared or slave"),
    "shared": ({"shared"}, "a shared"),
}
_PROPAGATION = {Propagation.HOST_TO_CONTAINER: "slave", Propagation.BIDIRECTIONAL: "shared"}


class PropagatingMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount that is to get the host's, or to give it its own. field: of the request; asked: the
    propagation in its words."""

    field: str
    asked: str
    source: str
    propagation: str


def propagating_mounts(spec: ContainerSpec, edits: DeviceEdits) -> list[PropagatingMount]:
    """Return what `check_propagation` must look at, of the request and of its CDI devices."""
    requested = [
        PropagatingMount(
            field=f"config.mounts[{index}].propagation",
            asked=mount.propagation.name,
            source=mount.host_path,
            propagation=_PROPAGATION[mount.propagation],
        )
        for index, mount in enumerate(spec.mounts)
        if mount.propagation in _PROPAGATION
    ]
    return requested + [
        PropagatingMount(
            field="config.CDI_devices",
            asked=f"a mount at {mount.target} with propagation r{mount.propagation}",
            source=mount.source,
            propagation=mount.propagation,
        )
        for mount in edits.mounts
        if isinstance(mount, BindMount) and mount.propagation in _NEEDED
    ]


def check_propagation(mounts: list[PropagatingMount]) -> None:
    """Check that what the host mounts can reach a container that asks for it, and back.

    As the daemon sees the host's mounts, which is as the spawner does that clones them: both live
    in the mount namespace that the first daemon was started in. May block, on a dead network
    volume for long.
    Raises: InvalidRequest.
    """
    for mount in mounts:
        accepted, words = _NEEDED[mount.propagation]
        path = os.path.realpath(mount.source)
        while not os.path.exists(path):
            # It will be made, on the mount its nearest folder is on.
            path = os.path.dirname(path)
        if not accepted & read_propagation(path):
            reason = f"needs {words} mount on the host, which {mount.source} is not on"
            raise InvalidRequest(mount.field, f"{mount.asked} {reason}")
