# SPDX-License-Identifier: Apache-2.0
"""A runtime under measurement, and how pycri becomes one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.performance.cgroups import RuntimeGroup
from tests.world import leaks
from tests.world.daemon import Node


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """A running runtime.

    name: for people. socket: its CRI endpoint. folder: for logs of containers.
    group: holds its pods. daemons: its processes that serve all pods, by what they are.
    """

    name: str
    socket: Path
    folder: Path
    group: RuntimeGroup
    daemons: dict[str, int]


@contextmanager
def _folder_in_memory(folder: Path) -> Iterator[Path]:
    """Make a file system in memory, as /run is on an ordinary node."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def start_pycri(
    folder: Path, *, name: str = "pycri", settings: str = "", network: str = 'kind = "auto"'
) -> Iterator[Contestant]:
    """Run pycri with its default settings on folders and names of its own.

    settings, network: TOML of further keys, as `Node` takes them.
    """
    settings = settings or f'[network.cni]\nconf_dir = "{folder}/net.d"\n'  # which is not there
    with _folder_in_memory(folder / f"run-{name}") as run:
        scope = leaks.Scope(folders=(str(folder),))
        node = Node(
            scope,
            log_level="info",
            run_dir=run / "pycri",
            settings=settings,
            network=network,
            ready=None,
        )
        group = RuntimeGroup(node.name)
        try:
            node.start()
            yield Contestant(
                name=name,
                socket=node.run_dir / "pycri.sock",
                folder=node.folder,
                group=group,
                daemons={
                    role: node.pid_of(role) for role in ("daemon", "front", "spawner", "monitor")
                },
            )
        finally:
            node.wipe()
            group.remove()
