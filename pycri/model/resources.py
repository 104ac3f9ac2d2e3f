# SPDX-License-Identifier: Apache-2.0
"""Limits of a container as the CRI gives them (LinuxContainerResources); 0 or "" means not set."""

import msgspec


class HugepageLimit(msgspec.Struct, frozen=True, kw_only=True):
    page_size: str
    limit_bytes: int


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """CRI LinuxContainerResources. Times in microseconds, memory in bytes."""

    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_shares: int = 0
    memory_limit_bytes: int = 0
    memory_swap_limit_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}
