# SPDX-License-Identifier: Apache-2.0
"""A kubelet that trusts events (feature EventedPLEG) always knows what List and Status would say.

`Kubelet` keeps a cache of pods as that kubelet does, in our own words:

- An event without a pod's status is dropped. Any other carries the pod as a whole: its status and
  those of its containers take the place of what was known of the pod's uid, unless what is known
  is of a later time.
- DELETED of the sandbox itself forgets the pod. DELETED of a container changes nothing but wakes
  the pod's worker.
- An empty address does not replace one that was known, unless the sandbox is ready.
- When the stream ends, all is listed: each pod's status at once with those of its containers, of
  the time that the answer tells. Then events are asked for again.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.world.daemon import Node, is_running, wait_until
from tests.world.images import Images

MEBIBYTE = 1 << 20

Known = dict[str, tuple[int, int, str]]
"""Containers by id: state, exit code, reason."""


class Pod(NamedTuple):
    """What is known of a pod, and as of when."""

    sandbox: cri.PodSandboxStatus
    containers: list[cri.ContainerStatus]
    address: str
    timestamp_ns: int

    def known(self) -> Known:
        return {one.id: (one.state, one.exit_code, one.reason) for one in self.containers}


class Kubelet:
    """The cache by uid; told: what its pod workers were woken by, in order."""

    def __init__(self, node: Node) -> None:
        self.cache: dict[str, Pod] = {}
        self.told: list[tuple[str, str]] = []
        self.dropped: list[cri.ContainerEventResponse] = []
        self.late: list[cri.ContainerEventResponse] = []
        self.streams = 0
        self._channel = grpc.insecure_channel(f"unix:{node.run_dir}/pycri.sock")
        self._runtime = cri_grpc.RuntimeServiceStub(self._channel)
        self._stopping = False
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stopping = True
        if self._call is not None:
            self._call.cancel()  # type: ignore[no-untyped-call]
        self._thread.join()
        self._channel.close()

    def _watch(self) -> None:
        while not self._stopping:
            try:
                call = self._runtime.GetContainerEvents(cri.GetEventsRequest(), wait_for_ready=True)
                self._call = call
                call.initial_metadata()
                self.streams += 1
                for event in call:
                    self._take(event)
            except grpc.RpcError:
                pass
            if not self._stopping:
                self._relist()

    def _relist(self) -> None:
        runtime = self._runtime
        request = cri.ListPodSandboxRequest()
        for pod in runtime.ListPodSandbox(request, wait_for_ready=True).items:
            status = runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
            assert status.timestamp, "it would ask for each container instead"
            self._set(status.status, list(status.containers_statuses), status.timestamp)

    def _take(self, event: cri.ContainerEventResponse) -> None:
        sandbox = event.pod_sandbox_status
        if not event.HasField("pod_sandbox_status") or not sandbox.HasField("metadata"):
            self.dropped.append(event)
            return
        kind = event.container_event_type
        if kind == cri.CONTAINER_DELETED_EVENT:
            if sandbox.id == event.container_id:
                self.cache.pop(sandbox.metadata.uid, None)
            self.told += [("Died", event.container_id), ("Removed", event.container_id)]
        elif not self._set(sandbox, list(event.containers_statuses), event.created_at):
            self.late.append(event)
        elif kind == cri.CONTAINER_STARTED_EVENT:
            self.told.append(("Started", event.container_id))
        elif kind == cri.CONTAINER_STOPPED_EVENT:
            self.told.append(("Died", event.container_id))

    def _set(
        self,
        sandbox: cri.PodSandboxStatus,
        containers: list[cri.ContainerStatus],
        timestamp_ns: int,
    ) -> bool:
        uid = sandbox.metadata.uid
        known = self.cache.get(uid)
        if known is not None and known.timestamp_ns > timestamp_ns:
            return False
        address = sandbox.network.ip
        if not address and known is not None and sandbox.state != cri.SANDBOX_READY:
            address = known.address
        self.cache[uid] = Pod(sandbox, containers, address, timestamp_ns)
        return True

    # what the tests ask

    def agrees(self, pod: str, uid: str) -> bool:
        """Tell whether the cache is what a status says; those removed may be there as ended."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
        status = self._runtime.PodSandboxStatus(request)
        cached = self.cache.get(uid)
        if cached is None or cached.sandbox != status.status:
            return False
        listed = {
            one.id: one.state
            for one in self._runtime.ListContainers(cri.ListContainersRequest()).containers
            if one.pod_sandbox_id == pod
        }
        known = cached.known()
        asked = {
            one.id: (one.state, one.exit_code, one.reason) for one in status.containers_statuses
        }
        gone = known.keys() - asked.keys()
        assert all(known[one][0] == cri.CONTAINER_EXITED for one in gone)
        return all(known.get(one) == asked[one] for one in asked) and listed == {
            one: state for one, (state, *_) in asked.items()
        }

    def wait_agrees(self, pod: str, name: str) -> None:
        wait_until(lambda: self.agrees(pod, f"{name}-uid"), what=f"the cache agrees on {name}")

    def wait_told(self, *told: tuple[str, str]) -> None:
        """Wait until the worker was woken by these, in this order."""
        subjects = {subject for _, subject in told}

        def of_these() -> list[tuple[str, str]]:
            return [one for one in self.told if one[1] in subjects]

        wait_until(lambda: len(of_these()) >= len(told), what=f"{told}")
        assert of_these() == list(told)


