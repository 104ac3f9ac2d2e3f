# SPDX-License-Identifier: Apache-2.0
"""kill -9 of daemon, front, spawner or monitor: containers go on, and nothing is forgotten."""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.system.test_pod_init import host_pid_of_init
from tests.world.daemon import Node, is_running, parse_log, wait_until
from tests.world.images import Images

PROCESSES = ["daemon", "front", "spawner", "monitor"]
FLOOD = "i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); done; echo end $i; exit 5"
MOST_LOST_BYTES = 64 << 10
"""What the monitor may hold in its hands: one chunk, a pipe's worth at most."""
TELLS_EXITS = tuple(map(int, platform.release().split(".")[:2])) >= (6, 15)
"""The kernel tells exit codes to others than the parent; a new spawner is nobody's."""
UNKNOWN = (255, "ContainerStatusUnknown")


def kill_and_recover(node: Node, process: str) -> None:
    """Kill a process of the node and wait until it has a successor that works."""
    killed = node.kill(process)
    if process == "front":
        assert node.reap() == 1
    if process in ("daemon", "front"):
        node.start()
        return

    def replaced() -> bool:
        try:
            return is_running(pid := node.pid_of(process)) and pid != killed
        except (grpc.RpcError, KeyError):  # not there yet
            return False

    wait_until(replaced, what=f"a new {process}")


def ended_as(node: Node, container: str) -> tuple[int, str]:
    """Wait for the container's end; return its exit code and reason."""
    status = node.wait_exited(container)
    return status.exit_code, status.reason


def known(killed: str, code: int) -> tuple[int, str]:
    """Return what a container's end is known as, that was running when a process was killed."""
    return UNKNOWN if killed == "spawner" and not TELLS_EXITS else (code, "Error")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_running_container_is_as_it_was(process: str, own_node: Node, images: Images) -> None:
    node = own_node
    pod = node.run_pod("survivor")
    container = node.run_container(
        pod, images["busybox"], command="echo before; read x; echo after; exit 3", stdin=False
    )
    quiet = node.run_container(
        pod,
        images["busybox"],
        name="quiet",
        command="echo before; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after; exit 3",
    )
    ended = node.wait_exited(container)
    address, before = node.pod_ip(pod), node.status(quiet)
    pid = node.pid(quiet)
    node.wait_log(quiet, "before")
    kill_and_recover(node, process)
    assert node.pod_status(pod).state == cri.SANDBOX_READY
    assert node.pod_ip(pod) == address
    assert node.status(container) == ended
    assert node.status(quiet) == before
    assert node.pid(quiet) == pid
    assert is_running(pid)
    node.touch(quiet, "/tmp/go")
    assert ended_as(node, quiet) == known(process, 3)
    assert [line.content for line in node.log(quiet)] == ["before", "after"]


@pytest.mark.parametrize("process", PROCESSES)
def test_containers_are_stopped_and_removed_as_ever(
    process: str, own_node: Node, images: Images
) -> None:
    node = own_node
    pod = node.run_pod("ended")
    stopped = node.run_container(pod, images["busybox"], name="a", command=["sleep", "600"])
    removed = node.run_container(pod, images["busybox"], name="b", command=["sleep", "600"])
    node.run_container(pod, images["busybox"], name="c", command=["sleep", "600"])
    kill_and_recover(node, process)
    node.stop_container(stopped, timeout=0)
    assert ended_as(node, stopped) == known(process, 137)
    node.remove_container(removed)
    node.stop_pod(pod)
    node.remove_pod(pod)
    assert not node.runtime.ListContainers(cri.ListContainersRequest()).containers
    fresh = node.run_pod("fresh")
    assert node.run_to_end(fresh, images["busybox"], command="echo works") == "works\n"


@pytest.mark.parametrize("process", PROCESSES)
def test_the_log_of_a_flood_is_whole(process: str, own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(node.run_pod("flood"), images["busybox"], command=FLOOD)
    seen = len(node.wait_log(container, "", count=1000))
    kill_and_recover(node, process)
    node.wait_log(container, "", count=seen + 1000)
    node.touch(container, "/tmp/stop")
    assert ended_as(node, container) == known(process, 5)
    *numbers, end = [line.content for line in node.log(container)]
    total = int(end.removeprefix("end "))
    assert len(set(numbers)) == len(numbers)
    lost = sorted(set(range(total)) - {int(number) for number in numbers})
    if process != "monitor":
        assert lost == []
    if lost:
        assert lost == list(range(lost[0], lost[-1] + 1)), "more than one gap"
        assert sum(len(f"{number}\n") for number in lost) <= MOST_LOST_BYTES


def test_lines_are_still_logged_while_the_daemon_is_dead(own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(node.run_pod("alone"), images["busybox"], command=FLOOD)
    path = Path(node.status(container).log_path)
    node.wait_log(container, "", count=100)
    pid = node.pid(container)
    node.kill("daemon")
    size = path.stat().st_size
    wait_until(lambda: path.stat().st_size > size + 10_000, what="the log grows")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), what="the container's end")
    node.start()
    assert ended_as(node, container) == (137, "Error")
    assert parse_log(path.read_text())


