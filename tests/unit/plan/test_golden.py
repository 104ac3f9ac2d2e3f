# SPDX-License-Identifier: Apache-2.0
"""Whole plans as text, against the files in golden/.

PYCRI_UPDATE_GOLDEN=1 writes the files anew; read their diff before committing it.
"""

import os
from pathlib import Path

import pytest

from pycri.model.container import Device, Mount, Propagation
from pycri.model.host import HostFacts
from pycri.model.image import ImageConfig
from pycri.model.pod import PodSpec
from pycri.model.resources import HugepageLimit, Resources
from pycri.model.security import (
    ContainerSecurity,
    IdMapping,
    IdMappings,
    NamespaceMode,
    NamespaceModes,
    User,
)
from pycri.plan.container import ContainerInputs, plan_container
from pycri.plan.devices import HostDevice
from pycri.plan.sandbox import plan_sandbox
from pycri.plan.security import DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS
from pycri.plan.text import render_plan
from tests.unit.plan.samples import (
    POD_ID,
    container_inputs,
    container_spec,
    host_v1,
    host_v2,
    pod_paths,
    pod_spec,
)

GOLDEN = Path(__file__).parent / "golden"
KUBEPODS = "/kubepods/burstable/poduid-1"
HOST_MODES = NamespaceModes(
    network=NamespaceMode.NODE, pid=NamespaceMode.NODE, ipc=NamespaceMode.NODE
)
OWN_PID = NamespaceModes(pid=NamespaceMode.CONTAINER)
MAP = (IdMapping(host_id=131_072, container_id=0, length=65_536),)
MAPPED = NamespaceModes(pid=NamespaceMode.CONTAINER, user=IdMappings(uids=MAP, gids=MAP))

NGINX = container_spec(
    args=("--quiet",),
    env=(("MODE", b"fast"),),
    mounts=(
        Mount(container_path="/var/run/secrets/token", host_path="/kubelet/token", readonly=True),
        Mount(container_path="/etc/hosts", host_path="/kubelet/etc-hosts"),
        Mount(container_path="/data/", host_path="/srv/data"),
        Mount(container_path="/dev/termination-log", host_path="/kubelet/termination-log"),
        Mount(
            container_path="/mnt",
            host_path="/mnt",
            propagation=Propagation.HOST_TO_CONTAINER,
        ),
    ),
    devices=(Device(container_path="/dev/fuse", host_path="/dev/fuse", permissions="rw"),),
    resources=Resources(
        cpu_period_us=100_000,
        cpu_quota_us=50_000,
        cpu_shares=512,
        memory_limit_bytes=128 << 20,
        oom_score_adj=950,
        hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=0),),
    ),
    security=ContainerSecurity(
        namespaces=OWN_PID,
        drop_capabilities=("ALL",),
        add_capabilities=("NET_BIND_SERVICE",),
        readonly_rootfs=True,
        masked_paths=DEFAULT_MASKED_PATHS,
        readonly_paths=DEFAULT_READONLY_PATHS,
    ),
)
FUSE = HostDevice(path="/dev/fuse", kind="c", major=10, minor=229)
DISK = HostDevice(path="/dev/vda", kind="b", major=254, minor=0, mode=0o660, gid=6)
NGINX_IMAGE = ImageConfig(entrypoint=("/nginx",), cmd=("-g", "x"), volumes=("/cache", "/data"))


def nginx(host: HostFacts) -> ContainerInputs:
    return container_inputs(
        pod=pod_spec(cgroup_parent=KUBEPODS, namespaces=OWN_PID),
        spec=NGINX,
        image=NGINX_IMAGE,
        user=User(uid=101, gid=101, groups=(101, 7)),
        host=host,
        host_devices=(FUSE,),
    )


def privileged(host: HostFacts) -> ContainerInputs:
    return container_inputs(
        pod=pod_spec(privileged=True, hostname="", namespaces=HOST_MODES),
        spec=container_spec(
            command=("/bin/sh",),
            tty=True,
            security=ContainerSecurity(
                privileged=True,
                namespaces=HOST_MODES,
                masked_paths=DEFAULT_MASKED_PATHS,
                readonly_paths=DEFAULT_READONLY_PATHS,
            ),
        ),
        host=host,
        host_devices=(DISK, FUSE),
    )


def mapped(host: HostFacts) -> ContainerInputs:
    return container_inputs(
        pod=pod_spec(cgroup_parent=KUBEPODS, namespaces=MAPPED),
        spec=container_spec(
            mounts=(
                Mount(container_path="/data", host_path="/srv/data", ids=MAPPED.user),
                Mount(container_path="/plain", host_path="/srv/plain"),
            ),
            security=ContainerSecurity(namespaces=MAPPED, masked_paths=("/proc/kcore",)),
        ),
        user=User(uid=101, gid=101, groups=(101, 7)),
        host=host,
    )


CONTAINERS = {
    "container-mapped-v2": mapped(host_v2()),
    "container-plain-v2": container_inputs(),
    "container-nginx-v2": nginx(host_v2()),
    "container-nginx-v1": nginx(host_v1()),
    "container-privileged-v2": privileged(host_v2()),
    "container-privileged-v1": privileged(host_v1()),
}
SANDBOXES: dict[str, tuple[PodSpec, HostFacts]] = {
    "sandbox-shared-pid": (pod_spec(sysctls={"kernel.shm_rmid_forced": "1"}), host_v1()),
    "sandbox-kubelet": (pod_spec(cgroup_parent=KUBEPODS, namespaces=OWN_PID), host_v2()),
    "sandbox-mapped": (pod_spec(cgroup_parent=KUBEPODS, namespaces=MAPPED), host_v2()),
    "sandbox-host": (pod_spec(hostname="", namespaces=HOST_MODES), host_v2()),
}


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("PYCRI_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name}: run with PYCRI_UPDATE_GOLDEN=1 if meant"


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_plan_of_a_container_is_the_golden_one(name: str) -> None:
    check_golden(name, render_plan(plan_container(CONTAINERS[name])))


@pytest.mark.parametrize("name", SANDBOXES)
def test_the_plan_of_a_sandbox_is_the_golden_one(name: str) -> None:
    spec, host = SANDBOXES[name]
    check_golden(name, render_plan(plan_sandbox(POD_ID, spec, pod_paths(spec), host, "/pycri")))


def test_every_golden_file_has_its_test() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*CONTAINERS, *SANDBOXES}
