# SPDX-License-Identifier: Apache-2.0
"""The control groups of a child: made and limited while the host is in sight, joined late.

A group of few CPU shares, or with little memory left, would slow down or end what is still our own
work. What is not the container's runs in the spawner's groups; whatever is runs in its own.
"""

import os

from pycri.kernel import cgroup1, cgroup2, cgroups, device_filter
from pycri.model.plan import CgroupPlan
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings


class Groups:
    """Those of one plan. Owns a descriptor of each, close-on-exec, until they are joined."""

    def __init__(self, doors: list[tuple[str, int]]) -> None:
        self._doors = doors

    @classmethod
    def make(cls, plan: CgroupPlan, report: Report, around: Surroundings) -> "Groups":
        """Make the groups, write their limits, open what it takes to join them."""
        for directory in plan.directories:
            report.doing(f"cgroup {directory}")
            _make_group(directory, plan, around)
        for path, value in plan.writes:
            report.doing(f"write {value!r} to {path}")
            cgroups.write(path, value)
        opened = cgroup2.open_door if plan.version == 2 else cgroup1.open_door
        doors = []
        for directory in (*plan.existing, *plan.directories):
            report.doing(f"cgroup {directory}")
            doors.append((directory, opened(directory)))
        return cls(doors)

    def join(self, report: Report) -> None:
        """Move the calling process, which must have one thread, into all of them; once.

        The rights to do so are those with which they were opened (cgroup_procs_write in
        kernel/cgroup/cgroup.c), so it matters not where the caller is by now.
        """
        for directory, door in self._doors:
            report.doing(f"join cgroup {directory}")
            os.write(door, b"0")
            os.close(door)
        self._doors = []


def _make_group(directory: str, plan: CgroupPlan, around: Surroundings) -> None:
    if plan.nested:
        os.mkdir(directory)
    elif plan.version == 2:
        cgroup2.create(directory, around.cgroup2_root, plan.controllers)
        if plan.device_rules is not None:
            device_filter.attach(directory, plan.device_rules)
    else:
        cgroup1.create(directory)
        if plan.device_rules is not None and os.path.exists(f"{directory}/devices.allow"):
            cgroup1.allow_devices(directory, plan.device_rules)
