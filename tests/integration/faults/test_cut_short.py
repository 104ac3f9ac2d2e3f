# SPDX-License-Identifier: Apache-2.0
"""Calls whose daemon or spawner dies at a known point: what stays, and what a retry does."""

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import msgspec
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import CALL_TIMEOUT_S, Node, is_running, wait_until
from tests.world.images import Images

SLEEP = ["sleep", "600"]


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Stop a process by SIGSTOP; it must have been killed, or goes on, at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def call(work: Callable[[], object]) -> Iterator[Future[object]]:
    """Make a call beside the test."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def end_spawner(node: Node, pid: int) -> None:
    """Kill a spawner whose pid was asked for while it still answered."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), what="the spawner ends")


def has_noticed(node: Node, spawner: int) -> bool:
    """Tell whether the daemon knows that this spawner has ended."""
    answer = node.runtime.Status(cri.StatusRequest(verbose=True), timeout=CALL_TIMEOUT_S)
    ready = {condition.type: condition.status for condition in answer.status.conditions}
    return not ready["RuntimeReady"] or answer.info["spawner_pid"] != str(spawner)


def pods_of(node: Node) -> list[cri.PodSandbox]:
    return list(node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items)


def cgroup_of(node: Node, container: str) -> list[Path]:
    """The folders of a container's group that are there, in every hierarchy."""
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    info = node.runtime.ContainerStatus(request, timeout=CALL_TIMEOUT_S).info["info"]
    path = msgspec.json.decode(info)["cgroup"].lstrip("/")
    root = Path("/sys/fs/cgroup")
    places = [root, *(folder for folder in root.iterdir() if folder.is_dir())]
    return [place / path for place in places if (place / path).is_dir()]


@pytest.mark.parametrize("pid_namespace", [cri.CONTAINER, cri.POD], ids=["container", "pod"])
def test_run_pod_sandbox_works_again_after_its_spawner_died_in_it(
    pid_namespace: int, own_node: Node, images: Images
) -> None:
    node = own_node
    node.pull(images["busybox"])
    config = node.pod_config("half", namespaces={"pid": pid_namespace})
    spawner = node.pid_of("spawner")
    with standing_still(spawner), call(lambda: node.run_config(config)) as running:
        # The intent and the folders come before the spawner is asked.
        wait_until(lambda: [*(node.state_dir / "pods").iterdir()], what="the call is under way")
        end_spawner(node, spawner)
        error = running.exception(CALL_TIMEOUT_S)
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    pod = node.run_config(config)
    assert [item.id for item in pods_of(node)] == [pod]
    assert [path.name for path in (node.state_dir / "pods").iterdir()] == [pod]
    assert node.run_to_end(pod, images["busybox"], command="echo works") == "works\n"


def test_a_call_made_while_the_spawner_is_replaced_waits_for_it(
    own_node: Node, images: Images
) -> None:
    node = own_node
    node.pull(images["busybox"])
    for number in range(3):
        spawner = node.pid_of("spawner")
        end_spawner(node, spawner)
        wait_until(lambda: has_noticed(node, spawner), what="the daemon has noticed")  # noqa: B023
        pod = node.run_pod(f"waits-{number}")
        assert node.run_to_end(pod, images["busybox"], command="echo works") == "works\n"


def test_a_pod_that_a_dead_daemon_had_asked_for_is_not_made(own_node: Node, images: Images) -> None:
    """The spawner ends what it had begun: nobody else would ever know of it."""
    node = own_node
    node.pull(images["busybox"])
    spawner, daemon = node.pid_of("spawner"), node.pid_of("daemon")
    with standing_still(spawner), call(lambda: node.run_pod("half")) as running:
        wait_until(lambda: [*(node.state_dir / "pods").iterdir()], what="the call is under way")
        os.kill(daemon, signal.SIGKILL)
        node.reap()
        assert isinstance(running.exception(CALL_TIMEOUT_S), grpc.RpcError)
    node.start()
    assert pods_of(node) == []
    assert [*(node.run_dir / "ns").iterdir()] == []
    pod = node.run_pod("half")
    assert node.run_to_end(pod, images["busybox"], command="echo works") == "works\n"


