# SPDX-License-Identifier: Apache-2.0
"""The control groups of containers, from the daemon's side: kill, count OOM kills, remove.

Groups are made by the children that join them. All calls may block and run in worker threads.
"""

import os
import time

from pycri.kernel import cgroup1, cgroup2, cgroups
from pycri.model.host import HostFacts
from pycri.plan.cgroups import controller_directory
from pycri.plan.updates import held_bytes

_POLL_S = 0.002
_REMOVE_DEADLINE_S = 5.0


class Groups:
    """Works on groups by their path below each hierarchy, "/pycri/POD/ID"."""

    def __init__(self, host: HostFacts) -> None:
        self._host = host

    def kill(self, path: str) -> None:
        """Kill every process in the group and below, and wait until there is none."""
        if self._host.cgroup_version == 2:
            cgroup2.kill(self._host.cgroup_root + path, _pause)
            return
        freezer = self._host.cgroup1_mounts.get("freezer")
        if freezer:
            cgroup1.kill(freezer + path, _pause)

    def oom_kills(self, path: str) -> int:
        """Return how many processes of the group the kernel killed for lack of memory."""
        if self._host.cgroup_version == 2:
            return cgroup2.oom_kills(self._host.cgroup_root + path)
        memory = controller_directory("memory", path, self._host)
        return cgroup1.oom_kills(memory) if memory else 0

    def processes(self, path: str) -> list[int]:
        """Return the pids in the group and below."""
        if self._host.cgroup_version == 2:
            return cgroups.processes(self._host.cgroup_root + path)
        # The one hierarchy in which execs have groups of their own, so all that there is.
        freezer = self._host.cgroup1_mounts.get("freezer")
        return cgroups.processes(freezer + path) if freezer else []

    def held_memory(self, path: str) -> int:
        """Return how many bytes the group holds that the kernel cannot take back; 0 if unknown."""
        directory = controller_directory("memory", path, self._host)
        if directory is None:
            return 0
        name = "memory.current" if self._host.cgroup_version == 2 else "memory.usage_in_bytes"
        stat = cgroups.read_numbers(f"{directory}/memory.stat")
        return held_bytes(int(cgroups.read(f"{directory}/{name}")), stat)

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

    def remove_if_empty(self, path: str) -> None:
        """Remove the group if nothing is in it; else leave it."""
        for directory in self._directories(path):
            cgroups.remove(directory)

    def below(self, path: str) -> list[str]:
        """Return the names of the groups right below `path`, in any hierarchy."""
        names: set[str] = set()
        for directory in self._directories(path):
            if os.path.isdir(directory):
                names.update(entry.name for entry in os.scandir(directory) if entry.is_dir())
        return sorted(names)

    def _directories(self, path: str) -> list[str]:
        if self._host.cgroup_version == 2:
            return [self._host.cgroup_root + path]
        return [mount + path for mount in self._host.cgroup1_mounts.values()]


def _pause() -> None:
    time.sleep(_POLL_S)