def test_an_exit_while_the_daemon_is_dead_is_known_afterwards(
    own_node: Node, images: Images
) -> None:
    node = own_node
    script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9"
    container = node.run_container(node.run_pod("exit"), images["busybox"], command=script)
    pid = node.pid(container)
    node.kill("daemon")
    began = time.time_ns()
    Path(f"/proc/{pid}/root/tmp/go").touch()
    wait_until(lambda: not is_running(pid), what="the container's end")
    ended = time.time_ns()
    node.start()
    assert ended_as(node, container) == (9, "Error")
    status = node.status(container)
    assert began < status.finished_at < ended + 1_000_000_000


@pytest.mark.skipif(
    not TELLS_EXITS, reason="the kernel tells an exit code only to the parent before 6.15"
)
def test_an_exit_while_the_spawner_is_dead_is_known_afterwards(
    own_node: Node, images: Images
) -> None:
    node = own_node
    script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9"
    container = node.run_container(node.run_pod("exit"), images["busybox"], command=script)
    pid = node.pid(container)
    spawner = node.pid_of("spawner")
    os.kill(spawner, signal.SIGKILL)
    Path(f"/proc/{pid}/root/tmp/go").touch()
    wait_until(lambda: not is_running(pid), what="the container's end")

    def exited() -> cri.ContainerStatus | None:
        with suppress(grpc.RpcError):
            status = node.status(container)
            return status if status.state == cri.CONTAINER_EXITED else None
        return None

    assert wait_until(exited, what="the exit is known").exit_code == 9


def test_all_three_can_die_one_after_the_other(own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(node.run_pod("tough"), images["busybox"], command=FLOOD)
    for process in [*PROCESSES, *reversed(PROCESSES)]:
        kill_and_recover(node, process)
        count = len(node.wait_log(container, "", count=1))
        node.wait_log(container, "", count=count + 100)
    node.touch(container, "/tmp/stop")
    assert ended_as(node, container) == known("spawner", 5)
    assert node.log(container)[-1].content.startswith("end ")


def test_a_pod_s_init_does_not_survive_spawner_and_monitor_both(
    own_node: Node, images: Images
) -> None:
    """Nobody holds it any more, and its pod is stopped: it was left, with its group."""
    node = own_node
    pod = node.run_pod("orphan", namespaces={"pid": cri.POD})
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    init, first = host_pid_of_init(node), node.pid(container)
    for pid in [node.pid_of("monitor"), node.pid_of("spawner")]:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(init), what="the end of the pod's init")
    assert not is_running(first)
    wait_until(lambda: node.pod_status(pod).state == cri.SANDBOX_NOTREADY, what="the pod's stop")


def test_a_service_manager_s_restart_ends_nothing(own_node: Node, images: Images) -> None:
    node = own_node
    container = node.run_container(node.run_pod("restart"), images["busybox"], command=FLOOD)
    pid = node.pid(container)
    node.restart()
    assert node.pid(container) == pid
    assert node.status(container).state == cri.CONTAINER_RUNNING


def create_and_start(node: Node, image: str) -> None:
    pod = node.run_pod("half")
    node.start_container(node.create_container(pod, image, command=["sleep", "600"]))


def end(node: Node, image: str) -> None:
    create_and_start(node, image)
    node.clear()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("work", [create_and_start, end])
def test_a_call_cut_short_leaves_nothing_and_can_be_made_again(
    work: Callable[[Node, str], None],
    process: str,
    make_node: Callable[..., Node],
    images: Images,
) -> None:
    node = make_node()
    node.pull(images["busybox"])
    for delay_ms in (0, 3, 6, 10, 15, 25):
        pid = node.pid_of(process)
        killer = threading.Timer(delay_ms / 1000, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with suppress(grpc.RpcError):
            work(node, images["busybox"])
        killer.join()
        wait_until(lambda pid=pid: not is_running(pid), what="the end")  # type: ignore[misc]
        if process in ("daemon", "front"):
            node.reap()
            node.start()

        def works() -> bool:
            with suppress(grpc.RpcError):
                create_or_find(node, images["busybox"])
                return True
            return False

        wait_until(works, what=f"the node works after {delay_ms} ms")
        node.clear()


def create_or_find(node: Node, image: str) -> None:
    """Do what the kubelet does again after a failure: each step, unless it is done."""
    for found in node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        if found.state == cri.SANDBOX_NOTREADY:
            node.remove_pod(found.id)
    pod = node.run_pod("half")
    container = node.create_container(pod, image, command=["sleep", "600"])
    if node.status(container).state == cri.CONTAINER_CREATED:
        node.start_container(container)
    if node.status(container).state == cri.CONTAINER_EXITED:
        node.remove_container(container)  # the spawner died in its start: begin again
        create_or_find(node, image)
    assert node.shell(container, "echo works") == "works\n"
