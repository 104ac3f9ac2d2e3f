# SPDX-License-Identifier: Apache-2.0
"""What is different in a pod with a user namespace of its own.

The plan is made as for any pod; then ids of the host take the place of ids inside wherever a step
needs the host's rights, which is every step before the namespace is entered:

    the root's layers are shown mapped; the upper folder belongs to the mapped root
    device nodes belong to whom the plan says, inside
    the pod's own files in /etc are shown mapped; of the request's mounts, those that ask for it

Nothing is chowned but what is made new. Sources: CRI NamespaceOption.userns_options and
Mount.uidMappings; KEP-127.
"""

import msgspec

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.container import ContainerSpec, Propagation
from pycri.model.host import HostFacts
from pycri.model.plan import (
    BindMount,
    ContainerPlan,
    JoinUserNamespace,
    MakeDevice,
    MountFilesystem,
    MountImage,
    MountOverlay,
    Step,
)
from pycri.model.pod import PodSpec
from pycri.model.security import IdMappings, User

_SECURITY = "config.linux.security_context"
_FIELD = f"{_SECURITY}.namespace_options.userns_options"
_NEEDS = "needs Linux 6.3 or newer with user namespaces allowed (user.max_user_namespaces)"


def check_pod_user_namespace(spec: PodSpec, host: HostFacts) -> None:
    """Raise Unsupported where this node cannot give a pod a user namespace of its own."""
    if spec.namespaces.user is not None and not host.user_namespaces:
        raise Unsupported(f"{_FIELD}: {_NEEDS}")


def check_container_ids(spec: ContainerSpec, user: User, pod: PodSpec, host: HostFacts) -> None:
    """Raise where a container and its pod's user namespace do not go together.

    Raises: InvalidRequest for another namespace than the pod's, or a user or group that it does
        not have; Unsupported for what cannot be in one, or on this node.
    """
    ids = pod.namespaces.user
    for index, mount in enumerate(spec.mounts):
        if mount.ids is not None and not host.user_namespaces:
            raise Unsupported(f"config.mounts[{index}].uidMappings: {_NEEDS}")
        if ids is not None and mount.propagation is Propagation.BIDIRECTIONAL:
            # The kernel makes a shared mount a slave when another user namespace gets it
            # (mount_namespaces(7)).
            reason = "a container in a user namespace cannot propagate mounts to the host"
            raise Unsupported(f"config.mounts[{index}].propagation: {reason}")
    if spec.security.namespaces.user != ids:
        raise InvalidRequest(_FIELD, "is not that of the pod sandbox")
    if ids is not None:
        _check_user(spec, user, ids)


def map_plan(
    plan: ContainerPlan, ids: IdMappings, pin: str, own_files: tuple[str, ...]
) -> ContainerPlan:
    """Return the plan of a container in its pod's user namespace.

    plan: as it would be without one. pin: path of the namespace's. own_files: host paths of the
    pod's files that every container has.
    """
    return msgspec.structs.replace(
        plan,
        namespaces=tuple(join for join in plan.namespaces if join.kind != "user"),
        user_namespace=JoinUserNamespace(path=pin, ids=ids),
        steps=tuple(_map_step(step, ids, own_files) for step in plan.steps),
    )


def _check_user(spec: ContainerSpec, user: User, ids: IdMappings) -> None:
    security = spec.security
    field = "config.image"
    if security.run_as_user is not None:
        field = f"{_SECURITY}.run_as_user"
    elif security.run_as_username:
        field = f"{_SECURITY}.run_as_username"
    if ids.host_uid(user.uid) is None:
        raise InvalidRequest(field, f"user {user.uid} is not in the pod's user namespace")
    for gid in (user.gid, *user.groups):
        if ids.host_gid(gid) is not None:
            continue
        if gid in security.supplemental_groups:
            field = f"{_SECURITY}.supplemental_groups"
        elif gid == security.run_as_group:
            field = f"{_SECURITY}.run_as_group"
        raise InvalidRequest(field, f"group {gid} is not in the pod's user namespace")


def _map_step(step: Step, ids: IdMappings, own_files: tuple[str, ...]) -> Step:
    match step:
        case MountOverlay() | MountImage():
            return msgspec.structs.replace(step, ids=ids)
        case BindMount(source=source, ids=None) if source in own_files:
            return msgspec.structs.replace(step, ids=ids)
        case MakeDevice():
            return _map_device(step, ids)
        case MountFilesystem(filesystem="devpts"):
            return msgspec.structs.replace(step, options=_map_options(step.options, ids))
        case _:
            return step


def _map_device(step: MakeDevice, ids: IdMappings) -> MakeDevice:
    """Return the node with owners of the host; who is nobody inside leaves it to root."""
    uid, gid = ids.host_uid(step.uid), ids.host_gid(step.gid)
    return msgspec.structs.replace(
        step,
        uid=ids.host_uid(0) if uid is None else uid,
        gid=ids.host_gid(0) if gid is None else gid,
    )


def _map_options(options: tuple[str, ...], ids: IdMappings) -> tuple[str, ...]:
    """Return a file system's options with its gid= as the host's, or without."""
    mapped = []
    for option in options:
        key, _, value = option.partition("=")
        if key != "gid":
            mapped.append(option)
        elif (gid := ids.host_gid(int(value))) is not None:
            mapped.append(f"gid={gid}")
    return tuple(mapped)
