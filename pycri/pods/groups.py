# SPDX-License-Identifier: Apache-2.0
"""The control groups of containers, from the daemon's side: kill, read counters, remove.

Groups are made by the children that join them. All calls may block and run in worker threads.
"""

import os
import time

from pycri.kernel import cgroup1, cgroup2, cgroups
from pycri.model.host import HostFacts
from pycri.model.stats import GroupDetail, GroupUsage
from pycri.plan.cgroups import controller_directory
from pycri.plan.updates import held_bytes

_POLL_S = 0.002
_COUNTING = ("cpu", "cpuacct", "memory", "pids", "hugetlb", "blkio")
"""The controllers of version 1 that keep counters."""
_REMOVE_DEADLINE_S = 5.0
_KILL_DEADLINE_S = 10.0


class Groups:
    """Works on groups by their path below each hierarchy, "/pycri/POD/ID"."""

    def __init__(self, host: HostFacts) -> None:
        self._host = host

    def kill(self, path: str) -> bool:
        """Kill every process in the group and below. False if one is left past a deadline.

        Such a one is in uninterruptible sleep; it dies when it wakes.
        """
        directory = self._hierarchy("freezer") + path
        send_kill = cgroup2.kill if self._host.cgroup_version == 2 else cgroup1.kill
        deadline = time.monotonic() + _KILL_DEADLINE_S
        while cgroups.processes(directory):
            if time.monotonic() > deadline:
                return False
            send_kill(directory)
            _pause()
        return True

    def oom_kills(self, path: str) -> int:
        """Return how many processes of the group the kernel killed for lack of memory: whether its
        own limit, the pod's or the node's was reached."""
        count = cgroup2.oom_kills if self._host.cgroup_version == 2 else cgroup1.oom_kills
        return count(self._hierarchy("memory") + path)

    def processes(self, path: str) -> list[int]:
        """Return the pids in the group and below."""
        return cgroups.processes(self._hierarchy("freezer") + path)

    def held_memory(self, path: str) -> int:
        """Return how many bytes the group holds that the kernel cannot take back; 0 if unknown."""
        directory = controller_directory("memory", path, self._host)
        if directory is None:
            return 0
        name = "memory.current" if self._host.cgroup_version == 2 else "memory.usage_in_bytes"
        stat = cgroups.read_numbers(f"{directory}/memory.stat")
        return held_bytes(int(cgroups.read(f"{directory}/{name}")), stat)

    def usage(self, path: str) -> GroupUsage:
        """Read what the group and those below it use."""
        if self._host.cgroup_version == 2:
            return cgroup2.read_usage(self._host.cgroup_root + path)
        return cgroup1.read_usage(self._controllers(path))

    def detail(self, path: str) -> GroupDetail:
        """Read what metrics tell of the group beyond its usage."""
        sizes = self._host.hugepage_sizes
        if self._host.cgroup_version == 2:
            return cgroup2.read_detail(self._host.cgroup_root + path, sizes)
        return cgroup1.read_detail(self._controllers(path), sizes)

    def cpu_ns(self, path: str) -> int | None:
        """Read the CPU time the group has used; None if it is not there."""
        if self._host.cgroup_version == 2:
            return cgroup2.read_cpu_ns(self._host.cgroup_root + path)
        return cgroup1.read_cpu_ns(controller_directory("cpuacct", path, self._host) or "")

    def remove(self, path: str) -> bool:
        """Remove the group and all below it. False if processes stay in it past a deadline.

        A process that has just been reaped may keep its group busy for a moment more.
        """
        deadline = time.monotonic() + _REMOVE_DEADLINE_S
        left = self._directories(path)
        while True:
            left = [directory for directory in left if not cgroups.remove(directory)]
            if not left or time.monotonic() > deadline:
                return not left
            _pause()

    def remove_if_empty(self, path: str) -> bool:
        """Remove the group if nothing is in it; else leave it. Tells whether it is gone."""
        return all(cgroups.remove(directory) for directory in self._directories(path))

    def dissolve(self, path: str) -> bool:
        """Remove the group; the processes in it move to the group above. False if there are
        processes in groups that were made below it: these stay."""
        deadline = time.monotonic() + _REMOVE_DEADLINE_S
        for directory in self._directories(path):
            # Again until there is none: a process may fork while it is moved.
            while cgroups.move_processes(directory, os.path.dirname(directory)):
                if time.monotonic() > deadline:
                    return False
        return self.remove(path)

    def below(self, path: str) -> list[str]:
        """Return the names of the groups right below `path`, in any hierarchy."""
        names: set[str] = set()
        for directory in self._directories(path):
            if os.path.isdir(directory):
                names.update(entry.name for entry in os.scandir(directory) if entry.is_dir())
        return sorted(names)

    def _hierarchy(self, controller: str) -> str:
        """Return where groups of the controller are; any place will do when it is not there."""
        if self._host.cgroup_version == 2:
            return self._host.cgroup_root
        mounts = self._host.cgroup1_mounts
        own = (path for names, path in mounts.items() if controller in names.split(","))
        return next(own, next(iter(mounts.values())))

    def _controllers(self, path: str) -> dict[str, str]:
        """Return the group's folder by controller, version 1."""
        found = ((name, controller_directory(name, path, self._host)) for name in _COUNTING)
        return {name: directory for name, directory in found if directory is not None}

    def _directories(self, path: str) -> list[str]:
        if self._host.cgroup_version == 2:
            return [self._host.cgroup_root + path]
        return [mount + path for mount in self._host.cgroup1_mounts.values()]


def _pause() -> None:
    time.sleep(_POLL_S)
