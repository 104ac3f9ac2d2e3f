# SPDX-License-Identifier: Apache-2.0
"""What pods and containers use, as told over the CRI, against what they are known to do."""

import os
import socket
import time
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.system.test_resources import group_files
from tests.world.daemon import Node, refused, wait_until
from tests.world.images import Images

MEBIBYTE = 1 << 20
SECOND = 1_000_000_000
IS_V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
SINK = "nc -l -p 8000 >/dev/null; sleep 600; :"


def container_stats(node: Node, container: str) -> cri.ContainerStats:
    return node.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container)).stats


def pod_stats(node: Node, pod: str) -> cri.LinuxPodSandboxStats:
    request = cri.PodSandboxStatsRequest(pod_sandbox_id=pod)
    return node.runtime.PodSandboxStats(request).stats.linux


def listed(node: Node, **wanted: Any) -> list[str]:
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))
    answer = node.runtime.ListContainerStats(request).stats
    stream = node.runtime.StreamContainerStats(
        cri.StreamContainerStatsRequest(filter=request.filter)
    )
    ids = [stats.attributes.id for stats in answer]
    assert [s.attributes.id for message in stream for s in message.container_stats] == ids
    return sorted(ids)


def test_a_busy_container_uses_what_its_quota_allows(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("busy"),
        images["busybox"],
        command="while :; do :; done",
        resources={"cpu_period": 20_000, "cpu_quota": 5_000},
    )
    first = container_stats(node, container).cpu
    # So long that the shortest window of a rate has passed.
    second = wait_until(
        lambda: later_than(first.timestamp + 2 * SECOND, container_stats(node, container).cpu),
        what="two seconds pass",
    )
    used_ns = second.usage_core_nano_seconds.value - first.usage_core_nano_seconds.value
    passed_ns = second.timestamp - first.timestamp
    assert 0.02 * passed_ns < used_ns < 0.4 * passed_ns
    assert 0.02 * SECOND < second.usage_nano_cores.value < 0.4 * SECOND


def later_than(timestamp: int, cpu: cri.CpuUsage) -> cri.CpuUsage | None:
    return cpu if cpu.timestamp > timestamp else None


def test_memory_is_told_apart_into_what_can_be_taken_back(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("memory"),
        images["busybox"],
        # 24 MiB in a variable, and as much in the page cache, read so that nobody wants it again.
        command="x=$(head -c 25165824 /dev/zero | tr '\\0' x); head -c 25165824 /dev/zero >/file;"
        " sync; cat /file >/dev/null; echo ready; sleep 600; :",
        resources={"memory_limit_in_bytes": 256 * MEBIBYTE},
    )
    node.wait_log(container, "ready")
    memory = container_stats(node, container).memory
    assert memory.rss_bytes.value >= 24 * MEBIBYTE
    assert memory.usage_bytes.value >= 48 * MEBIBYTE
    # How much of the cache is inactive is the kernel's to say, and none where files are in memory.
    inactive = memory.usage_bytes.value - memory.working_set_bytes.value
    assert abs(inactive - inactive_file(node.pid(container))) < MEBIBYTE
    available = memory.available_bytes.value
    assert available == 256 * MEBIBYTE - memory.working_set_bytes.value
    assert memory.page_faults.value >= 24 * MEBIBYTE // 4096 // 8
    assert memory.HasField("major_page_faults")


def inactive_file(pid: int) -> int:
    lines = (group_files(pid, "memory") / "memory.stat").read_text().splitlines()
    numbers = dict(line.split() for line in lines)
    return int(numbers.get("total_inactive_file", numbers["inactive_file"]))


def test_a_container_without_a_limit_has_nothing_available(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("unlimited"), images["busybox"], command=["sleep", "600"]
    )
    stats = container_stats(node, container)
    assert stats.memory.usage_bytes.value > 0
    assert not stats.memory.HasField("available_bytes")
    # Pressure is there where the kernel keeps it, and never made up.
    has_pressure = IS_V2 and os.path.exists("/proc/pressure/cpu")
    assert stats.cpu.HasField("psi") == has_pressure
    assert stats.HasField("io") == has_pressure


