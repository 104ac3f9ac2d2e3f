# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2 (Documentation/admin-guide/cgroup-v2.rst)."""

import os
import time

from pycri.kernel import cgroups, counters
from pycri.model.stats import (
    CpuUsage,
    GroupDetail,
    GroupUsage,
    HugePages,
    MemoryUsage,
    Pressure,
    SwapUsage,
)


def create(directory: str, root: str, controllers: tuple[str, ...]) -> None:
    """Make a group and its parents below `root`, the controllers enabled in every parent."""
    missing = os.path.relpath(directory, root).split("/")
    current = root
    for name in missing:
        enabled = set(_read(f"{current}/cgroup.subtree_control").split())
        wanted = [f"+{controller}" for controller in controllers if controller not in enabled]
        if wanted:
            cgroups.write(f"{current}/cgroup.subtree_control", " ".join(wanted))
        current = f"{current}/{name}"
        os.makedirs(current, exist_ok=True)


def open_door(directory: str) -> int:
    """Open the file by which a process joins the group: by writing b"0" there.

    Returns a descriptor, close-on-exec, caller closes.
    """
    return os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)


def kill(directory: str) -> None:
    """Send SIGKILL to every process of the group and below, also to those being forked."""
    try:
        cgroups.write(f"{directory}/cgroup.kill", "1")
    except FileNotFoundError:
        return


def oom_kills(directory: str) -> int:
    """Return how often the kernel killed a process of this group for lack of memory."""
    return cgroups.read_counter(f"{directory}/memory.events", "oom_kill")


def read_usage(directory: str) -> GroupUsage:
    """Read what a group and those below it use."""
    return GroupUsage(
        timestamp_ns=time.time_ns(),
        cpu=_read_cpu(directory),
        memory=_read_memory(directory),
        swap=_read_swap(directory),
        io_pressure=_read_pressure(directory, "io"),
    )


def read_detail(directory: str, hugepage_sizes: tuple[str, ...]) -> GroupDetail:
    """Read what metrics tell beyond the usage. hugepage_sizes: as in file names, "2MB"."""
    cpu = counters.parse_numbers(counters.read(f"{directory}/cpu.stat") or "")
    stat = counters.parse_numbers(counters.read(f"{directory}/memory.stat") or "")
    events = counters.parse_numbers(counters.read(f"{directory}/memory.events") or "")
    throttled_us = cpu.get("throttled_usec")
    return GroupDetail(
        cpu_user_ns=cpu["user_usec"] * 1000 if cpu else None,
        cpu_system_ns=cpu["system_usec"] * 1000 if cpu else None,
        cpu_periods=cpu.get("nr_periods"),
        cpu_throttled_periods=cpu.get("nr_throttled"),
        cpu_throttled_ns=None if throttled_us is None else throttled_us * 1000,
        cache_bytes=stat.get("file"),
        mapped_file_bytes=stat.get("file_mapped"),
        active_file_bytes=stat.get("active_file"),
        kernel_bytes=_kernel_bytes(stat),
        most_memory_bytes=counters.read_number(f"{directory}/memory.peak"),
        limit_hits=events.get("max"),
        oom_kills=events.get("oom_kill"),
        threads=counters.read_number(f"{directory}/pids.current"),
        threads_limit=counters.read_limit(f"{directory}/pids.max"),
        huge_pages=tuple(
            HugePages(size=size, used_bytes=used_bytes)
            for size in hugepage_sizes
            if (used_bytes := counters.read_number(f"{directory}/hugetlb.{size}.current"))
            is not None
        ),
        devices=counters.parse_io_stat(counters.read(f"{directory}/io.stat") or ""),
    )


def _kernel_bytes(stat: dict[str, int]) -> int | None:
    """Return "kernel", which Linux 5.18 and newer tell, else the sum of what older ones tell."""
    if not stat:
        return None
    parts = ("slab", "kernel_stack", "pagetables", "percpu", "sec_pagetables", "vmalloc")
    return stat.get("kernel", sum(stat.get(part, 0) for part in parts))


def read_cpu_ns(directory: str) -> int | None:
    """Read the CPU time a group has used; None if it is not there."""
    text = counters.read(f"{directory}/cpu.stat")
    return None if text is None else counters.parse_numbers(text)["usage_usec"] * 1000


def _read_cpu(directory: str) -> CpuUsage | None:
    used_ns = read_cpu_ns(directory)
    if used_ns is None:
        return None
    return CpuUsage(used_ns=used_ns, pressure=_read_pressure(directory, "cpu"))


def _read_memory(directory: str) -> MemoryUsage | None:
    used = counters.read(f"{directory}/memory.current")
    limit = counters.read(f"{directory}/memory.max")
    text = counters.read(f"{directory}/memory.stat")
    if used is None or limit is None or text is None:
        return None
    stat = counters.parse_numbers(text)
    return MemoryUsage(
        used_bytes=int(used),
        limit_bytes=counters.parse_limit(limit),
        inactive_file_bytes=stat["inactive_file"],
        rss_bytes=stat["anon"],
        page_faults=stat["pgfault"],
        major_page_faults=stat["pgmajfault"],
        pressure=_read_pressure(directory, "memory"),
    )


def _read_swap(directory: str) -> SwapUsage | None:
    used = counters.read(f"{directory}/memory.swap.current")
    limit = counters.read(f"{directory}/memory.swap.max")
    if used is None or limit is None:
        return None
    return SwapUsage(used_bytes=int(used), limit_bytes=counters.parse_limit(limit))


def _read_pressure(directory: str, resource: str) -> Pressure | None:
    text = counters.read(f"{directory}/{resource}.pressure")
    return None if text is None else counters.parse_pressure(text)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
