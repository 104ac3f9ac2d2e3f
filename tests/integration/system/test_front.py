# SPDX-License-Identifier: Apache-2.0
"""The thread that answers clients goes before ordinary work; nothing else of the node does."""

import os

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node
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
    """Return the scheduling policies of a process' threads."""
    return [os.sched_getscheduler(int(task)) & ~RESET for task in os.listdir(f"/proc/{pid}/task")]


def test_one_thread_of_the_daemon_is_real_time_and_no_process_besides(
    node: Node, images: Images
) -> None:
    if not real_time_is_allowed():
        pytest.skip("this host lets nobody run at a real-time priority")
    pod = node.run_pod("ordinary")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    assert node.exec(container, "true").exit_code == 0
    node.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
    assert policies(node.pid_of("daemon")).count(os.SCHED_FIFO) == 1
    others = [node.pid_of("spawner"), node.pid_of("monitor"), node.pid(container)]
    assert {policy for pid in others for policy in policies(pid)} == {os.SCHED_OTHER}
