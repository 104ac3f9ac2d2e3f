# SPDX-License-Identifier: Apache-2.0
"""LinuxContainerResources to Resources."""

import re

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.errors import InvalidRequest
from pycri.model.resources import HugepageLimit, Resources

_CPU_LIST = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*")
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,8}[KMG]B")
_CGROUP_FILE = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+")
_INT64 = (1 << 63) - 1


def decode_resources(message: pb.LinuxContainerResources, path: str) -> Resources:
    """Return the limits; what the kernel would refuse for certain is refused here, by name.

    Bounds: cpu.cfs_period_us 1 ms to 1 s and quota from 1 ms (kernel, sched-bwc); oom_score_adj
    -1000 to 1000 (proc(5)). A quota or swap limit of -1 means none.
    """
    if message.cpu_period:
        fields.number(message.cpu_period, f"{path}.cpu_period", 1_000, 1_000_000)
    if message.cpu_quota > 0:
        fields.number(message.cpu_quota, f"{path}.cpu_quota", 1_000, _INT64)
    return Resources(
        cpu_period_us=message.cpu_period,
        cpu_quota_us=fields.number(message.cpu_quota, f"{path}.cpu_quota", -1, _INT64),
        cpu_shares=fields.number(message.cpu_shares, f"{path}.cpu_shares", 0, _INT64),
        memory_limit_bytes=fields.number(
            message.memory_limit_in_bytes, f"{path}.memory_limit_in_bytes", 0, _INT64
        ),
        memory_swap_limit_bytes=_swap(message, f"{path}.memory_swap_limit_in_bytes"),
        oom_score_adj=fields.number(message.oom_score_adj, f"{path}.oom_score_adj", -1000, 1000),
        cpuset_cpus=_cpu_list(message.cpuset_cpus, f"{path}.cpuset_cpus"),
        cpuset_mems=_cpu_list(message.cpuset_mems, f"{path}.cpuset_mems"),
        hugepage_limits=tuple(
            _hugepages(limit, f"{path}.hugepage_limits[{i}]")
            for i, limit in enumerate(message.hugepage_limits)
        ),
        unified={
            _cgroup_file(name, f"{path}.unified"): fields.no_nul(value, f"{path}.unified[{name}]")
            for name, value in sorted(message.unified.items())
        },
    )


def _swap(message: pb.LinuxContainerResources, path: str) -> int:
    """Return memory plus swap, which cannot be less than memory alone (OCI runtime-spec)."""
    swap = fields.number(message.memory_swap_limit_in_bytes, path, -1, _INT64)
    if 0 < swap < message.memory_limit_in_bytes:
        raise InvalidRequest(path, f"{swap} is below memory_limit_in_bytes")
    return swap


def _cpu_list(text: str, path: str) -> str:
    if text and not _CPU_LIST.fullmatch(text):
        raise InvalidRequest(path, f"{text!r} is not a list such as 0-2,5")
    return text


def _hugepages(message: pb.HugepageLimit, path: str) -> HugepageLimit:
    if not _PAGE_SIZE.fullmatch(message.page_size):
        raise InvalidRequest(f"{path}.page_size", f"{message.page_size!r} is not like 2MB")
    limit = fields.number(message.limit, f"{path}.limit", 0, _INT64)
    return HugepageLimit(page_size=message.page_size, limit_bytes=limit)


def _cgroup_file(name: str, path: str) -> str:
    """Return a file name that stays inside the container's own group."""
    if not _CGROUP_FILE.fullmatch(name):
        raise InvalidRequest(path, f"{name!r} is not a cgroup file such as memory.high")
    return name
