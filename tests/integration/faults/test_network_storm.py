# SPDX-License-Identifier: Apache-2.0
"""Pods on the built-in network come and go in any order while the daemon is killed.

`pytest --storm-pods 1000` makes it a long one.
"""

import contextlib
import os
import random
import socket
import sqlite3
import subprocess
from typing import Any

import pytest

from tests.integration.kernel.netns import Namespace
from tests.world import leaks
from tests.world.daemon import Node, wait_until
from tests.world.storm import storm

PORTS = range(20_000, 20_050)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ready", [0, 4])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_pods_and_kills_leaves_nothing(
    seed: int, ready: int, scope: leaks.Scope, request: pytest.FixtureRequest
) -> None:
    pods: int = request.config.option.storm_pods
    with Namespace() as host:
        node = Node(scope, netns=host.path, ipv6=True, ready=ready)
        try:
            node.start()
            empty = host.run(ruleset)
            counts = storm(node, random.Random(seed), pods, fields)
            assert counts["run"] > pods / 2, counts
            wait_until(lambda: len(rows(node)) == ready, what="no endpoint is on record")
            pins = {pod_id for (pod_id,) in rows(node)}
            assert set(os.listdir(node.run_dir / "ns")) == pins, "no namespace is left"
            kept = {"lo", node.name[-9:], *(pod_id[:9] for pod_id in pins)}
            wait_until(lambda: {n[-9:] for n in host.run(links)} == kept, what="no link is left")
            assert ready or host.run(ruleset) == empty, "no element is left"
            assert node.ask("network", "check") == ""
        finally:
            node.close()
        assert host.run(ruleset) == ""
        assert host.run(links) == {"lo"}


def fields(source: random.Random) -> dict[str, Any]:
    """Ask for host ports that others may have, for limits, for a process of the pod's own."""
    asked: dict[str, Any] = {}
    if source.random() < 0.5:
        port = {"container_port": 80, "host_port": source.choice(PORTS)}
        asked["port_mappings"] = [port | {"protocol": source.choice((0, 1, 2))}]
    if source.random() < 0.3:
        asked["annotations"] = {"kubernetes.io/egress-bandwidth": "10M"}
    if source.random() < 0.3:
        asked["namespaces"] = {"pid": 0}
    return asked


def rows(node: Node) -> list[tuple[str]]:
    query = "SELECT pod_id FROM endpoints UNION SELECT pod_id FROM addresses"
    with contextlib.closing(sqlite3.connect(node.state_dir / "pycri.db")) as database:
        return database.execute(f"{query} UNION SELECT pod_id FROM host_ports").fetchall()


def ruleset() -> str:
    return subprocess.check_output(["nft", "list", "ruleset"], text=True)


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}
