# SPDX-License-Identifier: Apache-2.0
"""StopContainer: the signal, the grace, the kill."""

import time
from typing import Any

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def handles(signal: str, code: int) -> str:
    return f"trap 'exit {code}' {signal}; echo ready; while :; do sleep 0.05; done"


def run(node: Node, image: str, script: str, **words: Any) -> str:
    container = node.run_container(node.run_pod("stop"), image, command=script, **words)
    node.wait_log(container, "ready")
    return container


def test_a_process_that_heeds_the_signal_ends_in_its_own_way(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], handles("TERM", 7))
    began = time.monotonic()
    node.stop_container(container, timeout=30)
    assert time.monotonic() - began < 10
    status = node.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 7, "Error")


def test_a_process_that_ignores_it_is_killed_after_the_grace(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], STUBBORN)
    began = time.monotonic()
    node.stop_container(container, timeout=1)
    assert 1 <= time.monotonic() - began < 10
    assert node.status(container).exit_code == 137


def test_no_grace_is_a_kill_at_once(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], handles("TERM", 7))
    node.stop_container(container)
    assert node.status(container).exit_code == 137


@pytest.mark.parametrize(
    ("image", "asked", "trapped"),
    [
        ("busybox", cri.SIGNAL_RUNTIME_DEFAULT, "TERM"),
        ("configured", cri.SIGNAL_RUNTIME_DEFAULT, "USR1"),
        ("configured", cri.SIGNAL_SIGINT, "INT"),
    ],
    ids=["default", "image's", "request's"],
)
def test_the_signal_is_the_request_s_or_the_image_s_or_term(
    image: str, asked: cri.Signal.ValueType, trapped: str, node: Node, images: Images
) -> None:
    container = run(node, images[image], handles(trapped, 9), stop_signal=asked)
    node.stop_container(container, timeout=30)
    assert node.status(container).exit_code == 9


def test_a_second_call_shortens_the_wait(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], STUBBORN)
    began = time.monotonic()
    request = cri.StopContainerRequest(container_id=container, timeout=300)
    first = node.runtime.StopContainer.future(request, timeout=60)
    node.stop_container(container, timeout=1)
    first.result()
    assert 1 <= time.monotonic() - began < 20
    assert node.status(container).exit_code == 137


def test_a_client_that_hangs_up_does_not_spare_the_container(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], STUBBORN)
    request = cri.StopContainerRequest(container_id=container, timeout=1)
    call = node.runtime.StopContainer.future(request)
    wait_until(lambda: call.running() or call.done(), what="the call is on its way")
    node.runtime.Version(cri.VersionRequest())  # the daemon has read the call before this one
    call.cancel()  # type: ignore[no-untyped-call]  # as grpc-stubs has it
    assert node.wait_exited(container, timeout_s=20).exit_code == 137


def test_the_status_answers_while_a_stop_waits(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], STUBBORN)
    request = cri.StopContainerRequest(container_id=container, timeout=300)
    waiting = node.runtime.StopContainer.future(request, timeout=60)
    for _ in range(20):
        assert node.status(container).state == cri.CONTAINER_RUNNING
    assert node.shell(container, "echo still here") == "still here\n"
    node.stop_container(container)
    waiting.result()


def test_stopping_twice_and_stopping_what_never_ran_succeeds(node: Node, images: Images) -> None:
    pod = node.run_pod("idle")
    created = node.create_container(pod, images["busybox"], name="a", command=["true"])
    node.stop_container(created, timeout=10)
    ended = node.run_container(pod, images["busybox"], name="b", command="exit 3")
    node.wait_exited(ended)
    node.stop_container(ended, timeout=10)
    assert node.status(ended).exit_code == 3


def test_a_frozen_process_is_ended_too(node: Node, images: Images) -> None:
    container = run(node, images["busybox"], "echo ready; kill -STOP $$; sleep 60")
    node.stop_container(container, timeout=1)
    assert node.status(container).exit_code == 137
