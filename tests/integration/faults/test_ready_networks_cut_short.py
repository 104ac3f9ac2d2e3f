# SPDX-License-Identifier: Apache-2.0
"""Networks made ahead of pods, and processes that die while they are made, ready, or lent."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.kernel.netns import Namespace
from tests.world import leaks
from tests.world.daemon import CALL_TIMEOUT_S, Node, wait_until
from tests.world.reboot import reboot

READY = 2


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as host:
        yield host


@pytest.fixture
def node(host: Namespace, scope: leaks.Scope) -> Iterator[Node]:
    node = Node(scope, netns=host.path, ipv6=True, ready=READY)
    try:
        node.start()
        wait_ready(node)
        yield node
    finally:
        node.close()


def wait_ready(node: Node) -> set[str]:
    """Wait until all are ready; return the ids of all pods and of those to come."""
    request = cri.StatusRequest(verbose=True)

    def ready() -> int:
        with contextlib.suppress(grpc.RpcError, KeyError):
            return int(node.runtime.Status(request, timeout=CALL_TIMEOUT_S).info["ready_networks"])
        return 0

    wait_until(lambda: ready() == READY, what="networks are ready")
    return pins(node)


def pins(node: Node) -> set[str]:
    return set(os.listdir(node.run_dir / "ns"))


def endpoints(node: Node) -> set[str]:
    query = "SELECT pod_id FROM endpoints UNION SELECT pod_id FROM addresses"
    with contextlib.closing(sqlite3.connect(node.state_dir / "pycri.db")) as database:
        return {owner for (owner,) in database.execute(query)}


def links(host: Namespace) -> set[str]:
    return {name[-9:] for _, name in host.run(socket.if_nameindex) if name.startswith("pc")}


def rules(host: Namespace) -> str:
    return str(host.run(lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True)))


def check_whole(node: Node, host: Namespace, pods: set[str]) -> None:
    """Wait until there is what `pods` have and what is ready, and nothing else."""
    owners = wait_ready(node)
    assert pods < owners
    assert len(owners) == len(pods) + READY
    wait_until(lambda: endpoints(node) == owners, what="no endpoint but theirs is on record")
    ends = {owner[:9] for owner in owners} | {node.name[-9:]}
    wait_until(lambda: links(host) <= ends, what="no link but theirs is there")
    wait_until(lambda: node.ask("network", "check") == "", what="all is as it is to be")


def change_range(node: Node, number: int) -> None:
    """Have all that is ready made anew."""
    cidr = f"10.96.{node.subnet.split('.')[2]}.{64 * number}/26"
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=cidr))
    request = cri.UpdateRuntimeConfigRequest(runtime_config=config)
    node.runtime.UpdateRuntimeConfig(request, timeout=CALL_TIMEOUT_S)


def test_a_daemon_killed_with_networks_ready_frees_them(node: Node, host: Namespace) -> None:
    pod = node.run_pod("stays")
    before = wait_ready(node)
    for _ in range(3):
        node.kill("daemon")
        assert pins(node) == before
        node.start()
        check_whole(node, host, {pod})
        assert wait_ready(node) & before == {pod}
        before = wait_ready(node)


def test_a_daemon_killed_while_the_spawner_makes_one_leaves_nothing_of_it(
    node: Node, host: Namespace
) -> None:
    before, spawner = wait_ready(node), node.pid_of("spawner")
    os.kill(spawner, signal.SIGSTOP)
    try:
        change_range(node, 1)
        wait_until(lambda: pins(node) - before, what="one more is begun")
        node.kill("daemon")
    finally:
        os.kill(spawner, signal.SIGCONT)
    node.start()
    check_whole(node, host, set())


def test_a_spawner_that_dies_while_it_makes_one_is_asked_again(node: Node, host: Namespace) -> None:
    before, spawner = wait_ready(node), node.pid_of("spawner")
    os.kill(spawner, signal.SIGSTOP)
    change_range(node, 1)
    wait_until(lambda: pins(node) - before, what="one more is begun")
    os.kill(spawner, signal.SIGKILL)
    check_whole(node, host, set())
    pod = node.run_pod("later")
    check_whole(node, host, {pod})


def test_a_spawner_that_died_is_not_missed_by_those_that_are_ready(
    node: Node, host: Namespace
) -> None:
    before = wait_ready(node)
    node.kill("spawner")
    pod = node.run_pod("after")
    assert pod in before
    check_whole(node, host, {pod})


def test_a_daemon_killed_with_a_network_lent_undoes_the_pod(node: Node, host: Namespace) -> None:
    before, spawner = wait_ready(node), node.pid_of("spawner")
    os.kill(spawner, signal.SIGSTOP)
    call = threading.Thread(target=lambda: _whatever(node))
    try:
        call.start()
        wait_until(lambda: [*(node.state_dir / "pods").iterdir()], what="the call is under way")
        assert {path.name for path in (node.state_dir / "pods").iterdir()} < before
        node.kill("daemon")
    finally:
        os.kill(spawner, signal.SIGCONT)
        call.join()
    node.start()
    check_whole(node, host, set())
    assert not node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    check_whole(node, host, {node.run_pod("half")})


def _whatever(node: Node) -> None:
    with contextlib.suppress(grpc.RpcError, ValueError):
        node.run_pod("half")


@pytest.mark.parametrize("after_ms", [0, 2, 4, 6, 8, 10, 15])
def test_a_daemon_killed_at_any_moment_of_the_making_leaves_nothing(
    after_ms: int, node: Node, host: Namespace
) -> None:
    """Each time from the moment on at which the first of two is begun."""
    for number in (1, 2):
        before = wait_ready(node)
        change_range(node, number)
        wait_until(lambda: pins(node) - before, what="one more is begun")  # noqa: B023
        threading.Event().wait(after_ms / 1000)
        node.kill("daemon")
        node.start()
        check_whole(node, host, set())


def test_what_was_ready_before_a_reboot_is_free(node: Node, host: Namespace) -> None:
    former = wait_ready(node)

    def lose_network() -> None:
        subprocess.run(["ip", "link", "delete", node.name], check=True)
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    host.run(lose_network)
    reboot(node)
    check_whole(node, host, set())
    assert not wait_ready(node) & former
    assert not any(owner[:9] in rules(host) for owner in former)
