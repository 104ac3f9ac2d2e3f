# SPDX-License-Identifier: Apache-2.0
"""UpdateContainerResources and UpdatePodSandboxResources."""

from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.system.test_resources import group_files, read_first
from tests.world.daemon import Node, refused
from tests.world.images import Images

MEBIBYTE = 1 << 20
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MEMORY = ("memory.limit_in_bytes", "memory.max")


def update(node: Node, container: str, **resources: Any) -> None:
    request = cri.UpdateContainerResourcesRequest(
        container_id=container, linux=cri.LinuxContainerResources(**resources)
    )
    node.runtime.UpdateContainerResources(request, timeout=30)


def shown(node: Node, container: str) -> cri.LinuxContainerResources:
    return node.status(container).resources.linux


def run(node: Node, images: Images, command: Any = ("sleep", "600"), **resources: Any) -> str:
    return node.run_container(
        node.run_pod("update"), images["busybox"], command=command, resources=resources
    )


def cpu_limit(folder: Path) -> tuple[str, str]:
    """Return quota and period, in either version."""
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
        return quota, period
    return read_first(folder, "cpu.cfs_quota_us"), read_first(folder, "cpu.cfs_period_us")


def test_limits_of_a_running_container_change_and_show_at_once(node: Node, images: Images) -> None:
    container = run(node, images, memory_limit_in_bytes=64 * MEBIBYTE, cpu_shares=512)
    pid = node.pid(container)
    update(
        node,
        container,
        memory_limit_in_bytes=128 * MEBIBYTE,
        cpu_quota=30_000,
        cpu_period=60_000,
        cpuset_cpus="0",
    )
    assert read_first(group_files(pid, "memory"), *MEMORY) == str(128 * MEBIBYTE)
    assert cpu_limit(group_files(pid, "cpu")) == ("30000", "60000")
    assert read_first(group_files(pid, "cpuset"), "cpuset.cpus") == "0"
    limits = shown(node, container)
    assert (limits.memory_limit_in_bytes, limits.cpu_quota) == (128 * MEBIBYTE, 30_000)
    # What was not asked for stays as it was.
    assert limits.cpu_shares == 512


@pytest.mark.parametrize("way", [(64, 256), (256, 64)], ids=["up", "down"])
def test_memory_can_be_raised_and_lowered_with_its_swap(
    way: tuple[int, int], node: Node, images: Images
) -> None:
    before, after = (size * MEBIBYTE for size in way)
    container = run(node, images, memory_limit_in_bytes=before, memory_swap_limit_in_bytes=before)
    update(node, container, memory_limit_in_bytes=after, memory_swap_limit_in_bytes=after)
    folder = group_files(node.pid(container), "memory")
    assert read_first(folder, *MEMORY) == str(after)
    if (folder / "memory.memsw.limit_in_bytes").exists():
        assert read_first(folder, "memory.memsw.limit_in_bytes") == str(after)


