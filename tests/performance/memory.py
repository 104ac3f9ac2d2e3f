# SPDX-License-Identifier: Apache-2.0
"""Memory of a runtime's processes, as PSS: a page that n processes share counts 1/n for each.

A sum over all processes thus counts each page once, and the growth of such a sum while pods are
made is what the pods cost. Pages of files (programs and libraries) are shared with whatever else on
the host maps them, so their part moves with the host; the anonymous part is the runtime's alone.
"""

import re
from collections import defaultdict
from pathlib import Path

import msgspec

from tests.performance.contestants import Contestant

CONTAINERS = "containers"
"""The role of what runs in a container: the pod's own, whatever the runtime."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of PSS, and how many of them are anonymous: heap, stacks, no file."""

    pss: int = 0
    anonymous: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(pss=self.pss + other.pss, anonymous=self.anonymous + other.anonymous)


def read_memory(contestant: Contestant) -> dict[str, Memory]:
    """Return the memory of each role: daemons by their names, "shim", "pause", CONTAINERS."""
    roles = {pid: role for role, pid in contestant.daemons.items()}
    for pid in contestant.group.read_pids("daemon"):
        roles.setdefault(pid, "shim")
    for pid in contestant.group.read_pids("pods"):
        roles.setdefault(pid, "pause" if _read_command(pid) == "pause" else CONTAINERS)
    memory: dict[str, Memory] = defaultdict(Memory)
    for pid, role in roles.items():
        memory[role] += _read_process(pid)
    return memory


def _read_command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _read_process(pid: int) -> Memory:
    """Read smaps_rollup; see the kernel's filesystems/proc documentation."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    return Memory(pss=sizes["Pss"], anonymous=sizes["Pss_Anon"])