@contextmanager
def watching(node: Node) -> Iterator[Kubelet]:
    kubelet = Kubelet(node)
    try:
        wait_until(lambda: kubelet.streams, what="the stream begins")
        yield kubelet
    finally:
        kubelet.close()


def test_a_pods_life_is_known_without_asking(node: Node, images: Images) -> None:
    with watching(node) as kubelet:
        pod = node.run_pod("told")
        kubelet.wait_agrees(pod, "told")
        assert kubelet.cache["told-uid"].address
        container = node.create_container(pod, images["busybox"], command=["sleep", "600"])
        kubelet.wait_agrees(pod, "told")
        assert kubelet.cache["told-uid"].known()[container][0] == cri.CONTAINER_CREATED
        node.start_container(container)
        kubelet.wait_agrees(pod, "told")
        node.stop_container(container)
        kubelet.wait_agrees(pod, "told")
        second = node.run_container(pod, images["busybox"], name="second", command="exit 7")
        node.wait_exited(second)
        node.remove_container(container)
        kubelet.wait_agrees(pod, "told")
        address = kubelet.cache["told-uid"].address
        node.stop_pod(pod)
        kubelet.wait_agrees(pod, "told")
        assert kubelet.cache["told-uid"].address == address
        node.remove_pod(pod)
        wait_until(lambda: "told-uid" not in kubelet.cache, what="the pod is forgotten")
        kubelet.wait_told(
            ("Started", pod),
            ("Started", container),
            ("Died", container),
            ("Started", second),
            ("Died", second),
            ("Died", container),
            ("Removed", container),
            ("Died", pod),
            ("Died", second),
            ("Removed", second),
            ("Died", pod),
            ("Removed", pod),
        )
        assert not kubelet.dropped
        assert not kubelet.late


@pytest.mark.parametrize("way", ["killed", "oom", "cannot start"])
def test_an_end_that_nobody_asked_for_is_known(node: Node, images: Images, way: str) -> None:
    with watching(node) as kubelet:
        pod = node.run_pod("ends")
        if way == "cannot start":
            container = node.create_container(pod, images["busybox"], command=["/absent"])
            with pytest.raises(grpc.RpcError):
                node.start_container(container)
            wanted = (128, "StartError")
        elif way == "oom":
            container = node.run_container(
                pod,
                images["busybox"],
                command="x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done",
                resources={"memory_limit_in_bytes": 32 * MEBIBYTE},
            )
            wanted = (137, "OOMKilled")
        else:
            container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
            os.kill(node.pid(container), signal.SIGKILL)
            wanted = (137, "Error")
        kubelet.wait_told(
            *([] if way == "cannot start" else [("Started", container)]), ("Died", container)
        )
        kubelet.wait_agrees(pod, "ends")
        assert kubelet.cache["ends-uid"].known()[container][1:] == wanted


def test_a_daemon_that_comes_back_leaves_nothing_unknown(own_node: Node, images: Images) -> None:
    """What happened meanwhile is known, by the listing after the stream's end or by an event."""
    with watching(own_node) as kubelet:
        pod = own_node.run_pod("stays")
        lives = own_node.run_container(pod, images["busybox"], name="a", command=["sleep", "600"])
        ends = own_node.run_container(pod, images["busybox"], name="b", command=["sleep", "600"])
        removed = own_node.run_pod("removed")
        kubelet.wait_agrees(pod, "stays")
        pid = own_node.pid(ends)
        own_node.stop()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), what="it has ended")
        own_node.start()
        wait_until(lambda: kubelet.streams == 2, what="events are asked for again")
        kubelet.wait_agrees(pod, "stays")
        known = kubelet.cache["stays-uid"].known()
        assert (known[lives][0], known[ends][:2]) == (
            cri.CONTAINER_RUNNING,
            (cri.CONTAINER_EXITED, 137),
        )
        own_node.remove_pod(removed)
        wait_until(lambda: "removed-uid" not in kubelet.cache, what="the pod is forgotten")
        own_node.stop_container(lives)
        kubelet.wait_agrees(pod, "stays")
        assert not kubelet.dropped


def test_many_pods_that_come_and_go_are_known_at_each_end(node: Node, images: Images) -> None:
    with watching(node) as kubelet:
        for number in range(8):
            pod = node.run_pod(f"pod-{number}")
            container = node.run_container(pod, images["busybox"], command=["true"])
            node.wait_exited(container)
            kubelet.wait_agrees(pod, f"pod-{number}")
            if number % 2:
                node.remove_pod(pod)
        wait_until(
            lambda: set(kubelet.cache) == {f"pod-{number}-uid" for number in range(0, 8, 2)},
            what="only those are known that are there",
        )
        assert not kubelet.dropped
        assert not kubelet.late