def test_a_container_half_made_when_the_daemon_died_is_dropped(
    own_node: Node, images: Images
) -> None:
    node = own_node
    pod = node.run_pod("half")
    whole = node.create_container(pod, images["busybox"], name="whole", command=SLEEP)
    half = node.create_container(pod, images["busybox"], name="half", command=SLEEP)
    node.kill("daemon")
    # `work` is made last: a daemon that dies before has come no further than this.
    (node.state_dir / "containers" / half / "work").rmdir()
    node.start()
    left = node.runtime.ListContainers(cri.ListContainersRequest()).containers
    assert [container.id for container in left] == [whole]
    assert not (node.state_dir / "containers" / half).exists()
    again = node.create_container(pod, images["busybox"], name="half", command=SLEEP)
    assert again != half
    for container in (whole, again):
        node.start_container(container)
        assert node.status(container).state == cri.CONTAINER_RUNNING
    with sqlite3.connect(f"file:{node.state_dir}/pycri.db?mode=ro", uri=True) as database:
        stored = {row[0] for row in database.execute("SELECT id FROM containers")}
    database.close()
    assert stored == {whole, again}


def test_groups_that_a_container_has_made_below_its_own_outlive_a_daemon(
    own_node: Node, images: Images
) -> None:
    """A systemd in the container makes such groups; those of execs cut short are ended."""
    node = own_node
    pod = node.run_pod("groups")
    container = node.run_container(pod, images["busybox"], command=SLEEP)
    groups = cgroup_of(node, container)
    assert groups
    script = "sleep 611 & exec sleep 612"
    with call(lambda: node.exec(container, "sh", "-c", script)) as running:
        wait_until(lambda: "sleep 612" in node.shell(container, "ps -o args"), what="the exec runs")
        for group in groups:
            (group / "foreign/below").mkdir(parents=True)
        node.kill("daemon")
        node.start()
        assert isinstance(running.exception(CALL_TIMEOUT_S), grpc.RpcError)
    assert all((group / "foreign/below").is_dir() for group in groups)
    left = {folder.name for group in groups for folder in group.iterdir() if folder.is_dir()}
    assert left == {"foreign"}
    assert "sleep 61" not in node.shell(container, "ps -o args | grep -v grep")
    assert node.status(container).state == cri.CONTAINER_RUNNING
    node.stop_container(container)
    node.remove_container(container)
    assert not any(group.exists() for group in groups)


@pytest.fixture
def given_parent(own_node: Node) -> Iterator[str]:
    """A cgroup as the kubelet makes them for pods: the caller's, not below the runtime's own."""
    parent = f"/{own_node.name}-given"
    yield parent
    own_node.clear()
    for folder in Path("/sys/fs/cgroup").glob(f"*{parent}"):
        folder.rmdir()
    if (alone := Path(f"/sys/fs/cgroup{parent}")).exists():
        alone.rmdir()


def test_the_group_of_a_start_that_was_cut_short_goes_with_its_container(
    own_node: Node, images: Images, given_parent: str
) -> None:
    """Nothing is swept below a parent that the kubelet gave."""
    node = own_node
    pod = node.run_pod("half", linux={"cgroup_parent": given_parent})
    first = node.run_container(pod, images["busybox"], command=SLEEP)
    hierarchies = cgroup_of(node, first)
    assert hierarchies
    node.remove_container(first)
    container = node.create_container(pod, images["busybox"], command=SLEEP)
    # A child that was killed with its daemon, before its execve, leaves them so.
    groups = [group.parent / container for group in hierarchies]
    for group in groups:
        group.mkdir()
    assert set(cgroup_of(node, container)) == set(groups)
    node.restart()
    node.remove_container(container)
    assert not any(group.exists() for group in groups)


def test_a_parent_of_pods_below_our_own_is_not_swept(own_node: Node, images: Images) -> None:
    pod = own_node.run_pod("below", linux={"cgroup_parent": f"/{own_node.name}/kubepods"})
    container = own_node.run_container(pod, images["busybox"], command=SLEEP)
    own_node.restart()
    assert own_node.status(container).state == cri.CONTAINER_RUNNING
    own_node.clear()
    for folder in [
        *Path("/sys/fs/cgroup").glob(f"*/{own_node.name}/kubepods"),
        *Path("/sys/fs/cgroup").glob(f"{own_node.name}/kubepods"),
    ]:
        folder.rmdir()
