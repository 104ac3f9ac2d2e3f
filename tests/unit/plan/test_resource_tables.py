# SPDX-License-Identifier: Apache-2.0
"""Every limit of the CRI and the writes it becomes, for both versions, by the kernel's documents.

Titles are of Documentation/ in the kernel's source: admin-guide/cgroup-v2.rst for version 2;
admin-guide/cgroup-v1/*.rst and scheduler/*.rst for version 1.
"""

import msgspec
import pytest

from pycri.model.host import HostFacts
from pycri.model.resources import HugepageLimit, Resources
from pycri.plan.resources import plan_limits
from tests.unit.plan.samples import host_v1, host_v2

MIB = 1 << 20
Row = tuple[Resources, list[tuple[str, str]]]
V1_MOUNTS = {
    name: f"/cg/{name}" for name in ("cpu,cpuacct", "cpuset", "memory", "hugetlb", "freezer")
}
V1 = host_v1(
    cgroup1_mounts=V1_MOUNTS,
    cgroup_controllers=frozenset(name for key in V1_MOUNTS for name in key.split(",")),
    hugepage_sizes=("2MB", "1GB"),
)
V2 = host_v2(hugepage_sizes=("2MB", "1GB"))
NO_SWAP_V1 = msgspec.structs.replace(V1, swap_limits=False)
NO_SWAP_V2 = msgspec.structs.replace(V2, swap_limits=False)
TWO = HugepageLimit(page_size="2MB", limit_bytes=4 * MIB)
NONE = HugepageLimit(page_size="1GB", limit_bytes=0)


def check(row: Row, host: HostFacts) -> None:
    resources, expected = row
    writes = plan_limits(resources, "/pod/c", host)
    assert [(path.rpartition("/")[2], value) for path, value in writes] == expected


@pytest.mark.parametrize(
    "row",
    [
        (Resources(cpu_shares=2), [("cpu.weight", "1")]),
        (Resources(cpu_shares=1024), [("cpu.weight", "100")]),
        (Resources(cpu_shares=1 << 18), [("cpu.weight", "10000")]),
        (Resources(cpu_quota_us=50_000), [("cpu.max", "50000 100000")]),
        (Resources(cpu_quota_us=-1), [("cpu.max", "max 100000")]),
        (Resources(cpu_period_us=20_000), [("cpu.max", "max 20000")]),
    ],
)
def test_cpu_on_version_2(row: Row) -> None:
    """cgroup-v2.rst, CPU Interface Files: cpu.weight is in [1, 10000], by default 100; cpu.max is
    "$MAX $PERIOD", "max" for no limit, by default "max 100000"."""
    check(row, V2)


@pytest.mark.parametrize(
    "row",
    [
        (Resources(memory_limit_bytes=MIB), [("memory.max", str(MIB)), ("memory.swap.max", "0")]),
        (
            Resources(memory_limit_bytes=MIB, memory_swap_limit_bytes=3 * MIB),
            [("memory.max", str(MIB)), ("memory.swap.max", str(2 * MIB))],
        ),
        (
            Resources(memory_limit_bytes=MIB, memory_swap_limit_bytes=-1),
            [("memory.max", str(MIB)), ("memory.swap.max", "max")],
        ),
        (Resources(memory_swap_limit_bytes=-1), [("memory.swap.max", "max")]),
    ],
)
def test_memory_on_version_2(row: Row) -> None:
    """cgroup-v2.rst, Memory Interface Files: memory.max and memory.swap.max are bytes or "max";
    the second counts swap alone, the CRI's number counts memory with it."""
    check(row, V2)


def test_memory_on_version_2_without_swap_accounting() -> None:
    """cgroup-v2.rst, Memory Interface Files: memory.swap.* exist only where swap is accounted."""
    both = Resources(memory_limit_bytes=MIB, memory_swap_limit_bytes=3 * MIB)
    check((both, [("memory.max", str(MIB))]), NO_SWAP_V2)


def test_the_rest_on_version_2() -> None:
    """cgroup-v2.rst, Cpuset Interface Files (cpuset.cpus, cpuset.mems: lists of ranges); HugeTLB
    Interface Files (hugetlb.SIZE.max and .rsvd.max in bytes); PID Interface Files (pids.max);
    Memory Interface Files (memory.oom.group, memory.high)."""
    check((Resources(cpuset_cpus="0-3,7"), [("cpuset.cpus", "0-3,7")]), V2)
    check((Resources(cpuset_mems="0"), [("cpuset.mems", "0")]), V2)
    pages = [
        ("hugetlb.2MB.max", str(4 * MIB)),
        ("hugetlb.2MB.rsvd.max", str(4 * MIB)),
        ("hugetlb.1GB.max", "0"),
        ("hugetlb.1GB.rsvd.max", "0"),
    ]
    check((Resources(hugepage_limits=(TWO, NONE)), pages), V2)
    unified = {"pids.max": "100", "memory.oom.group": "1", "memory.high": "max"}
    check((Resources(unified=unified), list(unified.items())), V2)


