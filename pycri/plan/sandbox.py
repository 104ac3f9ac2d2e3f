# SPDX-License-Identifier: Apache-2.0
"""The plan of a pod sandbox: which namespaces it owns and how they are prepared.

A pod with the host's network has the host's UTS namespace too: its hostname is the node's (CRI
PodSandboxConfig.hostname). A pod with pid mode POD gets an init of ours; no other pod has a
process.
"""

from collections.abc import Mapping

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.host import HostFacts
from pycri.model.ids import PodId, TaskId
from pycri.model.plan import CgroupPlan, PinNamespace, SandboxPlan
from pycri.model.pod import PodSpec
from pycri.model.security import NamespaceMode
from pycri.plan.cgroups import cgroup_path, check_cgroup_parent, plan_cgroup
from pycri.plan.selinux import check_selinux
from pycri.plan.user_namespaces import check_pod_user_namespace

SHM_BYTES = 64 << 20
"""Size of a pod's /dev/shm, as in containerd and CRI-O."""

_PING_GROUPS = "net/ipv4/ping_group_range"
_NETWORK_DEFAULTS = {
    # An ordinary user may serve port 80 and send pings, as under containerd: it harms no one else.
    "net/ipv4/ip_unprivileged_port_start": "0",
    _PING_GROUPS: "0 2147483647",
}
IPC_SYSCTLS = ("kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/")
"""How the files below /proc/sys of an ipc namespace begin (ipc_namespaces(7))."""


class PodPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Host paths the daemon chose for a pod.

    pins: "user", "net", "ipc", "uts" to the pin's path; only the kinds of `pod_pins`.
    shm: the pod's tmpfs, or "" for the host's /dev/shm (host IPC).
    hosts, hostname, resolv_conf: files mounted over those in the containers' /etc.
    """

    pins: dict[str, str]
    shm: str
    hosts: str
    hostname: str
    resolv_conf: str


def pod_pins(spec: PodSpec) -> tuple[str, ...]:
    """Return the kinds of namespaces the pod owns, among "user", "net", "ipc", "uts"."""
    own_user = spec.namespaces.user is not None
    own_network = spec.namespaces.network is not NamespaceMode.NODE
    own_ipc = spec.namespaces.ipc is not NamespaceMode.NODE
    owned = {"user": own_user, "net": own_network, "ipc": own_ipc, "uts": own_network}
    return tuple(kind for kind, own in owned.items() if own)


def plan_network(pod_id: PodId, path: str, host: HostFacts) -> SandboxPlan:
    """Return the plan of a network namespace, pinned at `path`, for a pod that is to come."""
    return SandboxPlan(
        id=TaskId(pod_id),
        pins=(PinNamespace(kind="net", path=path),),
        sysctls=tuple(sorted(_NETWORK_DEFAULTS.items())),
        cgroup=CgroupPlan(version=host.cgroup_version, directories=()),
    )


def may_share_defaults(spec: PodSpec) -> bool:
    """Tell whether the pod's network namespace is one as `plan_network` makes it."""
    return spec.namespaces.network is not NamespaceMode.NODE and spec.namespaces.user is None


def plan_sandbox(
    pod_id: PodId,
    spec: PodSpec,
    paths: PodPaths,
    host: HostFacts,
    cgroup_parent: str,
    *,
    has_network: bool = False,
) -> SandboxPlan:
    """Return the plan of a pod's namespaces.

    cgroup_parent: the daemon's, for a pod that names none (`cgroups.cgroup_path`).
    has_network: its network namespace is there already, by `plan_network`.
    Raises: InvalidRequest for a sysctl that is not the pod's own to set; Unsupported for a user
        namespace this node cannot make, or a label without SELinux.
    """
    if not spec.privileged:
        check_selinux(spec.selinux_label, host)
    check_pod_user_namespace(spec, host)
    check_cgroup_parent(spec.cgroup_parent, host)
    kinds = pod_pins(spec)
    init = spec.namespaces.pid is NamespaceMode.POD
    path = cgroup_path(spec.cgroup_parent, cgroup_parent, pod_id, pod_id)
    if init:
        cgroup = plan_cgroup(path, host)
    else:
        cgroup = CgroupPlan(version=host.cgroup_version, directories=())
    return SandboxPlan(
        id=TaskId(pod_id),
        pins=tuple(
            PinNamespace(kind=kind, path=paths.pins[kind])
            for kind in kinds
            if not (has_network and kind == "net")
        ),
        hostname=spec.hostname if "uts" in kinds else "",
        sysctls=_sysctls(spec, kinds, {} if has_network else _NETWORK_DEFAULTS),
        shm=(paths.shm, SHM_BYTES) if "ipc" in kinds else None,
        init=init,
        cgroup=cgroup,
        user_namespace=spec.namespaces.user,
        network=paths.pins["net"] if has_network else "",
    )


def _sysctls(
    spec: PodSpec, kinds: tuple[str, ...], defaults: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    values = dict(defaults) if "net" in kinds else {}
    if spec.namespaces.user is not None and values:
        # The kernel takes groups that the namespace has, and no others.
        last = max(line.container_id + line.length for line in spec.namespaces.user.gids) - 1
        values[_PING_GROUPS] = f"0 {last}"
    values |= {_sysctl_path(name, kinds): value for name, value in spec.sysctls.items()}
    return tuple(sorted(values.items()))


def _sysctl_path(name: str, kinds: tuple[str, ...]) -> str:
    """Return the path below /proc/sys of a sysctl that belongs to a namespace of the pod.

    Only such a one: any other is the node's. sysctl(8): the first separator decides; after a dot,
    dots separate and slashes are dots ("net.ipv4.conf.eth0/1.rp_filter").
    """
    field = f"config.linux.sysctls[{name}]"
    path = name
    if "/" not in name or 0 <= name.find(".") < name.find("/"):
        path = name.translate(str.maketrans("./", "/."))
    if not set(path.split("/")).isdisjoint(("", ".", "..")):
        raise InvalidRequest(field, "is not the name of a sysctl")
    for kind, prefixes in (("net", ("net/",)), ("ipc", IPC_SYSCTLS)):
        if path.startswith(prefixes):
            if kind in kinds:
                return path
            raise InvalidRequest(field, f"cannot be set: the pod uses the host's {kind} namespace")
    raise InvalidRequest(field, "does not belong to a namespace of the pod")
