# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of processes as they run (proc(5)): descriptors, limits."""

import os
import re

from pycri.kernel import counters

_LIMIT = re.compile(r"^Max (?P<name>.+?) {2,}(?P<soft>\d+|unlimited) ", re.M)


def count_descriptors(pid: int, most: int) -> tuple[int, int]:
    """Return how many descriptors a process has, and how many of them are sockets.

    most: how many are looked at for sockets. (0, 0) if the process is gone.
    """
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return 0, 0
    return len(names), sum(_is_socket(f"{folder}/{name}") for name in names[:most])


def read_soft_limits(pid: int) -> dict[str, int]:
    """Return a process's finite soft limits by name; {} if it is gone."""
    return parse_soft_limits(counters.read(f"/proc/{pid}/limits") or "")


def parse_soft_limits(text: str) -> dict[str, int]:
    """Parse /proc/PID/limits: "Max open files" becomes "max_open_files"."""
    return {
        f"max_{match['name'].replace(' ', '_')}": int(match["soft"])
        for match in _LIMIT.finditer(text)
        if match["soft"] != "unlimited"
    }


def _is_socket(path: str) -> bool:
    try:
        return os.readlink(path).startswith("socket:")
    except OSError:
        return False
