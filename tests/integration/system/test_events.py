# SPDX-License-Identifier: Apache-2.0
"""GetContainerEvents against what was done to pods and containers."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

MEBIBYTE = 1 << 20


class Reader:
    """A client that takes events as they come."""

    def __init__(self, node: Node) -> None:
        self._call = node.runtime.GetContainerEvents(cri.GetEventsRequest())
        self._call.initial_metadata()  # from here on nothing is missed
        self.events: list[cri.ContainerEventResponse] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.events.append(event)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

    def close(self) -> None:
        self._call.cancel()  # type: ignore[no-untyped-call]
        self._thread.join()

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def of(self, subject: str) -> list[str]:
        """Return the kinds of the events of a pod or container so far."""
        return [
            cri.ContainerEventType.Name(event.container_event_type).split("_")[1]
            for event in self.events
            if event.container_id == subject
        ]

    def wait(self, subject: str, *kinds: str) -> None:
        """Wait until these have been the subject's events."""
        wait_until(lambda: len(self.of(subject)) >= len(kinds), what=f"{kinds}")
        assert self.of(subject) == list(kinds)

    def last(self, subject: str) -> cri.ContainerEventResponse:
        return [event for event in self.events if event.container_id == subject][-1]


@contextmanager
def reading(node: Node) -> Iterator[Reader]:
    reader = Reader(node)
    try:
        yield reader
    finally:
        reader.close()


LIFE = ("CREATED", "STARTED", "STOPPED", "DELETED")


def test_a_life_from_beginning_to_end_is_told_to_every_reader(node: Node, images: Images) -> None:
    with reading(node) as first, reading(node) as second:
        pod = node.run_pod("told")
        container = node.run_container(pod, images["busybox"], command="exit 3")
        for reader in (first, second):
            reader.wait(container, *LIFE[:3])
            status = reader.last(container).containers_statuses[0]
            assert (status.id, status.exit_code, status.reason) == (container, 3, "Error")
        node.stop_pod(pod)
        node.remove_pod(pod)
        for reader in (first, second):
            reader.wait(container, *LIFE)
            reader.wait(pod, *LIFE)
            assert reader.last(pod).pod_sandbox_status.metadata.uid == "told-uid"
            times = [event.created_at for event in reader.events]
            assert times == sorted(set(times))


def test_an_event_shows_what_a_status_does_at_that_time(node: Node, images: Images) -> None:
    with reading(node) as reader:
        pod = node.run_pod("shown")
        reader.wait(pod, "CREATED", "STARTED")
        started = reader.last(pod)
        assert started.pod_sandbox_status == node.pod_status(pod)
        assert started.pod_sandbox_status.network.ip
        container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
        reader.wait(container, "CREATED", "STARTED")
        assert list(reader.last(container).containers_statuses) == [node.status(container)]
        answer = node.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod))
        assert list(answer.containers_statuses) == [node.status(container)]
        assert answer.timestamp >= reader.last(container).created_at


def test_no_status_shows_what_no_event_has_told(node: Node, images: Images) -> None:
    """A client that sees a container exited has the event on its way to it already."""
    with reading(node) as reader:
        pod = node.run_pod("ordered")
        for number in range(10):
            container = node.run_container(
                pod, images["busybox"], name=f"c{number}", command=["true"]
            )
            node.wait_exited(container)
            node.remove_container(container)
            reader.wait(container, *LIFE)


def test_an_oom_kill_is_the_reason_in_the_event_of_the_end(node: Node, images: Images) -> None:
    with reading(node) as reader:
        pod = node.run_pod("greedy")
        container = node.run_container(
            pod,
            images["busybox"],
            command="x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done",
            resources={"memory_limit_in_bytes": 32 * MEBIBYTE},
        )
        reader.wait(container, "CREATED", "STARTED", "STOPPED")
        status = reader.last(container).containers_statuses[0]
        assert (status.reason, status.exit_code) == ("OOMKilled", 137)


def test_a_container_that_cannot_start_has_stopped(node: Node, images: Images) -> None:
    with reading(node) as reader:
        pod = node.run_pod("broken")
        container = node.create_container(pod, images["busybox"], command=["/absent"])
        with pytest.raises(grpc.RpcError):
            node.start_container(container)
        reader.wait(container, "CREATED", "STOPPED")
        assert reader.last(container).containers_statuses[0].reason == "StartError"


def test_events_while_nobody_reads_come_to_who_reads_next(node: Node, images: Images) -> None:
    pod = node.run_pod("unread")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    with reading(node) as reader:
        reader.wait(container, "CREATED", "STARTED")


def test_an_end_while_the_daemon_is_away_is_told_by_the_next_one(
    own_node: Node, images: Images
) -> None:
    pod = own_node.run_pod("kept")
    container = own_node.run_container(pod, images["busybox"], command="cat /go; exit 4",
                                       mounts=fifo(own_node))  # fmt: skip
    with reading(own_node) as reader:
        own_node.stop()
        wait_until(reader.ended, what="the stream ends with the daemon")
    release(own_node)
    own_node.start()
    with reading(own_node) as reader:
        reader.wait(container, "STOPPED")
        assert reader.last(container).containers_statuses[0].exit_code == 4


def fifo(node: Node) -> list[dict[str, str]]:

    os.mkfifo(node.folder / "go")
    return [{"host_path": str(node.folder / "go"), "container_path": "/go"}]


def release(node: Node) -> None:
    with open(node.folder / "go", "w") as pipe:
        pipe.write("go")


def test_a_daemon_with_readers_stops_without_delay(own_node: Node, images: Images) -> None:

    with reading(own_node):
        start = time.monotonic()
        own_node.stop()
        assert time.monotonic() - start < 5


def test_many_pods_at_once_lose_no_event(node: Node, images: Images) -> None:
    def live(number: int) -> tuple[str, str]:
        pod = node.run_pod(f"pod-{number}")
        container = node.run_container(pod, images["busybox"], command=["true"])
        node.stop_pod(pod)
        node.remove_pod(pod)
        return pod, container

    with reading(node) as reader, ThreadPoolExecutor(8) as clients:
        for pod, container in list(clients.map(live, range(24))):
            reader.wait(pod, *LIFE)
            reader.wait(container, *LIFE)
