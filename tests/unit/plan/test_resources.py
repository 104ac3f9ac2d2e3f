# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.host import HostFacts
from pycri.model.resources import HugepageLimit, Resources
from pycri.plan.resources import cpu_weight, oom_score_adj, plan_limits, swap_max
from tests.unit.plan.samples import host_v1, host_v2

MIB = 1 << 20
FIELD = "config.linux.resources"


def limits(resources: Resources, host: HostFacts) -> dict[str, str]:
    """Return the writes by file name, having checked that all are in the group."""
    writes = plan_limits(resources, "/pod/c", host)
    assert all(path.rpartition("/")[0].endswith("/pod/c") for path, _ in writes)
    return {path.rpartition("/")[2]: value for path, value in writes}


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        (0, 1),
        (2, 1),
        (3, 2),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262_144, 10_000),
        (1 << 30, 10_000),
    ],
)
def test_shares_become_the_weight_that_keeps_the_defaults(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


def test_weights_never_fall_as_shares_rise() -> None:
    weights = [cpu_weight(shares) for shares in range(2, 262_145, 97)]
    assert weights == sorted(weights)
    assert weights[-1] <= 10_000


def test_swap_is_what_lies_above_memory() -> None:
    assert swap_max(100, 150) == 50
    assert swap_max(100, 100) == 0
    assert swap_max(100, 0) == 0
    assert swap_max(100, -1) == -1


@pytest.mark.parametrize(("limit", "swap"), [(100, 99), (0, 100), (-1, 100)])
def test_swap_below_memory_or_without_it_is_refused(limit: int, swap: int) -> None:
    resources = Resources(memory_limit_bytes=limit, memory_swap_limit_bytes=swap)
    for host in (host_v1(), host_v2(swap_limits=False)):
        with pytest.raises(InvalidRequest) as caught:
            plan_limits(resources, "/c", host)
        assert caught.value.field == f"{FIELD}.memory_swap_limit_in_bytes"


def test_nothing_asked_writes_nothing() -> None:
    assert limits(Resources(), host_v1()) == {}
    assert limits(Resources(), host_v2()) == {}


@pytest.mark.parametrize(
    ("period", "quota", "expected"),
    [
        (50_000, 25_000, "25000 50000"),
        (0, 25_000, "25000 100000"),
        (50_000, 0, "max 50000"),
        (50_000, -1, "max 50000"),
    ],
)
def test_cpu_max_joins_quota_and_period(period: int, quota: int, expected: str) -> None:
    resources = Resources(cpu_period_us=period, cpu_quota_us=quota)
    assert limits(resources, host_v2()) == {"cpu.max": expected}


def test_memory_limits_on_version_2_count_swap_alone() -> None:
    resources = Resources(memory_limit_bytes=64 * MIB, memory_swap_limit_bytes=96 * MIB)
    expected = {"memory.max": str(64 * MIB), "memory.swap.max": str(32 * MIB)}
    assert limits(resources, host_v2()) == expected
    assert limits(resources, host_v2(swap_limits=False)) == {"memory.max": str(64 * MIB)}


def test_unlimited_memory_is_the_word_max_on_version_2() -> None:
    resources = Resources(memory_limit_bytes=-1, memory_swap_limit_bytes=-1)
    assert limits(resources, host_v2()) == {"memory.max": "max", "memory.swap.max": "max"}
    assert limits(Resources(memory_limit_bytes=-1), host_v2()) == {"memory.max": "max"}


def test_memory_comes_before_memory_and_swap_on_version_1() -> None:
    resources = Resources(memory_limit_bytes=64 * MIB)
    files = [path.rpartition("/")[2] for path, _ in plan_limits(resources, "/c", host_v1())]
    assert files == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    assert list(limits(resources, host_v1(swap_limits=False))) == ["memory.limit_in_bytes"]


def test_cpus_and_nodes_are_written_as_they_are() -> None:
    resources = Resources(cpuset_cpus="0-1", cpuset_mems="0")
    assert limits(resources, host_v2()) == {"cpuset.cpus": "0-1", "cpuset.mems": "0"}


@pytest.mark.parametrize(
    ("resources", "controller"),
    [
        (Resources(cpu_shares=2), "cpu"),
        (Resources(memory_limit_bytes=MIB), "memory"),
        (Resources(cpuset_cpus="0"), "cpuset"),
    ],
)
def test_a_limit_without_its_controller_is_unsupported(
    resources: Resources, controller: str
) -> None:
    bare = frozenset[str]()
    # The second has the fact but no hierarchy: as broken, and no KeyError.
    odd = host_v1(cgroup1_mounts={}, cgroup_controllers=frozenset((controller,)))
    for host in (host_v2(cgroup_controllers=bare), host_v1(cgroup_controllers=bare), odd):
        with pytest.raises(Unsupported, match=f"'{controller}'"):
            plan_limits(resources, "/c", host)


def test_huge_pages_are_limited_in_use_and_in_reserve() -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=4 * MIB),))
    expected = {"hugetlb.2MB.max": str(4 * MIB), "hugetlb.2MB.rsvd.max": str(4 * MIB)}
    assert limits(resources, host_v2()) == expected


def test_huge_pages_without_their_controller_are_tolerated() -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=0),))
    assert limits(resources, host_v1()) == {}


def test_huge_pages_of_an_unknown_size_are_refused() -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size="../x", limit_bytes=0),))
    with pytest.raises(InvalidRequest) as caught:
        plan_limits(resources, "/c", host_v2())
    assert caught.value.field == f"{FIELD}.hugepage_limits[0].page_size"


def test_unified_limits_are_written_last() -> None:
    resources = Resources(memory_limit_bytes=MIB, unified={"memory.oom.group": "1"})
    assert list(limits(resources, host_v2()))[-1] == "memory.oom.group"


@pytest.mark.parametrize(
    "key",
    ["../memory.max", "memory/../x.max", "memory", "cgroup.procs", ".max", "memory.max\n", ""],
)
def test_a_unified_key_that_is_no_limit_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_limits(Resources(unified={key: "1"}), "/c", host_v2())
    assert caught.value.field == f"{FIELD}.unified[{key}]"


def test_unified_limits_need_version_2() -> None:
    with pytest.raises(Unsupported, match="unified"):
        plan_limits(Resources(unified={"memory.high": "1"}), "/c", host_v1())


def test_the_oom_score_is_raised_to_what_root_may_write() -> None:
    assert oom_score_adj(Resources(oom_score_adj=-997), host_v2()) == -997
    assert oom_score_adj(Resources(oom_score_adj=-997), host_v2(min_oom_score_adj=0)) == 0
    assert oom_score_adj(Resources(oom_score_adj=1000), host_v2(min_oom_score_adj=0)) == 1000
