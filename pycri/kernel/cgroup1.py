# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 1 (Documentation/admin-guide/cgroup-v1)."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress

from pycri.kernel import cgroups, counters
from pycri.model.plan import DeviceRule
from pycri.model.stats import (
    CpuUsage,
    DeviceIo,
    GroupDetail,
    GroupUsage,
    HugePages,
    MemoryUsage,
    SwapUsage,
)

_LIST_BYTES = 65536
"""More than the list of any machine's processors takes."""


def create(directory: str) -> None:
    """Make a group and its parents. New cpuset groups get their parent's cpus and nodes.

    A cpuset group without them cannot take processes ("cpusets.rst", 1.3).
    """
    try:
        os.mkdir(directory)
    except FileExistsError:
        return
    except FileNotFoundError:
        create(os.path.dirname(directory))
        create(directory)
        return
    # ENOENT: the hierarchy of another controller.
    with suppress(FileNotFoundError):
        for name in ("cpuset.cpus", "cpuset.mems"):
            _inherit(directory, name)


def _inherit(directory: str, name: str) -> bytes:
    """Fill an empty cpuset file from the parent's, and that one first. Returns the content."""
    fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(fd, _LIST_BYTES).strip()
    finally:
        os.close(fd)
    if not content:
        content = _inherit(os.path.dirname(directory), name)
        cgroups.write(f"{directory}/{name}", content.decode())
    return content


def open_door(directory: str) -> int:
    """Open the file by which a process of one thread joins the group: by writing b"0" there.

    Returns a descriptor, close-on-exec, caller closes. It is `tasks` instead of
    `cgroup.procs`: for the calling thread alone the kernel skips the lock that keeps whole
    processes still, whose first taker waits for an RCU grace period. Measured for nine hierarchies:
    0.5 ms instead of 11 (cgroup_procs_write_start in kernel/cgroup/cgroup.c).
    """
    return os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)


def allow_devices(directory: str, rules: tuple[DeviceRule, ...]) -> None:
    """Deny all devices, then allow `rules` ("devices.rst")."""
    cgroups.write(f"{directory}/devices.deny", "a")
    for rule in rules:
        cgroups.write(f"{directory}/devices.allow", str(rule))


def kill(directory: str) -> None:
    """Send SIGKILL to every process of the group and below; an absent group has none.

    In the freezer hierarchy the group stands still meanwhile, so that none can fork away.
    """
    freezer = f"{directory}/freezer.state"
    if not os.path.exists(freezer):
        _kill_all(directory)
        return
    cgroups.write(freezer, "FROZEN")
    try:
        # FREEZING is enough: every task is stopped or about to be, at the next return to user mode.
        _kill_all(directory)
    finally:
        cgroups.write(freezer, "THAWED")


def oom_kills(memory: str) -> int:
    """Return how often the kernel killed a process of this memory group for lack of memory."""
    return cgroups.read_counter(f"{memory}/memory.oom_control", "oom_kill")


def read_usage(directories: Mapping[str, str]) -> GroupUsage:
    """Read what a group uses. directories: its own in the hierarchy of each controller.

    Numbers of memory.stat are those with the groups below ("memory.rst", 5.2). Version 1 knows no
    pressure.
    """
    now_ns = time.time_ns()
    used_ns = read_cpu_ns(directories.get("cpuacct", ""))
    memory = directories.get("memory", "")
    used, stat = counters.read(f"{memory}/memory.usage_in_bytes"), _read_stat(memory)
    limit = counters.read(f"{memory}/memory.limit_in_bytes")
    if used is None or limit is None or not stat:
        return GroupUsage(timestamp_ns=now_ns, cpu=_cpu(used_ns))
    limit_bytes = counters.parse_limit(limit)
    return GroupUsage(
        timestamp_ns=now_ns,
        cpu=_cpu(used_ns),
        memory=MemoryUsage(
            used_bytes=int(used),
            limit_bytes=limit_bytes,
            inactive_file_bytes=stat.get("total_inactive_file", 0),
            rss_bytes=stat.get("total_rss", 0),
            page_faults=stat.get("total_pgfault", 0),
            major_page_faults=stat.get("total_pgmajfault", 0),
        ),
        swap=_read_swap(memory, limit_bytes, stat.get("total_swap")),
    )


