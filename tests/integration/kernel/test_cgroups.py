# SPDX-License-Identifier: Apache-2.0
"""Groups that go while they are looked at."""

import os
from pathlib import Path

from pycri.kernel import cgroups
from tests.world import leaks, session

MEMORY = Path("/sys/fs/cgroup/memory")
FILE, KEY = (
    ("memory.oom_control", "oom_kill") if MEMORY.exists() else ("cgroup.events", "populated")
)


def test_the_counters_of_a_group_that_has_gone_are_zero() -> None:
    parent = MEMORY if MEMORY.exists() else Path("/sys/fs/cgroup")
    group = parent / f"{leaks.NAME_PREFIX}{session.session_id}-gone"
    group.mkdir()
    fd = os.open(group / FILE, os.O_RDONLY)
    try:
        assert cgroups.read_counter(str(group / FILE), KEY) == 0
        group.rmdir()
        assert cgroups.read_counter(str(group / FILE), KEY) == 0
        # As for one who had opened the file before: ENODEV.
        assert cgroups.read_counter(f"/proc/self/fd/{fd}", KEY) == 0
    finally:
        os.close(fd)
