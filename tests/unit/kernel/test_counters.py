# SPDX-License-Identifier: Apache-2.0
"""Counter files of the kernel, as real kernels write them."""

from pathlib import Path

import msgspec
import pytest

from pycri.kernel import cgroup1, cgroup2, counters, tasks
from pycri.model.stats import GroupDetail, PressureLine

PRESSURE = """\
some avg10=1.50 avg60=0.25 avg300=0.01 total=2243766404
full avg10=0.00 avg60=0.00 avg300=0.00 total=7
"""
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     112       2    0    0    0     0          0         0      112       2    0    0    0
  pc4d:12345678    4321    1    2    0     0          0         0 87654321    1234    3    4    0
"""
V1_STAT = """\
cache 10
rss 20
inactive_file 5
hierarchical_memory_limit 9223372036854771712
total_cache 4000
total_rss 3000
total_swap 2000
total_pgfault 77
total_pgmajfault 7
total_inactive_file 1000
"""
V2_STAT = """\
anon 3000
file 4000
inactive_file 1000
pgfault 77
pgmajfault 7
"""


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max\n", None),
        ("9223372036854771712\n", None),
        ("0\n", 0),
        ("67108864\n", 67108864),
        ("4611686018427387903\n", (1 << 62) - 1),
    ],
)
def test_a_limit_is_a_number_or_none(text: str, limit: int | None) -> None:
    assert counters.parse_limit(text) == limit


def test_pressure_is_in_nanoseconds() -> None:
    pressure = counters.parse_pressure(PRESSURE)
    assert pressure.some == PressureLine(avg10=1.5, avg60=0.25, avg300=0.01, total_ns=2243766404000)
    assert pressure.full.total_ns == 7000
    # Kernels before 5.13 have no "full" for the CPU.
    assert counters.parse_pressure(PRESSURE.splitlines()[0]).full == PressureLine()


def test_an_interface_s_bytes_may_follow_its_name_without_a_space() -> None:
    found = counters.parse_interfaces(NET_DEV)
    assert set(found) == {"lo", "pc4d"}
    link = found["pc4d"]
    assert (link.rx_bytes, link.rx_packets, link.rx_errors, link.rx_dropped) == (
        12345678,
        4321,
        1,
        2,
    )
    assert (link.tx_bytes, link.tx_packets, link.tx_errors, link.tx_dropped) == (
        87654321,
        1234,
        3,
        4,
    )


def test_a_missing_file_is_none_and_a_group_without_files_has_no_usage(tmp_path: Path) -> None:
    assert counters.read(str(tmp_path / "absent")) is None
    directories = {"memory": str(tmp_path), "cpuacct": str(tmp_path)}
    for usage in (cgroup1.read_usage(directories), cgroup2.read_usage(str(tmp_path))):
        assert usage.timestamp_ns > 0
        assert (usage.cpu, usage.memory, usage.swap, usage.io_pressure) == (None,) * 4


def write_files(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


def test_version_1_counts_the_groups_below_and_derives_swap(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path,
        cpuacct__usage="123456789\n",
        memory__usage_in_bytes="9000\n",
        memory__limit_in_bytes="10000\n",
        memory__stat=V1_STAT,
        memory__memsw__limit_in_bytes="15000\n",
    )
    usage = cgroup1.read_usage({"memory": folder, "cpuacct": folder})
    assert usage.cpu is not None
    assert usage.cpu.used_ns == 123456789
    memory, swap = usage.memory, usage.swap
    assert memory is not None
    assert (memory.working_set_bytes, memory.available_bytes) == (8000, 2000)
    assert (memory.rss_bytes, memory.page_faults, memory.major_page_faults) == (3000, 77, 7)
    assert swap is not None
    assert (swap.used_bytes, swap.available_bytes) == (2000, 3000)
    assert usage.io_pressure is memory.pressure is usage.cpu.pressure is None


def test_version_1_without_limits_has_nothing_available(tmp_path: Path) -> None:
    unlimited = "9223372036854771712\n"
    folder = write_files(
        tmp_path,
        memory__usage_in_bytes="9000\n",
        memory__limit_in_bytes=unlimited,
        memory__stat=V1_STAT,
        memory__memsw__limit_in_bytes=unlimited,
    )
    usage = cgroup1.read_usage({"memory": folder})
    assert usage.cpu is None
    assert usage.memory is not None
    assert usage.memory.available_bytes is None
    assert usage.swap is not None
    assert usage.swap.available_bytes is None


def test_version_2_has_pressure_and_swap_of_its_own(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path,
        cpu__stat="usage_usec 5\nuser_usec 3\nsystem_usec 2\n",
        cpu__pressure=PRESSURE,
        memory__current="9000\n",
        memory__max="max\n",
        memory__stat=V2_STAT,
        memory__pressure=PRESSURE,
        memory__swap__current="200\n",
        memory__swap__max="100\n",
        io__pressure=PRESSURE,
    )
    usage = cgroup2.read_usage(folder)
    assert usage.cpu is not None
    assert usage.cpu.used_ns == 5000
    assert usage.memory is not None
    assert (usage.memory.working_set_bytes, usage.memory.rss_bytes) == (8000, 3000)
    assert usage.memory.available_bytes is None
    assert usage.swap is not None
    assert usage.swap.available_bytes == 0
    for pressure in (usage.cpu.pressure, usage.memory.pressure, usage.io_pressure):
        assert pressure is not None
        assert pressure.full.total_ns == 7000


def test_blkio_of_version_1_is_read_by_device() -> None:
    sizes = "250:0 Read 4096\n250:0 Write 8192\n250:0 Sync 0\n250:0 Total 12288\nTotal 12288\n"
    counts = "250:0 Read 1\n250:0 Write 2\n250:0 Total 3\nTotal 3\n"
    (device,) = counters.parse_blkio(sizes, counts)
    assert (device.device, device.major, device.minor) == ("250:0", 250, 0)
    assert (device.read_bytes, device.write_bytes, device.reads, device.writes) == (
        4096,
        8192,
        1,
        2,
    )
    assert counters.parse_blkio("Total 0\n", "Total 0\n") == ()


def test_io_stat_of_version_2_may_have_more_keys_and_lines_without_any() -> None:
    text = "250:0 rbytes=5 wbytes=6 rios=7 wios=8 dbytes=0 dios=0\n250:16 \n250:32 cost.usage=1\n"
    (device,) = counters.parse_io_stat(text)
    assert (device.read_bytes, device.write_bytes, device.reads, device.writes) == (5, 6, 7, 8)


def test_soft_limits_are_named_by_words_and_unlimited_ones_left_out() -> None:
    text = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
Max nice priority         0                    0
"""
    assert tasks.parse_soft_limits(text) == {"max_open_files": 1024, "max_nice_priority": 0}


