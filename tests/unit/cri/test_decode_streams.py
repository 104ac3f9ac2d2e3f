# SPDX-License-Identifier: Apache-2.0
"""Requests of Exec, Attach and PortForward."""

import pytest

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.streams import decode_attach, decode_exec, decode_port_forward
from pycri.errors import InvalidRequest
from pycri.model.ids import ContainerId, PodId
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest


def test_every_field_is_decoded() -> None:
    container = ContainerId("c1")
    assert decode_exec(
        pb.ExecRequest(container_id="c1", cmd=["sh", ""], stdin=True, stdout=True, stderr=True)
    ) == ExecRequest(container_id=container, cmd=("sh", ""), stdin=True, stdout=True, stderr=True)
    assert decode_attach(
        pb.AttachRequest(container_id="c1", tty=True, stdin=True, stdout=True)
    ) == AttachRequest(container_id=container, tty=True, stdin=True, stdout=True)
    assert decode_port_forward(
        pb.PortForwardRequest(pod_sandbox_id="p1", port=[80, 65535])
    ) == PortForwardRequest(pod_id=PodId("p1"), port=(80, 65535))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.ExecRequest(cmd=["sh"], stdout=True), "container_id: is missing"),
        (pb.ExecRequest(container_id="c", stdout=True), "cmd: is missing"),
        (pb.ExecRequest(container_id="c", cmd=[""], stdout=True), "cmd: is missing"),
        (pb.ExecRequest(container_id="c", cmd=["a\0"], stdout=True), r"cmd\[0\]: holds a NUL"),
        (pb.ExecRequest(container_id="c", cmd=["sh"]), "one of them must be true"),
        (pb.ExecRequest(container_id="c", cmd=["sh"], tty=True, stderr=True), "stderr: must be"),
    ],
)
def test_an_exec_that_cannot_be_is_refused(message: pb.ExecRequest, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode_exec(message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.AttachRequest(stdout=True), "container_id: is missing"),
        (pb.AttachRequest(container_id="c"), "one of them must be true"),
        (pb.AttachRequest(container_id="c", tty=True, stderr=True), "stderr: must be false"),
    ],
)
def test_an_attach_that_cannot_be_is_refused(message: pb.AttachRequest, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode_attach(message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.PortForwardRequest(port=[80]), "pod_sandbox_id: is missing"),
        (pb.PortForwardRequest(pod_sandbox_id="p", port=[80, 0]), r"port\[1\]: 0 is not between"),
        (pb.PortForwardRequest(pod_sandbox_id="p", port=[65536]), r"port\[0\]: 65536"),
    ],
)
def test_ports_that_cannot_be_are_refused(message: pb.PortForwardRequest, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode_port_forward(message)
