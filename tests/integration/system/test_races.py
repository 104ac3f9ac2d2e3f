# SPDX-License-Identifier: Apache-2.0
"""Calls on one pod at the same time: whichever comes first, nothing stays that nobody owns."""

import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

ROUNDS = 24
SLEEP = ["sleep", "600"]
EDGE_S = 0.05
"""So far apart, calls come one after the other."""
WRONG_STATE, NOT_FOUND = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND


def together(*calls: tuple[float, Callable[[], object]]) -> list[object]:
    """Make calls in threads of their own, each so many seconds after a common start.

    Returns their results.
    """
    barrier = threading.Barrier(len(calls))

    def make(delay_s: float, call: Callable[[], object]) -> object:
        barrier.wait()
        # The moment is what is varied from round to round, not something to wait for.
        time.sleep(delay_s)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, *zip(*calls, strict=True)))


def may_lose(call: Callable[[], object], *codes: grpc.StatusCode) -> Callable[[], object]:
    """Return the call as one that may be refused with one of the codes; its result is None then."""

    def make() -> object:
        try:
            return call()
        except grpc.RpcError as error:
            assert error.code() in codes, f"{error.code()}: {error.details()}"
            return None

    return make


def head_starts(round_number: int, step_s: float) -> tuple[float, float]:
    """Return how long each of two sides waits in a round; the first two rounds are no race."""
    lead_s = (
        (-EDGE_S, EDGE_S)[round_number] if round_number < 2 else (round_number % 12 - 2) * step_s
    )
    return max(0.0, lead_s), max(0.0, -lead_s)


def containers(node: Node) -> list[cri.Container]:
    return list(node.runtime.ListContainers(cri.ListContainersRequest()).containers)


def processes_of(node: Node) -> list[str]:
    """The pids below the node's cgroup parent, of any hierarchy."""
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-path", f"*/{node.name}/*", "-name", "cgroup.procs"],
        capture_output=True,
        text=True,
        check=False,
    )
    pids = []
    for path in found.stdout.split():
        try:
            pids += Path(path).read_text().split()
        except OSError:  # the group was removed meanwhile
            continue
    return pids


def test_a_pod_stopped_while_a_container_is_started_has_none_running(
    node: Node, images: Images
) -> None:
    image = images["busybox"]
    outcomes = set()
    for number in range(ROUNDS):
        pod = node.run_pod(f"race-{number}")
        names = ("a", "b")
        made = [node.create_container(pod, image, name=name, command=SLEEP) for name in names]

        def start(container: str) -> str:
            node.start_container(container)
            return "started"

        stop_s, start_s = head_starts(number, 0.002)
        _, *started = together(
            (stop_s, partial(node.stop_pod, pod)),
            *((start_s, may_lose(partial(start, one), WRONG_STATE)) for one in made),
        )
        outcomes.update(started)
        assert node.pod_status(pod).state == cri.SANDBOX_NOTREADY
        states = {node.status(container).state for container in made}
        assert cri.CONTAINER_RUNNING not in states, f"{stop_s} s, {start_s} s"
        assert processes_of(node) == []
        node.remove_pod(pod)
    assert outcomes == {"started", None}, "each side won at times"


def test_a_container_created_while_its_pod_is_removed_leaves_nothing(
    own_node: Node, images: Images
) -> None:
    node, image = own_node, images["busybox"]
    node.pull(image)
    outcomes = set()
    for number in range(ROUNDS):
        pod = node.run_pod(f"race-{number}")

        def create(pod: str, name: str) -> str:
            node.create_container(pod, image, name=name)
            return "created"

        remove_s, create_s = head_starts(number, 0.0005)
        _, *created = together(
            (remove_s, partial(node.remove_pod, pod)),
            *(
                (create_s, may_lose(partial(create, pod, name), WRONG_STATE, NOT_FOUND))
                for name in "abcd"
            ),
        )
        outcomes.update(created)
        assert containers(node) == [], f"{remove_s} s, {create_s} s"
        assert list((node.state_dir / "containers").iterdir()) == []
    assert outcomes == {"created", None}, "each side won at times"
    node.restart()
    assert containers(node) == [], "nor in the database"


def test_a_container_removed_while_it_is_started_is_gone_or_runs(
    node: Node, images: Images
) -> None:
    image = images["busybox"]
    pod = node.run_pod("race")
    for number in range(ROUNDS):
        container = node.create_container(pod, image, name=f"c{number}", command=SLEEP)
        remove_s, start_s = head_starts(number, 0.002)
        together(
            (remove_s, may_lose(partial(node.remove_container, container), WRONG_STATE)),
            (start_s, may_lose(partial(node.start_container, container), WRONG_STATE, NOT_FOUND)),
        )
        left = [each for each in containers(node) if each.id == container]
        assert all(each.state == cri.CONTAINER_RUNNING for each in left)
        node.remove_container(container)
        wait_until(lambda: processes_of(node) == [], what="no process is left")


def test_a_pod_stopped_and_removed_by_many_at_once_is_gone(node: Node, images: Images) -> None:
    for number in range(4):
        pod = node.run_pod(f"race-{number}", namespaces={"pid": cri.POD})
        node.run_container(pod, images["busybox"], command=SLEEP)
        together(
            *((0.0, partial(node.stop_pod, pod)) for _ in range(3)),
            *((0.0, partial(node.remove_pod, pod)) for _ in range(3)),
        )
        assert containers(node) == []
        assert list(node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items) == []
        assert processes_of(node) == []


def test_stops_and_removals_of_one_pod_at_once_all_succeed(node: Node, images: Images) -> None:
    """Absent is fine for both (CRI), also for a call that has waited for the one before it."""
    pod = node.run_pod("race")
    node.run_container(pod, images["busybox"], command=SLEEP)
    stop, remove = (
        cri.StopPodSandboxRequest(pod_sandbox_id=pod),
        cri.RemovePodSandboxRequest(pod_sandbox_id=pod),
    )
    calls = [
        call
        for _ in range(4)
        for call in (
            node.runtime.RemovePodSandbox.future(remove),
            node.runtime.StopPodSandbox.future(stop),
        )
    ]
    for call in calls:
        call.result(timeout=30)
