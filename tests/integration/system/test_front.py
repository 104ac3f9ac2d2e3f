# SPDX-License-Identifier: Apache-2.0
"""Who answers clients goes before ordinary work, as who shares its lock; no other process does."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

RESET = os.SCHED_RESET_ON_FORK


def real_time_is_allowed() -> bool:
    """Ask the kernel: a control group may have no real-time budget."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def policies(pid: int) -> list[int]:
    """Return the scheduling policies of a process' threads, its first one's first."""
    tasks = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    return [os.sched_getscheduler(task) & ~RESET for task in tasks]


def test_the_daemons_work_for_clients_is_real_time_and_that_of_no_process_besides(
    own_node: Node, images: Images
) -> None:
    if not real_time_is_allowed():
        pytest.skip("this host lets nobody run at a real-time priority")
    node = own_node
    pod = node.run_pod("ordinary")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    assert node.exec(container, "true").exit_code == 0
    node.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
    assert policies(node.pid_of("front")) == [os.SCHED_FIFO]
    loop, *threads = policies(node.pid_of("daemon"))
    assert loop == os.SCHED_FIFO
    # Who serves the front and who blocks for it; who reads statistics is not among them.
    assert threads.count(os.SCHED_FIFO) >= 2
    assert os.SCHED_OTHER in threads
    # Also of those that are started by who is real-time itself.
    node.kill("spawner")
    wait_until(lambda: node.exec(container, "true").exit_code == 0, what="another spawner")
    others = [node.pid_of("spawner"), node.pid_of("monitor"), node.pid(container)]
    assert {policy for pid in others for policy in policies(pid)} == {os.SCHED_OTHER}


def test_who_has_got_an_answer_sees_what_it_did(node: Node, images: Images) -> None:
    def listed(pod: str) -> list[int]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id=pod))
        return [one.state for one in node.runtime.ListPodSandbox(request).items]

    def live(number: int) -> None:
        pod = node.run_pod(f"seen-{number}")
        assert listed(pod) == [cri.SANDBOX_READY]
        container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
        assert node.status(container).state == cri.CONTAINER_RUNNING
        node.runtime.StopContainer(cri.StopContainerRequest(container_id=container))
        assert node.status(container).state == cri.CONTAINER_EXITED
        node.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert listed(pod) == [cri.SANDBOX_NOTREADY]
        node.remove_pod(pod)
        assert listed(pod) == []

    with ThreadPoolExecutor(8) as kubelet:
        for life in [kubelet.submit(live, number) for number in range(24)]:
            life.result()
