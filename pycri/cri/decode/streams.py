# SPDX-License-Identifier: Apache-2.0
"""Requests of Exec, Attach and PortForward."""

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.cri.decode.request import decode_id
from pycri.errors import InvalidRequest
from pycri.model.ids import ContainerId, PodId
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest


def decode_exec(message: pb.ExecRequest) -> ExecRequest:
    container_id = ContainerId(decode_id(message.container_id, "container_id"))
    command = fields.arguments(message.cmd, "cmd")
    if not command or not command[0]:
        raise InvalidRequest("cmd", "is missing")
    _check_streams(message)
    return ExecRequest(
        container_id=container_id,
        cmd=command,
        tty=message.tty,
        stdin=message.stdin,
        stdout=message.stdout,
        stderr=message.stderr,
    )


def decode_attach(message: pb.AttachRequest) -> AttachRequest:
    container_id = ContainerId(decode_id(message.container_id, "container_id"))
    _check_streams(message)
    return AttachRequest(
        container_id=container_id,
        tty=message.tty,
        stdin=message.stdin,
        stdout=message.stdout,
        stderr=message.stderr,
    )


def decode_port_forward(message: pb.PortForwardRequest) -> PortForwardRequest:
    ports = tuple(
        fields.number(port, f"port[{i}]", 1, 65535) for i, port in enumerate(message.port)
    )
    pod_id = PodId(decode_id(message.pod_sandbox_id, "pod_sandbox_id"))
    return PortForwardRequest(pod_id=pod_id, port=ports)


def _check_streams(message: pb.ExecRequest | pb.AttachRequest) -> None:
    """CRI: one of the streams must be asked for, and a terminal has no stderr of its own."""
    if not (message.stdin or message.stdout or message.stderr):
        raise InvalidRequest("stdin, stdout, stderr", "one of them must be true")
    if message.tty and message.stderr:
        raise InvalidRequest("stderr", "must be false with tty")
