# SPDX-License-Identifier: Apache-2.0
"""Probe HostFacts: what this kernel and this root can do. Asked once, at start."""

import os
import platform

from pycri.kernel.capabilities import read_bounding, read_last_capability
from pycri.kernel.syscalls import pidfd_exit_status
from pycri.model.host import HostFacts
from pycri.model.security import CAPABILITY_NAMES

CGROUP_ROOT = "/sys/fs/cgroup"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_CGROUP_OPTIONS = {"rw", "ro", "xattr", "clone_children", "noprefix", "release_agent"}
"""What stands among the controllers in the options of a version 1 mount."""


def probe_host() -> HostFacts:
    """Return the facts. Needs root; changes nothing."""
    kernel = _kernel_version()
    mounts1 = _cgroup1_mounts()
    version = 2 if os.path.exists(f"{CGROUP_ROOT}/cgroup.controllers") else 1
    controllers = (
        frozenset(name for key in mounts1 for name in key.split(","))
        if version == 1
        else frozenset(_read(f"{CGROUP_ROOT}/cgroup.controllers").split())
    )
    bounding = read_bounding(read_last_capability())
    return HostFacts(
        kernel=kernel,
        architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        hostname=os.uname().nodename,
        cgroup_version=version,
        cgroup_root=CGROUP_ROOT,
        cgroup1_mounts=mounts1,
        cgroup_controllers=controllers,
        hugepage_sizes=_hugepage_sizes(),
        min_oom_score_adj=_lowest_oom_score_adj(),
        capabilities=frozenset(CAPABILITY_NAMES[n] for n in bounding if n < len(CAPABILITY_NAMES)),
        overlay_lowerdir_append=kernel >= (6, 8),
        pidfd_exit_info=_has_pidfd_exit_info(),
        apparmor=_read("/sys/module/apparmor/parameters/enabled").startswith("Y"),
        swap_limits=_has_swap_limits(version, mounts1),
        systemd=os.path.isdir("/run/systemd/system"),
        selinux=os.path.isdir("/sys/fs/selinux/class"),
        user_namespaces=kernel >= (6, 3) and _allows_user_namespaces(),
    )


def _kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _cgroup1_mounts() -> dict[str, str]:
    """Return the version 1 hierarchies: their controllers (or "name=...") and mount points."""
    found = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        filesystem, _, options = right.split(" ", 2)
        if filesystem == "cgroup":
            names = [o for o in options.split(",") if o.partition("=")[0] not in _CGROUP_OPTIONS]
            found[",".join(names)] = left.split(" ")[4]
    return found


def _hugepage_sizes() -> tuple[str, ...]:
    """Return sizes as the hugetlb controller spells them: "2MB", "1GB"."""
    folder = "/sys/kernel/mm/hugepages"
    sizes_kb = [int(name[10:-2]) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    return tuple(
        f"{kb >> 20}GB" if kb >= 1 << 20 else f"{kb >> 10}MB" if kb >= 1024 else f"{kb}KB"
        for kb in sorted(sizes_kb)
    )


def _has_swap_limits(version: int, mounts1: dict[str, str]) -> bool:
    if version == 1:
        memory = next((path for key, path in mounts1.items() if "memory" in key.split(",")), "")
        return os.path.exists(f"{memory}/memory.memsw.limit_in_bytes")
    # Since 6.1 every kernel that can swap accounts for it. The root group, which has no limits,
    # does not show that, and there may be no other yet.
    return os.path.exists("/proc/swaps")


def _lowest_oom_score_adj() -> int:
    """Try to lower our own oom_score_adj: without CAP_SYS_RESOURCE it cannot sink (proc(5))."""
    path = "/proc/self/oom_score_adj"
    before = _read(path)
    try:
        with open(path, "w") as file:
            file.write("-1000")
    except OSError:
        return int(before)
    with open(path, "w") as file:
        file.write(before)
    return -1000


def _allows_user_namespaces() -> bool:
    """Tell whether any may be made (user_namespaces(7)); no file: the kernel has none."""
    return int(_read("/proc/sys/user/max_user_namespaces") or 0) > 0


def _has_pidfd_exit_info() -> bool:
    pidfd = os.pidfd_open(os.getpid())
    try:
        pidfd_exit_status(pidfd)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def read_cpu_flags() -> frozenset[str]:
    """Return what the first processor can do, in the kernel's words; none but on x86."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                return frozenset(value.split())
    return frozenset()
