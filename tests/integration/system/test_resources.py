# SPDX-License-Identifier: Apache-2.0
"""Limits of memory and CPU, as the kernel keeps them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.world.daemon import Node
from tests.world.images import Images

MEBIBYTE = 1 << 20
GREEDY = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"


def group_files(pid: int, controller: str) -> Path:
    """Return the folder of a process's group in the hierarchy that has `controller`."""
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups[controllers] = path
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        kind, options = words[words.index("-") + 1], words[-1].split(",")
        if kind == "cgroup" and controller in options:
            found = next(path for names, path in groups.items() if controller in names.split(","))
            return Path(words[4] + found)
    # Version 2 has every controller in one tree.
    return Path("/sys/fs/cgroup" + groups[""])


def read_first(folder: Path, *names: str) -> str:
    return next((folder / name).read_text().strip() for name in names if (folder / name).exists())


def run(node: Node, image: str, **resources: Any) -> int:
    container = node.run_container(
        node.run_pod("limits"), image, command=["sleep", "60"], resources=resources
    )
    return node.pid(container)


def test_a_container_over_its_memory_limit_is_oom_killed(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("greedy"),
        images["busybox"],
        command=GREEDY,
        resources={"memory_limit_in_bytes": 32 * MEBIBYTE},
    )
    status = node.wait_exited(container, timeout_s=60)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_a_kill_that_is_no_oom_is_an_error(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("modest"),
        images["busybox"],
        command=["sleep", "60"],
        resources={"memory_limit_in_bytes": 32 * MEBIBYTE},
    )
    node.stop_container(container)
    status = node.status(container)
    assert (status.exit_code, status.reason) == (137, "Error")


def test_the_memory_limit_is_set(node: Node, images: Images) -> None:
    pid = run(node, images["busybox"], memory_limit_in_bytes=64 * MEBIBYTE)
    folder = group_files(pid, "memory")
    assert read_first(folder, "memory.limit_in_bytes", "memory.max") == str(64 * MEBIBYTE)


def test_the_cpu_quota_is_set(node: Node, images: Images) -> None:
    pid = run(node, images["busybox"], cpu_period=100_000, cpu_quota=25_000)
    folder = group_files(pid, "cpu")
    if (folder / "cpu.max").exists():
        assert (folder / "cpu.max").read_text().split() == ["25000", "100000"]
    else:
        assert read_first(folder, "cpu.cfs_quota_us") == "25000"
        assert read_first(folder, "cpu.cfs_period_us") == "100000"


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 100), (262_144, 10_000)])
def test_the_cpu_shares_are_set(shares: int, weight: int, node: Node, images: Images) -> None:
    pid = run(node, images["busybox"], cpu_shares=shares)
    folder = group_files(pid, "cpu")
    expected = {"cpu.shares": str(shares), "cpu.weight": str(weight)}
    name = next(name for name in expected if (folder / name).exists())
    assert (folder / name).read_text().strip() == expected[name]


def test_every_process_is_in_a_group_below_the_node_s(node: Node, images: Images) -> None:
    pid = run(node, images["busybox"])
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("memory", "pids", "freezer"):
            assert path.startswith(f"/{node.name}/"), line


@contextmanager
def made_group(path: str) -> Iterator[None]:
    """Make a group in every hierarchy, as the kubelet does for a pod.

    Its cpuset is left empty, as version 1 makes it: such a one takes no process.
    """
    roots = [
        Path(words[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if (words := line.split())[words.index("-") + 1].startswith("cgroup")
    ]
    folders = [Path(f"{root}{path}") for root in roots]
    try:
        for folder in folders:
            folder.mkdir()
        yield
    finally:
        for folder in folders:
            folder.rmdir()


def test_a_cgroup_parent_of_the_request_is_used_and_left(node: Node, images: Images) -> None:
    parent = f"/{node.name}-kubelet"
    with made_group(parent):
        pod = node.run_pod("parent", linux={"cgroup_parent": parent})
        container = node.run_container(pod, images["busybox"], command=["sleep", "60"])
        groups = Path(f"/proc/{node.pid(container)}/cgroup").read_text()
        assert f":{parent}/" in groups
        node.clear()


def test_the_oom_score_is_adjusted(node: Node, images: Images) -> None:
    pid = run(node, images["busybox"], oom_score_adj=750)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "750\n"
