# SPDX-License-Identifier: Apache-2.0
"""What every child inherits from the spawner."""

import msgspec


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors and facts that do not depend on the plan.

    empty_mounts_fd: the mount namespace to start from (`mounts.enter_empty_root`).
    overlay_append: the kernel knows overlay's "lowerdir+". last_capability: highest number known.
    cgroup2_root: mount point of the version 2 hierarchy, where it is the one in use.
    files_limit: soft and hard RLIMIT_NOFILE of containers. pod_init_fd: the program `podinit.py`.
    """

    empty_mounts_fd: int
    overlay_append: bool
    last_capability: int
    cgroup2_root: str
    files_limit: tuple[int, int]
    pod_init_fd: int
