# SPDX-License-Identifier: Apache-2.0
"""The node: HostFacts, what its kernel can do, and the conditions the kubelet watches.

Facts are probed once, at start, by `kernel/features.py`.
"""

import msgspec


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that plans depend on; immutable for the life of the daemon.

    cgroup_version: 1 (also hybrid) or 2.
    cgroup_root: where the hierarchies are mounted, `/sys/fs/cgroup`.
    cgroup1_mounts: v1 only: controller set as mounted ("memory", "cpu,cpuacct", "name=systemd")
        to its mount point.
    cgroup_controllers: controllers that can be used, in either version.
    min_oom_score_adj: the lowest oom_score_adj this root may write (0 without CAP_SYS_RESOURCE).
    capabilities: names (CAP_CHOWN ...) in our bounding set; nothing more can be given away.
    """

    kernel: tuple[int, int]
    architecture: str
    hostname: str
    cgroup_version: int
    cgroup_root: str
    cgroup1_mounts: dict[str, str]
    cgroup_controllers: frozenset[str]
    hugepage_sizes: tuple[str, ...]
    """As in the names of hugetlb's files: "2MB", "1GB"."""
    min_oom_score_adj: int
    capabilities: frozenset[str]
    overlay_lowerdir_append: bool
    """fsconfig "lowerdir+" (Linux >= 6.8)."""
    pidfd_exit_info: bool
    """PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux >= 6.15)."""
    apparmor: bool
    selinux: bool
    user_namespaces: bool = False
    """User namespaces are allowed, and overlay layers and tmpfs can be id-mapped (Linux >= 6.3)."""
    swap_limits: bool = False
    """memory.memsw.limit_in_bytes (v1) or memory.swap.max (v2) exists below the root group."""
    systemd: bool = False
    """systemd is the service manager (sd_booted(3)): groups named .slice are its own to make."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """CRI RuntimeCondition. type: "RuntimeReady" or "NetworkReady"; reason: one word if false."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""