def read_cpu_ns(directory: str) -> int | None:
    """Read the CPU time a group has used; None if it is not there."""
    return counters.read_number(f"{directory}/cpuacct.usage")


def read_detail(directories: Mapping[str, str], hugepage_sizes: tuple[str, ...]) -> GroupDetail:
    """Read what metrics tell beyond the usage. hugepage_sizes: as in file names, "2MB"."""
    cpuacct, memory = directories.get("cpuacct", ""), directories.get("memory", "")
    cpu = counters.parse_numbers(counters.read(f"{directories.get('cpu', '')}/cpu.stat") or "")
    stat = _read_stat(memory)
    return GroupDetail(
        cpu_user_ns=counters.read_number(f"{cpuacct}/cpuacct.usage_user"),
        cpu_system_ns=counters.read_number(f"{cpuacct}/cpuacct.usage_sys"),
        cpu_periods=cpu.get("nr_periods"),
        cpu_throttled_periods=cpu.get("nr_throttled"),
        cpu_throttled_ns=cpu.get("throttled_time"),
        cache_bytes=stat.get("total_cache"),
        mapped_file_bytes=stat.get("total_mapped_file"),
        active_file_bytes=stat.get("total_active_file"),
        kernel_bytes=counters.read_number(f"{memory}/memory.kmem.usage_in_bytes"),
        most_memory_bytes=counters.read_number(f"{memory}/memory.max_usage_in_bytes"),
        limit_hits=_read_limit_hits(memory),
        oom_kills=oom_kills(memory) if stat else None,
        threads=counters.read_number(f"{directories.get('pids', '')}/pids.current"),
        threads_limit=counters.read_limit(f"{directories.get('pids', '')}/pids.max"),
        huge_pages=_read_huge_pages(directories.get("hugetlb", ""), hugepage_sizes),
        devices=_read_devices(directories.get("blkio", "")),
    )


def _read_limit_hits(memory: str) -> int | None:
    """Memory is charged to memory plus swap first: with equal limits only that one is hit."""
    hits = counters.read_number(f"{memory}/memory.failcnt")
    if hits is None:
        return None
    return hits + (counters.read_number(f"{memory}/memory.memsw.failcnt") or 0)


def _read_huge_pages(directory: str, sizes: tuple[str, ...]) -> tuple[HugePages, ...]:
    found = []
    for size in sizes:
        used_bytes = counters.read_number(f"{directory}/hugetlb.{size}.usage_in_bytes")
        most_bytes = counters.read_number(f"{directory}/hugetlb.{size}.max_usage_in_bytes")
        if used_bytes is not None:
            found.append(HugePages(size=size, used_bytes=used_bytes, most_bytes=most_bytes))
    return tuple(found)


def _read_devices(directory: str) -> tuple[DeviceIo, ...]:
    """Read the counters of the scheduler that counts, else of the throttle ("blkio-controller")."""
    for kind in ("bfq", "throttle"):
        size = counters.read(f"{directory}/blkio.{kind}.io_service_bytes_recursive")
        count = counters.read(f"{directory}/blkio.{kind}.io_serviced_recursive")
        if devices := counters.parse_blkio(size or "", count or ""):
            return devices
    return ()


def _read_stat(memory: str) -> dict[str, int]:
    return counters.parse_numbers(counters.read(f"{memory}/memory.stat") or "")


def _cpu(used_ns: int | None) -> CpuUsage | None:
    return None if used_ns is None else CpuUsage(used_ns=used_ns)


def _read_swap(memory: str, limit_bytes: int | None, used_bytes: int | None) -> SwapUsage | None:
    """Both limits are of memory and of memory plus swap: the difference is that of swap alone."""
    if used_bytes is None:
        return None  # no accounting of swap
    text = counters.read(f"{memory}/memory.memsw.limit_in_bytes")
    both_bytes = counters.parse_limit(text) if text else None
    if both_bytes is None or limit_bytes is None:
        return SwapUsage(used_bytes=used_bytes, limit_bytes=None)
    return SwapUsage(used_bytes=used_bytes, limit_bytes=max(0, both_bytes - limit_bytes))


def _kill_all(directory: str) -> None:
    for pid in cgroups.processes(directory):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
