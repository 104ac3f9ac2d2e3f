# SPDX-License-Identifier: Apache-2.0
"""The cgroup of one runtime under measurement: where its processes are found, and ended.

    /NAME/daemon    a daemon that starts processes of its own beside the containers
    /NAME/pods      what the requests name as parent of all pods, as the kubelet does

The runtimes make these in the hierarchies they use. Of several (v1), one tells who is in which.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_END_TIMEOUT_S = 20.0


def _read_mounts() -> Iterator[tuple[Path, str, set[str]]]:
    """Yield mount point, type and options of each mounted hierarchy."""
    with open("/proc/self/mountinfo") as table:
        for line in table:
            point = line.split()[4]
            kind, _source, options = line.split(" - ")[1].split()
            if kind in ("cgroup", "cgroup2"):
                yield Path(point), kind, set(options.split(","))


def read_hybrid_mounts() -> list[Path]:
    """Return where cgroup v2 is mounted beside v1."""
    mounts = list(_read_mounts())
    if all(kind == "cgroup2" for _, kind, _ in mounts):
        return []
    return [point for point, kind, _ in mounts if kind == "cgroup2"]


class RuntimeGroup:
    """The cgroup /NAME in every hierarchy."""

    def __init__(self, name: str) -> None:
        self.pods = f"/{name}/pods"
        mounts = list(_read_mounts())
        self._roots = [point / name for point, _, _ in mounts]
        with_pids = [point for point, _, options in mounts if "pids" in options]
        self._tracking = (with_pids or [point for point, _, _ in mounts])[0] / name

    def make_daemon_group(self) -> Path:
        """Make the daemon's group and return the file that a process joins it by."""
        folder = self._tracking / "daemon"
        folder.mkdir(parents=True)
        return folder / "cgroup.procs"

    def read_pids(self, part: str = "") -> set[int]:
        """Return the processes of "daemon", "pods" or both."""
        files = (self._tracking / part).rglob("cgroup.procs")
        return {int(pid) for file in files for pid in _read_words(file)}

    def remove(self) -> None:
        """Kill what is left in the group and remove it."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while not self._try_remove():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._tracking}: still there, with {self.read_pids()}")
            time.sleep(0.05)

    def _try_remove(self) -> bool:
        for pid in self.read_pids():
            with suppress(ProcessLookupError):  # it went with its namespace's first process
                os.kill(pid, signal.SIGKILL)
        left = False
        for root in self._roots:
            for folder, _, _ in os.walk(root, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    left = True  # busy until its last process is reaped
        return not left


def _read_words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []  # removed since it was listed
