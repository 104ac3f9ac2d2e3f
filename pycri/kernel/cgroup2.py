# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2 (Documentation/admin-guide/cgroup-v2.rst)."""

import os

from pycri.kernel import cgroups


def create(directory: str, root: str, controllers: tuple[str, ...]) -> None:
    """Make a group and its parents below `root`, the controllers enabled in every parent."""
    missing = os.path.relpath(directory, root).split("/")
    current = root
    for name in missing:
        enabled = set(_read(f"{current}/cgroup.subtree_control").split())
        wanted = [f"+{controller}" for controller in controllers if controller not in enabled]
        if wanted:
            cgroups.write(f"{current}/cgroup.subtree_control", " ".join(wanted))
        current = f"{current}/{name}"
        os.makedirs(current, exist_ok=True)


def join(directory: str) -> None:
    """Move the calling process into the group."""
    cgroups.write(f"{directory}/cgroup.procs", "0")


def kill(directory: str) -> None:
    """Send SIGKILL to every process of the group and below, also to those being forked."""
    try:
        cgroups.write(f"{directory}/cgroup.kill", "1")
    except FileNotFoundError:
        return


def oom_kills(directory: str) -> int:
    """Return how often the kernel killed a process of this group for lack of memory."""
    return cgroups.read_counter(f"{directory}/memory.events", "oom_kill")


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
