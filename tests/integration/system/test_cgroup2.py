# SPDX-License-Identifier: Apache-2.0
"""What only version 2 of control groups has: one tree, own views of it, options of the whole."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world.daemon import Node
from tests.world.images import Images

ROOT = Path("/sys/fs/cgroup")
MEBIBYTE = 1 << 20
SWELL = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"

pytestmark = pytest.mark.skipif(
    not os.path.exists(ROOT / "cgroup.controllers"), reason="needs cgroup version 2"
)


@pytest.fixture
def tree_options() -> Iterator[list[str]]:
    """The options of the host's own mount of the tree, which apply to the tree as a whole."""
    before = read_options()
    assert "nsdelegate" in before, "no option to lose"
    yield before
    if read_options() != before:
        os.system(f"mount -o remount,{','.join(before)} {ROOT}")


def read_options() -> list[str]:
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(words[3].split(",") for words in lines if words[1] == str(ROOT))


def test_a_privileged_container_leaves_the_options_of_the_tree(
    node: Node, images: Images, tree_options: list[str]
) -> None:
    """A new mount without options, made in the host's cgroup namespace, takes them from all."""
    pod = node.run_pod("privileged", security={"privileged": True})
    script = f"cat {ROOT}/cgroup.controllers && mkdir {ROOT}/{node.name}/own"
    script += f" && rmdir {ROOT}/{node.name}/own"
    output = node.run_to_end(pod, images["busybox"], command=script, security={"privileged": True})
    assert "memory" in output.split()
    assert read_options() == tree_options


def test_a_container_sees_its_own_group_as_the_root(node: Node, images: Images) -> None:
    """Without a limit of its own for swap it gets none, also when pycri made the first group."""
    script = f"cat /proc/self/cgroup {ROOT}/memory.max {ROOT}/memory.swap.max;"
    script += f" mkdir {ROOT}/own 2>/dev/null || echo no"
    output = node.run_to_end(
        node.run_pod("view"),
        images["busybox"],
        command=script,
        resources={"memory_limit_in_bytes": 64 * MEBIBYTE},
    )
    assert output.split() == ["0::/", str(64 * MEBIBYTE), "0", "no"]


def test_with_memory_oom_group_all_of_a_container_dies(node: Node, images: Images) -> None:
    """The kubelet asks for it by a unified limit."""
    container = node.run_container(
        node.run_pod("together"),
        images["busybox"],
        command=f"sh -c '{SWELL}'; sleep 600",
        resources={
            "memory_limit_in_bytes": 32 * MEBIBYTE,
            "unified": {"memory.oom.group": "1"},
        },
    )
    status = node.wait_exited(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_only_the_devices_of_the_list_can_be_opened(node: Node, images: Images) -> None:
    script = "mknod /tmp/kmsg c 1 11 && mknod /tmp/zero c 1 5; head -c 1 /tmp/zero | wc -c;"
    script += " head -c 1 /tmp/kmsg 2>&1 | grep -o 'not permitted'"
    output = node.run_to_end(node.run_pod("devices"), images["busybox"], command=script)
    assert output.splitlines() == ["1", "not permitted"]


def test_a_session_s_group_is_below_the_container_s_and_goes(node: Node, images: Images) -> None:
    container = node.run_container(
        node.run_pod("sessions"), images["busybox"], command=["sleep", "60"]
    )
    (own,) = Path(f"/proc/{node.pid(container)}/cgroup").read_text().splitlines()
    folder = ROOT / own.removeprefix("0::/")
    assert node.shell(container, "cat /proc/self/cgroup").startswith("0::/exec-")
    assert not [path.name for path in folder.iterdir() if path.is_dir()]


@pytest.fixture
def huge_pages() -> Iterator[str]:
    """Four huge pages of 2 MiB. Yields the folder of a file system on them."""
    number = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if "hugetlb" not in (ROOT / "cgroup.controllers").read_text().split() or not number.exists():
        pytest.skip("needs huge pages of 2 MiB and their controller")
    before = number.read_text()
    number.write_text("4")
    try:
        if number.read_text() != "4\n":
            pytest.skip("the kernel has not four huge pages to give")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["mount", "-t", "hugetlbfs", "huge", folder], check=True)
            try:
                yield folder
            finally:
                subprocess.run(["umount", folder], check=True)
    finally:
        number.write_text(before)


def test_no_more_huge_pages_are_given_than_the_limit(
    node: Node, images: Images, huge_pages: str
) -> None:
    pod = node.run_pod("huge")
    limit = {"page_size": "2MB", "limit": 4 * MEBIBYTE}
    container = node.run_container(
        pod,
        images["busybox"],
        command=["sleep", "600"],
        mounts=[{"container_path": "/huge", "host_path": huge_pages}],
        resources={"hugepage_limits": [limit]},
    )
    assert node.exec(container, "fallocate", "-l", "4194304", "/huge/two").exit_code == 0
    assert node.exec(container, "fallocate", "-l", "4194304", "/huge/too-many").exit_code != 0
