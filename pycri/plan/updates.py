# SPDX-License-Identifier: Apache-2.0
"""A change of the limits of a container that exists: which files, and in which order.

    asked ──merge_resources──▶ all limits ──plan_update──▶ writes
    writes + old values ──order_writes──▶ writes the kernel accepts one by one

A group is never in a state between that the kernel would refuse. Undone in reverse order, it goes
back through the same states. Sources: CRI UpdateContainerResources (0 or "" is "unchanged");
kernel Documentation/admin-guide/cgroup-v1/memory.rst and Documentation/scheduler/sched-bwc.rst.
"""

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.host import HostFacts
from pycri.model.resources import Resources
from pycri.plan.resources import plan_limits

FIELD = "linux"
"""Where UpdateContainerResourcesRequest has the resources."""

_FILE_FIELDS = {
    "cpu.shares": "cpu_shares",
    "cpu.weight": "cpu_shares",
    "cpu.cfs_period_us": "cpu_period",
    "cpu.cfs_quota_us": "cpu_quota",
    "cpu.max": "cpu_quota",
    "cpuset.cpus": "cpuset_cpus",
    "cpuset.mems": "cpuset_mems",
    "memory.limit_in_bytes": "memory_limit_in_bytes",
    "memory.max": "memory_limit_in_bytes",
    "memory.memsw.limit_in_bytes": "memory_swap_limit_in_bytes",
    "memory.swap.max": "memory_swap_limit_in_bytes",
}

_Writes = tuple[tuple[str, str], ...]


def merge_resources(current: Resources, asked: Resources) -> Resources:
    """Return `current` with what `asked` sets; huge pages by their size, unified by the file."""
    set_fields = {
        name: value for name in Resources.__struct_fields__ if (value := getattr(asked, name))
    }
    pages = {page.page_size: page for page in (*current.hugepage_limits, *asked.hugepage_limits)}
    set_fields["hugepage_limits"] = tuple(pages.values())
    set_fields["unified"] = current.unified | asked.unified
    return msgspec.structs.replace(current, **set_fields)


def plan_update(merged: Resources, asked: Resources, path: str, host: HostFacts) -> _Writes:
    """Return the (absolute file, value) writes that bring what `asked` sets into force.

    merged: of `merge_resources`. Only files that `asked` is about are written: the others may
    have been changed by those whose right it is (the kubelet's CPU manager), and stay.
    Raises: InvalidRequest naming the field, Unsupported.
    """
    # Checked as a whole first: a memory limit may not fit the swap limit of before.
    plan_limits(merged, path, host, FIELD)
    cpu = bool(asked.cpu_period_us or asked.cpu_quota_us)
    memory = bool(asked.memory_limit_bytes or asked.memory_swap_limit_bytes)
    touched = msgspec.structs.replace(
        asked,
        cpu_period_us=merged.cpu_period_us if cpu else 0,
        cpu_quota_us=merged.cpu_quota_us if cpu else 0,
        memory_limit_bytes=merged.memory_limit_bytes if memory else 0,
        memory_swap_limit_bytes=merged.memory_swap_limit_bytes if memory else 0,
    )
    return plan_limits(touched, path, host, FIELD)


def order_writes(writes: _Writes, old: dict[str, str]) -> _Writes:
    """Return `writes` in an order in which the kernel accepts each.

    old: the content of each file now.

    - Version 1 refuses memory above memory-plus-swap (memory.rst, Swap Extension), so a rise beyond
      the old sum begins with the sum, and any other change with memory.
    - Version 1 refuses a share of CPU time, quota by period, above the parent's (sched-bwc.rst,
      "Hierarchical considerations"), so a longer period comes before the quota and a shorter one
      after it: the share between is never above both the old and the new one.
    - io.* come last: to undo them takes more than their old content.
    """
    by_name = {path.rpartition("/")[2]: (path, value) for path, value in writes}
    late: list[str] = [name for name in by_name if name.startswith("io.")]
    if _is_above("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", by_name, old):
        late.insert(0, "memory.limit_in_bytes")
    if not _is_above("cpu.cfs_period_us", "cpu.cfs_period_us", by_name, old):
        late.insert(0, "cpu.cfs_period_us")
    first = [name for name in by_name if name not in late]
    return tuple(by_name[name] for name in (*first, *(n for n in late if n in by_name)))


def check_memory(writes: _Writes, held_bytes: int) -> None:
    """Refuse a memory limit below what the container holds and the kernel cannot take back.

    The kernel would kill its processes for it (version 2), or try for long and then fail (1).
    Raises: InvalidRequest naming the field.
    """
    for path, value in writes:
        if field_of(path) == "memory_limit_in_bytes" and value.isdigit():
            limit = int(value)
            if limit < held_bytes:
                raise InvalidRequest(
                    f"{FIELD}.memory_limit_in_bytes",
                    f"{limit} is below the {held_bytes} bytes that the container holds",
                )


def field_of(path: str) -> str:
    """Return the field of LinuxContainerResources that a control file stands for."""
    name = path.rpartition("/")[2]
    if name.startswith("hugetlb."):
        return "hugepage_limits"
    return _FILE_FIELDS.get(name, f"unified[{name}]")


def restored_value(content: str) -> tuple[str, ...]:
    """Return what to write, one after the other, to bring back a file's old content.

    A file of many lines takes one a write (io.max); an empty list of CPUs takes an empty line.
    """
    return tuple(content.splitlines()) or ("\n",)


def _is_above(name: str, bound: str, new: dict[str, tuple[str, str]], old: dict[str, str]) -> bool:
    """Tell whether the new value of file `name` is above the old one of `bound`."""
    if name not in new or bound not in new:
        return False
    value, limit = new[name][1], old[new[bound][0]].strip()
    return int(value) > int(limit)


def held_bytes(usage_bytes: int, stat: dict[str, int]) -> int:
    """Return how much of a group's memory the kernel cannot take back: all but files' pages.

    stat: its memory.stat. Version 1 counts for the whole tree below in "total_" keys.
    """
    prefix = "total_" if "total_inactive_file" in stat else ""
    files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(0, usage_bytes - files)
