# SPDX-License-Identifier: Apache-2.0
"""Pods on CNI come and go in any order while the daemon is killed: no address is ever lost."""

import contextlib
import random
import socket
import sqlite3
from pathlib import Path

import pytest

from tests.integration.kernel.netns import Namespace
from tests.world import leaks
from tests.world.cni import DEBIAN_PLUGINS, CniFolders
from tests.world.daemon import Node, wait_until
from tests.world.storm import storm

PODS = 60


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(DEBIAN_PLUGINS, "bridge").exists(),
    reason="needs Debian's containernetworking-plugins; see scripts/setup",
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_pods_and_kills_leaves_nothing(
    seed: int, scope: leaks.Scope, tmp_path: Path
) -> None:
    folders = CniFolders(tmp_path / "cni")
    given = write_chain(folders)
    with Namespace() as host:
        node = Node(scope, settings=folders.toml(20), network='kind = "cni"', netns=host.path)
        try:
            node.start()
            storm(node, random.Random(seed), PODS)
            wait_until(lambda: not folders.held(), what="our plugin holds nothing")
            wait_until(lambda: not addresses(given), what="host-local holds nothing")
            wait_until(lambda: not rows(node), what="no attachment is on record")
            wait_until(lambda: not host.run(veths), what="no link is left")
        finally:
            node.close()


def write_chain(folders: CniFolders) -> Path:
    """Write a conflist of the bridge plugin and ours; return the folder of host-local."""
    ipam = {
        "type": "host-local",
        "dataDir": str(folders.folder / "addresses"),
        "ranges": [[{"subnet": "10.77.5.0/24"}]],
    }
    folders.install("ours")
    plugins = [{"type": "bridge", "bridge": "storm0", "ipam": ipam}, {"type": "ours"}]
    folders.write("1.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
    return folders.folder / "addresses/pods"


def addresses(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("10.")]


def rows(node: Node) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(node.state_dir / "pycri.db")) as database:
        return database.execute("SELECT pod_id, interface FROM cni_attachments").fetchall()


def veths() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith("veth")]
