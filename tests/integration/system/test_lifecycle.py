# SPDX-License-Identifier: Apache-2.0
"""Pods and containers from their first call to their last, and what lists and statuses say."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import CALL_TIMEOUT_S, Node, refused
from tests.world.images import Images


def list_pods(node: Node, **terms: object) -> list[str]:
    request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**terms))  # type: ignore[arg-type]
    pods = list(node.runtime.ListPodSandbox(request).items)
    stream = node.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=request.filter))
    assert [pod for message in stream for pod in message.pod_sandboxes] == pods
    return sorted(pod.id for pod in pods)


def list_containers(node: Node, **terms: object) -> list[str]:
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(**terms))  # type: ignore[arg-type]
    containers = list(node.runtime.ListContainers(request).containers)
    stream = node.runtime.StreamContainers(cri.StreamContainersRequest(filter=request.filter))
    assert [found for message in stream for found in message.containers] == containers
    return sorted(found.id for found in containers)


def test_a_node_says_who_it_is_and_that_it_is_ready(node: Node) -> None:
    version = node.runtime.Version(cri.VersionRequest())
    assert (version.version, version.runtime_name) == ("0.1.0", "pycri")
    assert version.runtime_api_version == "v1"
    answer = node.runtime.Status(cri.StatusRequest())
    conditions = {condition.type: condition.status for condition in answer.status.conditions}
    assert conditions["RuntimeReady"]
    assert conditions["NetworkReady"]
    assert "" in {handler.name for handler in answer.runtime_handlers}


def test_a_pod_and_its_container_pass_through_every_state(node: Node, images: Images) -> None:
    before = time.time_ns()
    pod = node.run_pod("life")
    assert node.pod_status(pod).state == cri.SANDBOX_READY
    container = node.create_container(pod, images["busybox"], command=["sleep", "60"])
    created = node.status(container)
    assert created.state == cri.CONTAINER_CREATED
    assert before < created.created_at < time.time_ns()
    assert (created.started_at, created.finished_at) == (0, 0)
    node.start_container(container)
    running = node.status(container)
    assert running.state == cri.CONTAINER_RUNNING
    assert created.created_at < running.started_at < time.time_ns()
    node.stop_container(container)
    exited = node.status(container)
    assert exited.state == cri.CONTAINER_EXITED
    assert running.started_at < exited.finished_at < time.time_ns()
    node.remove_container(container)
    with refused(grpc.StatusCode.NOT_FOUND, container):
        node.status(container)
    node.stop_pod(pod)
    assert node.pod_status(pod).state == cri.SANDBOX_NOTREADY
    node.remove_pod(pod)
    with refused(grpc.StatusCode.NOT_FOUND, pod):
        node.pod_status(pod)


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (1, "Error"), (255, "Error")])
def test_an_exited_container_keeps_its_code_and_reason(
    code: int, reason: str, node: Node, images: Images
) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, images["busybox"], command=f"exit {code}")
    status = node.wait_exited(container)
    assert (status.exit_code, status.reason) == (code, reason)


def test_a_container_ended_by_a_signal_has_128_and_its_number(node: Node, images: Images) -> None:
    pod = node.run_pod()
    script = "sh -c 'kill -SEGV $$'; exit $?"
    container = node.run_container(pod, images["busybox"], command=script)
    assert node.wait_exited(container).exit_code == 128 + 11


def test_statuses_return_what_was_asked(node: Node, images: Images) -> None:
    words: dict[str, Any] = {
        "labels": {"app": "web", "tier": ""},
        "annotations": {"note": "a b\nc"},
    }
    pod = node.run_pod("asked", attempt=3, **words)
    status = node.pod_status(pod)
    assert (status.metadata.name, status.metadata.uid) == ("asked", "asked-uid")
    assert (status.metadata.namespace, status.metadata.attempt) == ("tests", 3)
    assert dict(status.labels) == words["labels"]
    assert dict(status.annotations) == words["annotations"]
    assert status.linux.namespaces.options.pid == cri.CONTAINER
    mount = {"host_path": str(node.folder), "container_path": "/there", "readonly": True}
    container = node.create_container(
        pod, images["busybox"], command=["true"], mounts=[mount], **words
    )
    found = node.status(container)
    assert found.metadata.name == "main"
    assert dict(found.labels) == words["labels"]
    assert dict(found.annotations) == words["annotations"]
    assert found.image.image == images["busybox"]
    image = cri.ImageStatusRequest(image=cri.ImageSpec(image=images["busybox"]))
    assert found.image_ref == found.image_id == node.images.ImageStatus(image).image.id
    assert found.log_path == str(node.folder / "logs/asked/main.log")
    (shown,) = (each for each in found.mounts if each.container_path == "/there")
    assert (shown.host_path, shown.readonly) == (str(node.folder), True)


def test_a_retried_call_returns_the_first_result(node: Node, images: Images) -> None:
    pod = node.run_pod("again")
    assert node.run_pod("again") == pod
    container = node.create_container(pod, images["busybox"], command=["true"])
    assert node.create_container(pod, images["busybox"], command=["true"]) == container
    assert list_pods(node) == [pod]
    assert list_containers(node) == [container]


def test_calls_made_at_once_for_one_pod_have_one_result(node: Node) -> None:
    request = cri.RunPodSandboxRequest(config=node.pod_config("once"))
    calls = [node.runtime.RunPodSandbox.future(request) for _ in range(8)]
    assert len({call.result(CALL_TIMEOUT_S).pod_sandbox_id for call in calls}) == 1
    assert len(list_pods(node)) == 1


def test_a_client_that_hangs_up_gets_its_pod_by_asking_again(node: Node) -> None:
    request = cri.RunPodSandboxRequest(config=node.pod_config("hung-up"))
    for delay_ms in (1, 3, 8):
        with suppress(grpc.RpcError):
            node.runtime.RunPodSandbox(request, timeout=delay_ms / 1000)
        pod = node.run_config(request.config)
        assert list_pods(node) == [pod]
        node.stop_pod(pod)
        node.remove_pod(pod)


def test_the_same_name_with_another_config_is_refused(node: Node, images: Images) -> None:
    pod = node.run_pod("taken", labels={"one": "1"})
    with refused(grpc.StatusCode.ALREADY_EXISTS, "taken"):
        node.run_pod("taken", labels={"one": "2"})
    node.create_container(pod, images["busybox"], command=["true"])
    with refused(grpc.StatusCode.ALREADY_EXISTS, "main"):
        node.create_container(pod, images["busybox"], command=["false"])
    assert node.run_pod("taken", attempt=1, labels={"one": "2"}) != pod


def test_lists_are_filtered_by_id_state_and_labels(node: Node, images: Images) -> None:
    red, green = (node.run_pod(name, labels={"colour": name}) for name in ("red", "green"))
    node.stop_pod(green)
    assert list_pods(node) == sorted([red, green])
    assert list_pods(node, label_selector={"colour": "red"}) == [red]
    assert list_pods(node, state={"state": cri.SANDBOX_NOTREADY}) == [green]
    assert list_pods(node, state={"state": cri.SANDBOX_NOTREADY}, id=red) == []
    assert list_pods(node, id="0" * 64) == []
    first = node.run_container(
        red, images["busybox"], name="a", command=["sleep", "60"], labels={"at": "1"}
    )
    second = node.create_container(red, images["busybox"], name="b", command=["true"])
    assert list_containers(node, pod_sandbox_id=red) == sorted([first, second])
    assert list_containers(node, state={"state": cri.CONTAINER_RUNNING}) == [first]
    assert list_containers(node, state={"state": cri.CONTAINER_CREATED}) == [second]
    assert list_containers(node, label_selector={"at": "1"}) == [first]
    assert list_containers(node, label_selector={"at": "1"}, id=second) == []
    assert list_containers(node, pod_sandbox_id=green) == []


def test_a_short_prefix_of_an_id_names_it(node: Node, images: Images) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, images["busybox"], command=["sleep", "60"])
    assert node.pod_status(pod[:13]).id == pod
    assert node.status(container[:13]).id == container
    assert list_pods(node, id=pod[:13]) == [pod]
    assert list_containers(node, id=container[:13]) == [container]
    assert list_containers(node, pod_sandbox_id=pod[:13]) == [container]
    node.stop_container(container[:13])
    node.remove_container(container[:13])
    node.stop_pod(pod[:13])
    node.remove_pod(pod[:13])
    assert list_pods(node) == []


def test_a_pod_is_stopped_and_removed_with_what_runs_in_it(node: Node, images: Images) -> None:
    pod = node.run_pod()
    running = node.run_container(pod, images["busybox"], command=["sleep", "60"])
    node.create_container(pod, images["busybox"], name="created", command=["true"])
    node.stop_pod(pod)
    assert node.status(running).state == cri.CONTAINER_EXITED
    node.stop_pod(pod)
    node.remove_pod(pod)
    node.remove_pod(pod)
    assert list_containers(node) == []


def test_a_running_pod_and_container_can_be_removed_at_once(node: Node, images: Images) -> None:
    pod = node.run_pod()
    container = node.run_container(pod, images["busybox"], command=["sleep", "60"])
    node.remove_container(container)
    assert list_containers(node) == []
    node.run_container(pod, images["busybox"], command=["sleep", "60"])
    node.remove_pod(pod)
    assert list_pods(node) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda node, absent: node.stop_pod(absent),
        lambda node, absent: node.remove_pod(absent),
        lambda node, absent: node.stop_container(absent),
        lambda node, absent: node.remove_container(absent),
    ],
    ids=["stop pod", "remove pod", "stop container", "remove container"],
)
def test_ending_what_is_absent_succeeds(call: Callable[[Node, str], None], node: Node) -> None:
    call(node, "f" * 64)


def test_thirty_pods_come_and_go_together(node: Node, images: Images) -> None:
    requests = [
        cri.RunPodSandboxRequest(config=node.pod_config(f"many-{number}")) for number in range(30)
    ]
    calls = [node.runtime.RunPodSandbox.future(request) for request in requests]
    pods = [call.result(CALL_TIMEOUT_S).pod_sandbox_id for call in calls]
    assert len({node.pod_ip(pod) for pod in pods}) == len(pods)
    stops = [
        node.runtime.StopPodSandbox.future(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
        for pod in pods
    ]
    for stop in stops:
        stop.result(CALL_TIMEOUT_S)
    removals = [
        node.runtime.RemovePodSandbox.future(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
        for pod in pods
    ]
    for removal in removals:
        removal.result(CALL_TIMEOUT_S)
    assert list_pods(node) == []
