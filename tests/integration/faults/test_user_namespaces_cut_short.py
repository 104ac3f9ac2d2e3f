# SPDX-License-Identifier: Apache-2.0
"""kill -9 while a pod with a user namespace is made, which takes one process more than others."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, is_running, wait_until
from tests.world.images import Images

MAPPING = {"host_id": 300_000, "container_id": 0, "length": 65_536}
OWN = {"mode": cri.POD, "uids": [MAPPING], "gids": [MAPPING]}


def run_and_end(node: Node, image: str, name: str) -> None:
    pod = node.run_pod(name, namespaces={"userns_options": OWN, "pid": cri.POD})
    container = node.run_container(pod, image, command=["sleep", "600"])
    assert node.shell(container, "id -u") == "0\n"
    node.clear()


@pytest.mark.parametrize("process", ["daemon", "spawner"])
def test_nothing_is_left_of_a_user_namespace_that_is_half_made(
    process: str, make_node: Callable[..., Node], images: Images
) -> None:
    node = make_node()
    node.pull(images["busybox"])
    for delay_ms in (1, 4, 7, 12):
        pid = node.pid_of(process)
        killer = threading.Timer(delay_ms / 1000, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with suppress(grpc.RpcError):
            run_and_end(node, images["busybox"], "cut-short")
        killer.join()
        wait_until(lambda pid=pid: not is_running(pid), what="the end")  # type: ignore[misc]
        if process == "daemon":
            node.reap()
            node.start()

        def works() -> bool:
            with suppress(grpc.RpcError):
                node.clear()
                run_and_end(node, images["busybox"], "again")
                return True
            return False

        wait_until(works, what=f"the node works after {delay_ms} ms")
        pins = node.run_dir / "ns"
        wait_until(lambda pins=pins: not list(pins.iterdir()), what="no pin")  # type: ignore[misc]