def test_details_of_both_versions_are_the_same_facts(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    write_files(
        one,
        cpuacct__usage_user="3000\n",
        cpuacct__usage_sys="2000\n",
        cpu__stat="nr_periods 9\nnr_throttled 4\nthrottled_time 6000\n",
        memory__stat=V1_STAT + "total_mapped_file 12\ntotal_active_file 13\n",
        memory__kmem__usage_in_bytes="14\n",
        memory__max_usage_in_bytes="15\n",
        memory__failcnt="10\n",
        memory__memsw__failcnt="6\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 17\n",
        pids__current="18\n",
        pids__max="max\n",
        hugetlb__2MB__usage_in_bytes="19\n",
        hugetlb__2MB__max_usage_in_bytes="20\n",
        blkio__throttle__io_service_bytes_recursive="250:0 Read 21\n",
        blkio__throttle__io_serviced_recursive="250:0 Read 22\n",
    )
    write_files(
        two,
        cpu__stat="usage_usec 5\nuser_usec 3\nsystem_usec 2\n"
        "nr_periods 9\nnr_throttled 4\nthrottled_usec 6\n",
        memory__stat=V2_STAT + "file_mapped 12\nactive_file 13\nslab 10\nkernel_stack 4\n",
        memory__peak="15\n",
        memory__events="low 0\nmax 16\noom 0\noom_kill 17\n",
        pids__current="18\n",
        pids__max="max\n",
        hugetlb__2MB__current="19\n",
        io__stat="250:0 rbytes=21 wbytes=0 rios=22 wios=0\n",
    )
    names = ("cpu", "cpuacct", "memory", "pids", "hugetlb", "blkio")
    first = cgroup1.read_detail(dict.fromkeys(names, str(one)), ("2MB", "1GB"))
    second = cgroup2.read_detail(str(two), ("2MB", "1GB"))
    assert first.huge_pages[0].most_bytes == 20
    pages = msgspec.structs.replace(first.huge_pages[0], most_bytes=None)
    assert msgspec.structs.replace(first, huge_pages=(pages,)) == second
    assert (first.cpu_user_ns, first.limit_hits, first.oom_kills, first.threads) == (
        3000, 16, 17, 18,
    )  # fmt: skip
    assert first.threads_limit is None
    assert cgroup1.read_detail({}, ()) == cgroup2.read_detail(str(tmp_path), ()) == GroupDetail()
