# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.resources import HugepageLimit, Resources
from pycri.plan.updates import (
    check_memory,
    field_of,
    held_bytes,
    merge_resources,
    order_writes,
    plan_update,
    restored_value,
)
from tests.unit.plan.samples import host_v1, host_v2

MIB = 1 << 20


def names(writes: tuple[tuple[str, str], ...]) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in writes]


def test_what_is_not_asked_for_stays() -> None:
    current = Resources(cpu_shares=512, memory_limit_bytes=MIB, oom_score_adj=7, cpuset_cpus="0")
    merged = merge_resources(current, Resources(cpu_shares=1024))
    expected = Resources(cpu_shares=1024, memory_limit_bytes=MIB, oom_score_adj=7, cpuset_cpus="0")
    assert merged == expected
    assert merge_resources(current, Resources()) == current


def test_huge_pages_and_unified_limits_are_changed_one_by_one() -> None:
    small = HugepageLimit(page_size="2MB", limit_bytes=2 * MIB)
    large = HugepageLimit(page_size="1GB", limit_bytes=0)
    current = Resources(hugepage_limits=(small, large), unified={"memory.high": "1", "io.max": ""})
    changed = HugepageLimit(page_size="2MB", limit_bytes=0)
    asked = Resources(hugepage_limits=(changed,), unified={"memory.high": "2"})
    merged = merge_resources(current, asked)
    assert merged.hugepage_limits == (changed, large)
    assert merged.unified == {"memory.high": "2", "io.max": ""}


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        (Resources(), []),
        (Resources(cpu_shares=2), ["cpu.weight"]),
        (Resources(cpu_quota_us=20_000), ["cpu.max"]),
        (Resources(memory_limit_bytes=128 * MIB), ["memory.max", "memory.swap.max"]),
        (Resources(memory_swap_limit_bytes=-1), ["memory.max", "memory.swap.max"]),
        (Resources(cpuset_mems="0"), ["cpuset.mems"]),
        (Resources(unified={"memory.high": "9"}), ["memory.high"]),
        (Resources(oom_score_adj=5), []),
    ],
)
def test_only_files_that_the_change_is_about_are_written(
    asked: Resources, files: list[str]
) -> None:
    current = Resources(
        cpu_shares=512, cpu_quota_us=10_000, cpuset_cpus="0", memory_limit_bytes=64 * MIB
    )
    merged = merge_resources(current, asked)
    assert names(plan_update(merged, asked, "/c", host_v2())) == files


def test_a_new_quota_keeps_the_period_of_before() -> None:
    """cgroup-v2.rst, CPU Interface Files: cpu.max is "$MAX $PERIOD", one file for both."""
    merged = Resources(cpu_quota_us=10_000, cpu_period_us=50_000)
    asked = Resources(cpu_quota_us=10_000)
    ((_, value),) = plan_update(merged, asked, "/c", host_v2())
    assert value == "10000 50000"


def test_memory_above_the_swap_limit_of_before_is_refused_by_field() -> None:
    current = Resources(memory_limit_bytes=64 * MIB, memory_swap_limit_bytes=96 * MIB)
    asked = Resources(memory_limit_bytes=128 * MIB)
    with pytest.raises(InvalidRequest) as caught:
        plan_update(merge_resources(current, asked), asked, "/c", host_v1())
    assert caught.value.field == "linux.memory_swap_limit_in_bytes"


def test_unified_limits_of_an_update_need_version_2_too() -> None:
    asked = Resources(unified={"pids.max": "5"})
    with pytest.raises(Unsupported, match=r"^linux\.unified"):
        plan_update(asked, asked, "/c", host_v1())


SUMS = (64, 96, 128, 256)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pair
        for pair in itertools.product(itertools.product(SUMS, SUMS), repeat=2)
        if pair[0][0] <= pair[0][1] and pair[1][0] <= pair[1][1]
    ],
)
def test_memory_never_passes_the_sum_on_the_way_there_and_back(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    """cgroup-v1/memory.rst, Swap Extension: memory.limit_in_bytes is at most memory.memsw's."""
    files = ("/c/memory.limit_in_bytes", "/c/memory.memsw.limit_in_bytes")
    state = dict(zip(files, map(str, old), strict=True))
    writes = tuple(zip(files, map(str, new), strict=True))
    for path, value in order_writes(writes, state):
        state[path] = value
        assert int(state[files[0]]) <= int(state[files[1]])
    assert [state[file] for file in files] == [str(value) for value in new]


CPU = ((50_000, 25_000), (100_000, 25_000), (100_000, 50_000), (200_000, 20_000))


@pytest.mark.parametrize(("old", "new"), [*itertools.product(CPU, CPU)])
def test_a_share_of_time_is_never_above_both_ends_of_a_change(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    """scheduler/sched-bwc.rst, "Hierarchical considerations": quota by period of a child is at
    most its parent's, which may be just what the larger of the two needs."""
    files = ("/c/cpu.cfs_period_us", "/c/cpu.cfs_quota_us")
    state = dict(zip(files, map(str, old), strict=True))
    highest = max(old[1] / old[0], new[1] / new[0])
    for path, value in order_writes(tuple(zip(files, map(str, new), strict=True)), state):
        state[path] = value
        assert int(state[files[1]]) / int(state[files[0]]) <= highest


def test_an_unlimited_sum_of_before_takes_memory_first() -> None:
    writes = (("/c/memory.limit_in_bytes", "1"), ("/c/memory.memsw.limit_in_bytes", "2"))
    old = {path: "9223372036854771712" for path, _ in writes}
    assert order_writes(writes, old) == writes


def test_limits_of_devices_come_last() -> None:
    writes = (("/c/io.max", "8:0 rbps=1"), ("/c/memory.high", "1"), ("/c/cpu.weight", "5"))
    assert names(order_writes(writes, {}))[-1] == "io.max"


def test_a_limit_below_what_is_held_is_refused_by_field() -> None:
    for file in ("memory.max", "memory.limit_in_bytes"):
        writes = ((f"/c/{file}", str(MIB)),)
        check_memory(writes, MIB)
        with pytest.raises(InvalidRequest) as caught:
            check_memory(writes, MIB + 1)
        assert caught.value.field == "linux.memory_limit_in_bytes"
    check_memory((("/c/memory.max", "max"), ("/c/cpu.weight", "1")), MIB)


def test_pages_of_files_are_not_held() -> None:
    """cgroup-v1/memory.rst, stat file: "total_" is with what lies below, as all is in version 2."""
    assert held_bytes(100, {"inactive_file": 30, "active_file": 20}) == 50
    stat = {"inactive_file": 1, "total_inactive_file": 30, "total_active_file": 20}
    assert held_bytes(100, stat) == 50
    assert held_bytes(10, {"inactive_file": 30}) == 0


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/a/cpu.max", "cpu_quota"),
        ("/a/cpu.weight", "cpu_shares"),
        ("/a/hugetlb.2MB.rsvd.max", "hugepage_limits"),
        ("/a/memory.swap.max", "memory_swap_limit_in_bytes"),
        ("/a/memory.high", "unified[memory.high]"),
    ],
)
def test_each_file_has_its_field(path: str, field: str) -> None:
    assert field_of(path) == field


def test_old_content_is_brought_back_line_by_line() -> None:
    assert restored_value("max 100000") == ("max 100000",)
    assert restored_value("8:0 rbps=1\n8:16 rbps=2") == ("8:0 rbps=1", "8:16 rbps=2")
    assert restored_value("") == ("\n",)