@pytest.mark.parametrize(
    "row",
    [
        (Resources(cpu_shares=512), [("cpu.shares", "512")]),
        (Resources(cpu_quota_us=50_000), [("cpu.cfs_quota_us", "50000")]),
        (Resources(cpu_quota_us=-1), [("cpu.cfs_quota_us", "-1")]),
        (
            Resources(cpu_period_us=20_000, cpu_quota_us=10_000),
            [("cpu.cfs_period_us", "20000"), ("cpu.cfs_quota_us", "10000")],
        ),
    ],
)
def test_cpu_on_version_1(row: Row) -> None:
    """scheduler/sched-design-CFS.rst, Group scheduler extensions: cpu.shares, by default 1024;
    scheduler/sched-bwc.rst, Management: quota and period in microseconds, a quota of -1 is none."""
    check(row, V1)


@pytest.mark.parametrize(
    "row",
    [
        (
            Resources(memory_limit_bytes=MIB),
            [("memory.limit_in_bytes", str(MIB)), ("memory.memsw.limit_in_bytes", str(MIB))],
        ),
        (
            Resources(memory_limit_bytes=MIB, memory_swap_limit_bytes=3 * MIB),
            [("memory.limit_in_bytes", str(MIB)), ("memory.memsw.limit_in_bytes", str(3 * MIB))],
        ),
        (
            Resources(memory_limit_bytes=MIB, memory_swap_limit_bytes=-1),
            [("memory.limit_in_bytes", str(MIB)), ("memory.memsw.limit_in_bytes", "-1")],
        ),
    ],
)
def test_memory_on_version_1(row: Row) -> None:
    """cgroup-v1/memory.rst, Swap Extension: memsw counts memory plus swap; User Interface: -1
    removes a limit. The sum is written after the memory that it must not be below."""
    check(row, V1)


def test_the_rest_on_version_1() -> None:
    """cgroup-v1/cpusets.rst, Adding/removing cpus: lists of ranges; cgroup-v1/hugetlb.rst:
    hugetlb.SIZE.limit_in_bytes for what is used, .rsvd.limit_in_bytes for what is reserved."""
    check((Resources(cpuset_cpus="0-3,7"), [("cpuset.cpus", "0-3,7")]), V1)
    check((Resources(cpuset_mems="0"), [("cpuset.mems", "0")]), V1)
    pages = [
        ("hugetlb.2MB.limit_in_bytes", str(4 * MIB)),
        ("hugetlb.2MB.rsvd.limit_in_bytes", str(4 * MIB)),
    ]
    check((Resources(hugepage_limits=(TWO,)), pages), V1)
    check((Resources(memory_limit_bytes=MIB), [("memory.limit_in_bytes", str(MIB))]), NO_SWAP_V1)


def test_all_limits_come_in_one_order_on_both_versions() -> None:
    every = Resources(
        cpu_shares=1024,
        cpu_period_us=100_000,
        cpu_quota_us=50_000,
        memory_limit_bytes=MIB,
        cpuset_cpus="0",
        cpuset_mems="0",
        hugepage_limits=(TWO,),
    )
    for host in (V1, V2):
        kinds = [
            path.rpartition("/")[2].split(".")[0] for path, _ in plan_limits(every, "/c", host)
        ]
        assert list(dict.fromkeys(kinds)) == ["cpu", "memory", "cpuset", "hugetlb"]


@pytest.mark.parametrize("name", sorted(set(Resources.__struct_fields__) - {"oom_score_adj"}))
def test_no_limit_is_forgotten_on_either_version(name: str) -> None:
    """oom_score_adj is no limit of a group: proc(5), /proc/PID/oom_score_adj."""
    samples = {
        "cpuset_cpus": "0",
        "cpuset_mems": "0",
        "hugepage_limits": (TWO,),
        "unified": {"pids.max": "5"},
        "memory_swap_limit_bytes": -1,
    }
    resources = msgspec.structs.replace(Resources(), **{name: samples.get(name, 4096)})
    assert plan_limits(resources, "/c", V2)
    if name not in ("unified", "memory_swap_limit_bytes"):
        assert plan_limits(resources, "/c", V1)