@pytest.mark.skipif(not IS_V2, reason="needs pressure by group: cgroup version 2")
def test_a_throttled_container_stalls_for_the_cpu(node: Node, images: Images) -> None:
    pod = node.run_pod("stalled")
    container = node.run_container(
        pod,
        images["busybox"],
        command="while :; do :; done",
        resources={"cpu_period": 100_000, "cpu_quota": 5_000},
    )
    psi = wait_until(
        lambda: stalled(container_stats(node, container).cpu.psi), what="a second of stalls"
    )
    assert psi.Full.Total <= psi.Some.Total
    assert stalled(pod_stats(node, pod).cpu.psi)


def stalled(psi: cri.PsiStats) -> cri.PsiStats | None:
    return psi if psi.Some.Total > SECOND else None


def test_a_pod_s_network_is_what_its_own_interface_counts(node: Node, images: Images) -> None:
    pod = node.run_pod("network")
    container = node.run_container(pod, images["busybox"], command=SINK)
    address = node.pod_ip(pod)
    before = pod_stats(node, pod).network.default_interface
    assert before.name == "eth0"
    with wait_until(lambda: connect(address), what="the pod listens") as link:
        link.sendall(bytes(5 * MEBIBYTE))
    after = wait_until(
        lambda: received(before.rx_bytes.value + 5 * MEBIBYTE, node, pod), what="all is received"
    )
    assert after.rx_bytes.value - before.rx_bytes.value < 7 * MEBIBYTE
    assert 0 < after.tx_bytes.value - before.tx_bytes.value < 2 * MEBIBYTE
    assert after.rx_errors.value == after.tx_errors.value == 0
    # The pod's own view; a stray packet between two looks makes another try.
    wait_until(lambda: inside(node, container) == outside(node, pod), what="both views agree")


def received(size: int, node: Node, pod: str) -> cri.NetworkInterfaceUsage | None:
    eth0 = pod_stats(node, pod).network.default_interface
    return eth0 if eth0.rx_bytes.value >= size else None


def connect(address: str) -> socket.socket | None:
    try:
        return socket.create_connection((address, 8000), timeout=30)
    except ConnectionRefusedError:
        return None


def inside(node: Node, container: str) -> tuple[int, int]:
    (line,) = (line for line in node.shell(container, "cat /proc/net/dev").splitlines()
               if "eth0:" in line)  # fmt: skip
    words = line.partition(":")[2].split()
    return int(words[0]), int(words[8])


def outside(node: Node, pod: str) -> tuple[int, int]:
    eth0 = pod_stats(node, pod).network.default_interface
    return eth0.rx_bytes.value, eth0.tx_bytes.value


def test_a_pod_on_the_host_s_network_has_no_network_of_its_own(node: Node, images: Images) -> None:
    pod = node.run_pod("host", namespaces={"network": cri.NODE})
    node.run_container(pod, images["busybox"], command=["sleep", "600"])
    stats = pod_stats(node, pod)
    assert not stats.HasField("network")
    assert stats.cpu.HasField("usage_core_nano_seconds")


def test_a_pod_s_statistics_are_those_of_its_group(node: Node, images: Images) -> None:
    pod = node.run_pod("whole", namespaces={"pid": cri.POD})
    hungry = "x=$(head -c 8388608 /dev/zero | tr '\\0' x); echo ready; sleep 600; :"
    containers = [
        node.run_container(pod, images["busybox"], name=name, command=hungry)
        for name in ("one", "two")
    ]
    for container in containers:
        node.wait_log(container, "ready")
    stats = pod_stats(node, pod)
    assert sorted(c.attributes.id for c in stats.containers) == sorted(containers)
    assert stats.memory.rss_bytes.value >= 16 * MEBIBYTE
    # A shell and its sleep in each, and the pod's init.
    assert stats.process.process_count.value == 5
    assert stats.cpu.usage_core_nano_seconds.value >= max(
        container.cpu.usage_core_nano_seconds.value for container in stats.containers
    )


def test_the_writable_layer_grows_and_shrinks_with_its_files(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("layer"), images["busybox"], command=["sleep", "600"]
    )
    empty = container_stats(node, container).writable_layer
    assert os.path.isdir(empty.fs_id.mountpoint)
    assert empty.timestamp > 0
    node.shell(container, "mkdir /many; for i in $(seq 100); do : >/many/$i; done;"
               " head -c 8388608 /dev/zero >/big; sync")  # fmt: skip
    full = wait_until(
        lambda: at_least(8 * MEBIBYTE, container_stats(node, container).writable_layer),
        what="the growth is seen",
    )
    assert full.timestamp > empty.timestamp
    assert 8 * MEBIBYTE <= full.used_bytes.value - empty.used_bytes.value < 9 * MEBIBYTE
    assert 102 <= full.inodes_used.value - empty.inodes_used.value < 110
    node.shell(container, "rm -r /many /big")
    node.stop_container(container)
    wait_until(
        lambda: container_stats(node, container).writable_layer.used_bytes.value < MEBIBYTE,
        what="the removal is seen",
    )