@pytest.mark.parametrize("way", [(50_000, 200_000), (200_000, 50_000)], ids=["longer", "shorter"])
def test_period_and_quota_change_below_a_parent_that_gives_no_more(
    way: tuple[int, int], node: Node, images: Images
) -> None:
    """A child may not have a larger share than its parent even between two writes."""
    container = run(node, images, cpu_period=way[0], cpu_quota=way[0] // 2)
    folder = group_files(node.pid(container), "cpu")
    parent = folder.parent
    if (parent / "cpu.max").exists():
        (parent / "cpu.max").write_text("50000 100000")
    else:
        (parent / "cpu.cfs_quota_us").write_text("50000")
    update(node, container, cpu_period=way[1], cpu_quota=way[1] // 2)
    assert cpu_limit(folder) == (str(way[1] // 2), str(way[1]))


def test_nothing_changes_when_one_limit_is_refused(node: Node, images: Images) -> None:
    container = run(node, images, memory_limit_in_bytes=64 * MEBIBYTE, cpu_shares=512)
    pid = node.pid(container)
    before = shown(node, container)
    with refused(INVALID, "linux.cpuset_cpus", "0-4095"):
        update(
            node,
            container,
            memory_limit_in_bytes=128 * MEBIBYTE,
            cpu_shares=1024,
            cpu_quota=20_000,
            cpuset_cpus="0-4095",
            oom_score_adj=900,
        )
    assert read_first(group_files(pid, "memory"), *MEMORY) == str(64 * MEBIBYTE)
    cpu = group_files(pid, "cpu")
    assert read_first(cpu, "cpu.shares", "cpu.weight") in ("512", "59")
    assert cpu_limit(cpu)[0] in ("-1", "max")
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    assert shown(node, container) == before


def test_memory_below_what_the_container_holds_is_refused(node: Node, images: Images) -> None:
    # The shell's variable is memory that the kernel cannot take back.
    script = "x=$(head -c 24000000 /dev/zero | tr '\\0' x); echo full; while :; do sleep 1; done"
    container = run(node, images, script, memory_limit_in_bytes=256 * MEBIBYTE)
    node.wait_log(container, "full")
    with refused(INVALID, "linux.memory_limit_in_bytes", "holds"):
        update(node, container, memory_limit_in_bytes=8 * MEBIBYTE)
    assert shown(node, container).memory_limit_in_bytes == 256 * MEBIBYTE
    assert node.status(container).state == cri.CONTAINER_RUNNING


def test_the_oom_score_of_every_process_changes(node: Node, images: Images) -> None:
    script = "sleep 600 & sleep 600 & echo ready; wait"
    container = run(node, images, script, oom_score_adj=300)
    node.wait_log(container, "ready")
    update(node, container, oom_score_adj=700)
    folder = group_files(node.pid(container), "memory")
    pids = (folder / "cgroup.procs").read_text().split()
    assert len(pids) == 3
    assert {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in pids} == {"700\n"}
    assert node.shell(container, "cat /proc/self/oom_score_adj") == "700\n"
    update(node, container, oom_score_adj=100)
    assert Path(f"/proc/{pids[0]}/oom_score_adj").read_text() == "100\n"


def test_an_oom_score_below_what_this_root_may_write_is_raised(node: Node, images: Images) -> None:
    container = run(node, images, oom_score_adj=300)
    update(node, container, oom_score_adj=-900)
    value = int(Path(f"/proc/{node.pid(container)}/oom_score_adj").read_text())
    lowest = min(int(Path("/proc/self/oom_score_adj").read_text()), 0)
    assert value in (-900, lowest)


def test_a_container_starts_with_what_it_was_changed_to(node: Node, images: Images) -> None:
    pod = node.run_pod("early")
    config = {"memory_limit_in_bytes": 64 * MEBIBYTE, "cpu_shares": 512}
    container = node.create_container(
        pod, images["busybox"], command=["sleep", "600"], resources=config
    )
    update(node, container, memory_limit_in_bytes=96 * MEBIBYTE, oom_score_adj=500)
    assert shown(node, container).memory_limit_in_bytes == 96 * MEBIBYTE
    node.start_container(container)
    pid = node.pid(container)
    assert read_first(group_files(pid, "memory"), *MEMORY) == str(96 * MEBIBYTE)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    # A retry of the creation still is the same request.
    assert (
        node.create_container(pod, images["busybox"], command=["sleep", "600"], resources=config)
        == container
    )


def test_changed_limits_outlive_the_daemon(own_node: Node, images: Images) -> None:
    container = run(own_node, images, memory_limit_in_bytes=64 * MEBIBYTE)
    update(own_node, container, memory_limit_in_bytes=96 * MEBIBYTE, cpu_shares=256)
    own_node.restart()
    limits = shown(own_node, container)
    assert (limits.memory_limit_in_bytes, limits.cpu_shares) == (96 * MEBIBYTE, 256)
    folder = group_files(own_node.pid(container), "memory")
    assert read_first(folder, *MEMORY) == str(96 * MEBIBYTE)


def test_an_exited_and_an_unknown_container_are_refused(node: Node, images: Images) -> None:
    container = run(node, images, ["true"])
    node.wait_exited(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "exited"):
        update(node, container, cpu_shares=2)
    with refused(grpc.StatusCode.NOT_FOUND, "container"):
        update(node, "f" * 64, cpu_shares=2)


def test_a_pod_s_resources_are_recorded_and_shown(own_node: Node) -> None:
    node = own_node
    pod = node.run_pod("sized")

    def info() -> dict[str, Any]:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        answer = node.runtime.PodSandboxStatus(request, timeout=30)
        decoded: dict[str, Any] = msgspec.json.decode(answer.info["info"])
        return decoded

    assert info()["resources"] is None
    request = cri.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod,
        overhead=cri.LinuxContainerResources(cpu_shares=10),
        resources=cri.LinuxContainerResources(memory_limit_in_bytes=MEBIBYTE),
    )
    node.runtime.UpdatePodSandboxResources(request, timeout=30)
    assert info()["overhead"]["cpu_shares"] == 10
    node.restart()
    assert info()["resources"]["memory_limit_bytes"] == MEBIBYTE
    request.pod_sandbox_id = "f" * 64
    with refused(grpc.StatusCode.NOT_FOUND, "pod sandbox"):
        node.runtime.UpdatePodSandboxResources(request, timeout=30)
