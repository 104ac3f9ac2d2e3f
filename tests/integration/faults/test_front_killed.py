# SPDX-License-Identifier: Apache-2.0
"""Front and daemon: who looks needs only the one, neither is there without the other."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, is_running, wait_until
from tests.world.images import Images

WAIT_S = 30


def test_who_looks_is_answered_while_the_daemon_does_nothing(
    own_node: Node, images: Images
) -> None:
    node = own_node
    pod = node.run_pod("looked")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    runtime = node.runtime
    before = node.status(container)
    os.kill(node.pid_of("daemon"), signal.SIGSTOP)
    try:
        pods = runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=WAIT_S).items
        assert [one.id for one in pods] == [pod]
        found = runtime.ListContainers(cri.ListContainersRequest(), timeout=WAIT_S).containers
        assert [one.id for one in found] == [container]
        streamed = runtime.StreamContainers(cri.StreamContainersRequest(), timeout=WAIT_S)
        assert [one.id for message in streamed for one in message.containers] == [container]
        assert node.status(container) == before
        with pytest.raises(grpc.RpcError) as caught:
            runtime.Status(cri.StatusRequest(), timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        os.kill(node.pid_of("daemon"), signal.SIGCONT)
    node.remove_pod(pod)
    assert not runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items


def test_without_its_front_the_daemon_ends_and_says_why(own_node: Node) -> None:
    own_node.kill("front")
    assert own_node.reap() == 1
    assert "the process that talks to clients has ended" in own_node.daemon_log()
    own_node.start()
    own_node.run_pod("after")


def test_the_front_ends_with_the_daemon_and_tells_who_waits(own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(
        node.run_pod("waited-for"), images["busybox"], command=["sleep", "600"]
    )
    front = node.pid_of("front")

    def wait() -> tuple[grpc.StatusCode, str]:
        request = cri.ExecSyncRequest(
            container_id=container, cmd=["sh", "-c", "touch /tmp/begun; sleep 600"]
        )
        with pytest.raises(grpc.RpcError) as caught:
            node.runtime.ExecSync(request, timeout=WAIT_S)
        return caught.value.code(), caught.value.details() or ""

    begun = Path(f"/proc/{node.pid(container)}/root/tmp/begun")
    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(wait)
        wait_until(begun.exists, what="the command runs")
        os.kill(node.pid_of("daemon"), signal.SIGKILL)
        assert waiting.result(WAIT_S) == (
            grpc.StatusCode.UNAVAILABLE,
            "the runtime has ended",
        )
    node.reap()
    wait_until(lambda: not is_running(front), what="the front ends")
    node.start()
    assert node.exec(container, "true").exit_code == 0