def at_least(size: int, usage: cri.FilesystemUsage) -> cri.FilesystemUsage | None:
    return usage if usage.used_bytes.value >= size else None


def test_filters_choose_by_id_pod_and_label_and_leave_out_what_has_ended(
    node: Node, images: Images
) -> None:
    pods = [node.run_pod(name, labels={"app": name}) for name in ("a", "b")]
    running = [
        node.run_container(
            pod, images["busybox"], command=["sleep", "600"], labels={"tier": f"t{number}"}
        )
        for number, pod in enumerate(pods)
    ]
    created = node.create_container(pods[0], images["busybox"], name="created")
    ended = node.run_container(pods[0], images["busybox"], name="ended", command=["true"])
    node.wait_exited(ended)
    assert listed(node) == sorted([*running, created])
    assert listed(node, id=running[1]) == listed(node, id=running[1][:13]) == [running[1]]
    assert listed(node, pod_sandbox_id=pods[0]) == sorted([running[0], created])
    assert listed(node, label_selector={"tier": "t1"}) == [running[1]]
    assert listed(node, label_selector={"tier": "t1"}, pod_sandbox_id=pods[0]) == []
    assert listed(node, id=ended) == []
    last = container_stats(node, ended)
    assert last.HasField("writable_layer")
    assert not last.HasField("cpu")
    assert listed_pods(node) == sorted(pods)
    assert listed_pods(node, label_selector={"app": "b"}) == [pods[1]]
    assert listed_pods(node, id=pods[0][:12]) == [pods[0]]
    node.stop_pod(pods[0])
    assert listed_pods(node) == [pods[1]]
    assert not pod_stats(node, pods[0]).HasField("network")


def listed_pods(node: Node, **wanted: Any) -> list[str]:
    request = cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(**wanted))
    answer = node.runtime.ListPodSandboxStats(request).stats
    stream = node.runtime.StreamPodSandboxStats(
        cri.StreamPodSandboxStatsRequest(filter=request.filter)
    )
    ids = [stats.attributes.id for stats in answer]
    assert [s.attributes.id for message in stream for s in message.pod_sandbox_stats] == ids
    return sorted(ids)


def test_what_is_not_there_is_not_found(node: Node) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "container"):
        container_stats(node, "absent")
    with refused(grpc.StatusCode.NOT_FOUND, "pod sandbox"):
        pod_stats(node, "absent")


def test_statistics_go_on_after_a_restart_of_the_daemon(own_node: Node, images: Images) -> None:
    container = own_node.run_container(
        own_node.run_pod("kept"), images["busybox"], command=["sleep", "600"]
    )
    own_node.shell(container, "head -c 2097152 /dev/zero >/big; sync")
    before = container_stats(own_node, container)
    own_node.restart()
    wait_until(
        lambda: at_least(2 * MEBIBYTE, container_stats(own_node, container).writable_layer),
        what="the layer is measured anew",
    )
    after = container_stats(own_node, container)
    assert after.cpu.usage_core_nano_seconds.value >= before.cpu.usage_core_nano_seconds.value
    assert after.cpu.timestamp > before.cpu.timestamp


def test_many_at_once_are_read_while_containers_come_and_go(node: Node, images: Images) -> None:
    """Nothing that ends between the list and the reading makes a call fail."""
    pod = node.run_pod("churn")
    deadline = time.monotonic() + 3
    number = 0
    while time.monotonic() < deadline:
        number += 1
        future = node.runtime.ListPodSandboxStats.future(cri.ListPodSandboxStatsRequest())
        container = node.run_container(pod, images["busybox"], name=f"c{number}", command=["true"])
        others = node.runtime.ListContainerStats.future(cri.ListContainerStatsRequest())
        node.remove_container(container)
        assert future.result(10).stats
        others.result(10)
