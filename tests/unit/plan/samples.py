# SPDX-License-Identifier: Apache-2.0
"""Hosts, pods and containers that the tests of plans start from, changed field by field."""

from typing import Any

from pycri.model.container import ContainerMetadata, ContainerSpec, ImageSpec
from pycri.model.host import HostFacts
from pycri.model.ids import ContainerId, PodId
from pycri.model.image import ImageConfig
from pycri.model.pod import PodMetadata, PodRecord, PodSpec
from pycri.model.security import CAPABILITY_NAMES, ContainerSecurity, User
from pycri.plan.container import ContainerInputs
from pycri.plan.sandbox import PodPaths, pod_pins

POD_ID = PodId("a1" * 32)
CONTAINER_ID = ContainerId("c2" * 32)
PINS = {kind: f"/run/pycri/ns/pod/{kind}" for kind in ("net", "ipc", "uts", "user")}


def host_v2(**changes: Any) -> HostFacts:
    facts: dict[str, Any] = {
        "kernel": (6, 12),
        "architecture": "x86_64",
        "hostname": "node-1",
        "cgroup_version": 2,
        "cgroup_root": "/sys/fs/cgroup",
        "cgroup1_mounts": {},
        "cgroup_controllers": frozenset(("cpu", "cpuset", "memory", "pids", "io", "hugetlb")),
        "hugepage_sizes": ("2MB", "1GB"),
        "min_oom_score_adj": -1000,
        "capabilities": frozenset(CAPABILITY_NAMES),
        "overlay_lowerdir_append": True,
        "pidfd_exit_info": True,
        "apparmor": False,
        "selinux": False,
        "swap_limits": True,
        "user_namespaces": True,
    }
    return HostFacts(**(facts | changes))


def host_v1(**changes: Any) -> HostFacts:
    mounts = {
        "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
        "devices": "/sys/fs/cgroup/devices",
        "freezer": "/sys/fs/cgroup/freezer",
        "name=systemd": "/sys/fs/cgroup/systemd",
    }
    controllers = frozenset(("cpu", "cpuacct", "memory", "devices", "freezer"))
    facts = {"cgroup_version": 1, "cgroup1_mounts": mounts, "cgroup_controllers": controllers}
    return host_v2(**(facts | changes))


def pod_spec(**changes: Any) -> PodSpec:
    fields: dict[str, Any] = {
        "metadata": PodMetadata(name="web", uid="uid-1", namespace="default"),
        "hostname": "web",
        "log_directory": "/var/log/pods/default_web_uid-1",
    }
    return PodSpec(**(fields | changes))


def pod_paths(spec: PodSpec) -> PodPaths:
    kinds = pod_pins(spec)
    return PodPaths(
        pins={kind: PINS[kind] for kind in kinds},
        shm="/run/pycri/ns/pod/shm" if "ipc" in kinds else "",
        hosts="/var/lib/pycri/pods/pod/hosts",
        hostname="/var/lib/pycri/pods/pod/hostname",
        resolv_conf="/var/lib/pycri/pods/pod/resolv.conf",
    )


def container_spec(**changes: Any) -> ContainerSpec:
    fields: dict[str, Any] = {
        "metadata": ContainerMetadata(name="nginx"),
        "image": ImageSpec(image="example.org/nginx:1"),
        "log_path": "nginx/0.log",
    }
    return ContainerSpec(**(fields | changes))


def container_inputs(
    *,
    pod: PodSpec | None = None,
    spec: ContainerSpec | None = None,
    security: ContainerSecurity | None = None,
    **changes: Any,
) -> ContainerInputs:
    pod = pod or pod_spec()
    spec = spec or container_spec(security=security or ContainerSecurity())
    fields: dict[str, Any] = {
        "container_id": CONTAINER_ID,
        "pod": PodRecord(id=POD_ID, spec=pod, created_ns=1),
        "pod_paths": pod_paths(pod),
        "spec": spec,
        "image": ImageConfig(
            entrypoint=("/entrypoint",), cmd=("serve",), env=("PATH=/bin",), working_dir="/srv"
        ),
        "layers": ("/var/lib/pycri/images/layers/2", "/var/lib/pycri/images/layers/1"),
        "upper": "/var/lib/pycri/containers/c/upper",
        "work": "/var/lib/pycri/containers/c/work",
        "bundle": "/var/lib/pycri/containers/c/bundle",
        "user": User(uid=0, gid=0, groups=(0,)),
        "host": host_v2(),
        "cgroup_parent": "/pycri",
    }
    return ContainerInputs(**(fields | changes))
