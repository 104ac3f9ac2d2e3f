# SPDX-License-Identifier: Apache-2.0
"""Limits as writes to control files, for both versions of control groups.

Sources: CRI LinuxContainerResources; kernel Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst;
OCI runtime-spec config-linux.md for what a value means where the two versions differ.
"""

import math
import re

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.host import HostFacts
from pycri.model.resources import Resources
from pycri.plan.cgroups import controller_directory

DEFAULT_PERIOD_US = 100_000

_FIELD = "config.linux.resources"
_UNIFIED_KEY = re.compile(r"([a-z][a-z0-9_]*)(\.[A-Za-z0-9_-]+)+")

_Write = tuple[str, str, str]
"""(controller, file name, value)."""


def plan_limits(
    resources: Resources, path: str, host: HostFacts, field: str = _FIELD
) -> tuple[tuple[str, str], ...]:
    """Return (absolute file, value) writes that limit the group at `path`, in order.

    A missing hugetlb controller is tolerated, as the kubelet sends a limit for every page size.
    field: where the request has the resources; errors name it.
    Raises: Unsupported naming any other controller that is asked for and missing; InvalidRequest.
    """
    swap_max(resources.memory_limit_bytes, resources.memory_swap_limit_bytes, field)
    limits = _limits_v2 if host.cgroup_version == 2 else _limits_v1
    writes = []
    for controller, file, value in limits(resources, host, field):
        directory = controller_directory(controller, path, host)
        if directory is not None:
            writes.append((f"{directory}/{file}", value))
        elif controller != "hugetlb":
            raise Unsupported(
                f"{file} needs the cgroup controller {controller!r}: not on this node"
            )
    return tuple(writes)


def oom_score_adj(resources: Resources, host: HostFacts) -> int:
    """Return the oom_score_adj asked for, raised to the lowest this root may write."""
    return max(resources.oom_score_adj, host.min_oom_score_adj)


def cpu_weight(shares: int) -> int:
    """Return the version 2 weight (1-10000) of version 1 shares (2-262144).

    A quadratic of the logarithm through (2, 1), (1024, 100) and (262144, 10000), so that the
    default of one version is the default of the other. Source: opencontainers/cgroups, utils.go.
    """
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def swap_max(limit_bytes: int, swap_bytes: int, field: str = _FIELD) -> int:
    """Return the cgroup v2 swap limit for a combined memory-and-swap limit.

    limit_bytes: of memory. swap_bytes: of memory plus swap. 0 is not set, negative is unlimited.
    Returns: bytes of swap alone; 0 forbids swap; -1 is unlimited.
    Raises: InvalidRequest if the combined limit is below the memory limit or has none beside it.
    Source: OCI runtime-spec, Linux memory "swap"; kernel cgroup-v2 "memory.swap.max".
    """
    if swap_bytes < 0:
        return -1
    if swap_bytes == 0:
        # A memory limit alone means no swap: containerd and CRI-O agree.
        return 0
    if limit_bytes <= 0 or swap_bytes < limit_bytes:
        raise InvalidRequest(
            f"{field}.memory_swap_limit_in_bytes", f"{swap_bytes} is below the memory limit"
        )
    return swap_bytes - limit_bytes


def _limits_v1(resources: Resources, host: HostFacts, field: str) -> list[_Write]:
    if resources.unified:
        raise Unsupported(f"{field}.unified needs cgroup version 2")
    limit, swap = resources.memory_limit_bytes, resources.memory_swap_limit_bytes
    wanted = [
        ("cpu", "cpu.shares", resources.cpu_shares),
        ("cpu", "cpu.cfs_period_us", resources.cpu_period_us),
        ("cpu", "cpu.cfs_quota_us", resources.cpu_quota_us),
        # Memory first: the sum of memory and swap must never be the smaller one.
        ("memory", "memory.limit_in_bytes", limit),
        ("memory", "memory.memsw.limit_in_bytes", (swap or limit) if host.swap_limits else 0),
    ]
    writes = [(controller, file, str(value)) for controller, file, value in wanted if value]
    return writes + _cpuset(resources) + _hugetlb(resources, host, "limit_in_bytes", field)


def _limits_v2(resources: Resources, host: HostFacts, field: str) -> list[_Write]:
    limit, swap = resources.memory_limit_bytes, resources.memory_swap_limit_bytes
    writes: list[_Write] = []
    if resources.cpu_shares:
        writes.append(("cpu", "cpu.weight", str(cpu_weight(resources.cpu_shares))))
    if resources.cpu_quota_us or resources.cpu_period_us:
        quota = str(resources.cpu_quota_us) if resources.cpu_quota_us > 0 else "max"
        writes.append(("cpu", "cpu.max", f"{quota} {resources.cpu_period_us or DEFAULT_PERIOD_US}"))
    if limit:
        writes.append(("memory", "memory.max", _bytes(limit)))
    if host.swap_limits and (swap or limit > 0):
        writes.append(("memory", "memory.swap.max", _bytes(swap_max(limit, swap))))
    writes += _cpuset(resources)
    writes += _hugetlb(resources, host, "max", field)
    return writes + _unified(resources, field)


def _cpuset(resources: Resources) -> list[_Write]:
    wanted = (("cpuset.cpus", resources.cpuset_cpus), ("cpuset.mems", resources.cpuset_mems))
    return [("cpuset", file, value) for file, value in wanted if value]


def _hugetlb(resources: Resources, host: HostFacts, file: str, field: str) -> list[_Write]:
    """Limit what is used and, or a process dies of SIGBUS at its first touch, what is reserved."""
    writes = []
    for index, page in enumerate(resources.hugepage_limits):
        if "hugetlb" in host.cgroup_controllers and page.page_size not in host.hugepage_sizes:
            where = f"{field}.hugepage_limits[{index}].page_size"
            raise InvalidRequest(where, f"this node has no huge pages of {page.page_size!r}")
        for name in (f"hugetlb.{page.page_size}.{file}", f"hugetlb.{page.page_size}.rsvd.{file}"):
            writes.append(("hugetlb", name, str(page.limit_bytes)))
    return writes


def _unified(resources: Resources, field: str) -> list[_Write]:
    writes = []
    for key, value in resources.unified.items():
        match = _UNIFIED_KEY.fullmatch(key)
        # "cgroup.*" would move or kill processes, not limit them.
        if match is None or match[1] == "cgroup":
            raise InvalidRequest(f"{field}.unified[{key}]", "is not the name of a limit")
        writes.append((match[1], key, value))
    return writes


def _bytes(limit: int) -> str:
    return "max" if limit < 0 else str(limit)
