# SPDX-License-Identifier: Apache-2.0
"""Memory of a runtime's processes, as PSS: a page that n processes share counts 1/n for each.

A sum over all processes thus counts each page once, and the growth of such a sum while pods are
made is what the pods cost.
"""

from collections import defaultdict
from pathlib import Path

from tests.performance.contestants import Contestant

CONTAINERS = "containers"
"""The role of what runs in a container: the pod's own, whatever the runtime."""


def read_memory(contestant: Contestant) -> dict[str, int]:
    """Return bytes by role: daemons by their names, "shim", "pause", CONTAINERS."""
    roles = {pid: role for role, pid in contestant.daemons.items()}
    for pid in contestant.group.read_pids("daemon"):
        roles.setdefault(pid, "shim")
    for pid in contestant.group.read_pids("pods"):
        roles.setdefault(pid, "pause" if _read_command(pid) == "pause" else CONTAINERS)
    memory: dict[str, int] = defaultdict(int)
    for pid, role in roles.items():
        memory[role] += _read_pss(pid)
    return memory


def _read_command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _read_pss(pid: int) -> int:
    """Return bytes; see proc_pid_smaps_rollup in the kernel's filesystems/proc documentation."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss in /proc/{pid}/smaps_rollup")
