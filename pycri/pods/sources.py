# SPDX-License-Identifier: Apache-2.0
"""Facts about the host's mounts that a container's mounts are cloned from."""

import os

from pycri.errors import InvalidRequest
from pycri.kernel.mounts import read_propagation
from pycri.model.container import ContainerSpec, Mount, Propagation

_NEEDED = {
    Propagation.HOST_TO_CONTAINER: ({"shared", "master"}, "a shared or slave"),
    Propagation.BIDIRECTIONAL: ({"shared"}, "a shared"),
}


def needs_check(spec: ContainerSpec) -> bool:
    """Tell whether a mount asks for propagation."""
    return any(mount.propagation in _NEEDED for mount in spec.mounts)


def check_propagation(spec: ContainerSpec) -> None:
    """Check that what the host mounts can reach a container that asks for it, and back.

    As the daemon sees the host's mounts, which is as the spawner does that clones them: both live
    in the mount namespace that the first daemon was started in. May block, on a dead network
    volume for long.
    Raises: InvalidRequest.
    """
    for index, mount in enumerate(spec.mounts):
        if mount.propagation in _NEEDED:
            _check(f"config.mounts[{index}].propagation", mount)


def _check(field: str, mount: Mount) -> None:
    accepted, words = _NEEDED[mount.propagation]
    path = os.path.realpath(mount.host_path)
    while not os.path.exists(path):
        # It will be made, on the mount its nearest folder is on.
        path = os.path.dirname(path)
    if not accepted & read_propagation(path):
        raise InvalidRequest(
            field,
            f"{mount.propagation.name} needs {words} mount on the host, which"
            f" {mount.host_path} is not on",
        )
