# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions of a Node: from the CRI call to a connected client."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.commands import Command, SpdyCommand, SpdyPorts, WebSocketCommand
from tests.world.daemon import CALL_TIMEOUT_S, Node, wait_until

OUTPUTS = ("stdout", "stderr")
TRANSPORTS = ("spdy", "websocket")
"""SPDY with version 4 of the protocol, as kubelets and crictl come; WebSocket with version 5."""


def exec_url(node: Node, container: str, *cmd: str, **fields: bool) -> str:
    """Return the URL of an exec; stdout and stderr are wanted unless said otherwise."""
    tty = fields.get("tty", False)
    wanted = {"stdout": True, "stderr": not tty, **fields}
    request = cri.ExecRequest(container_id=container, cmd=cmd, **wanted)
    return node.runtime.Exec(request, timeout=CALL_TIMEOUT_S).url


def attach_url(node: Node, container: str, **fields: bool) -> str:
    """Return the URL of an attach, likewise."""
    tty = fields.get("tty", False)
    wanted = {"stdout": True, "stderr": not tty, **fields}
    request = cri.AttachRequest(container_id=container, **wanted)
    return node.runtime.Attach(request, timeout=CALL_TIMEOUT_S).url


def forward_url(node: Node, pod: str, ports: Sequence[int] = ()) -> str:
    """Return the URL of a port-forward."""
    request = cri.PortForwardRequest(pod_sandbox_id=pod, port=ports)
    return node.runtime.PortForward(request, timeout=CALL_TIMEOUT_S).url


def start_exec(
    node: Node, container: str, *cmd: str, transport: str = "spdy", **fields: bool
) -> Command:
    """Run a command and return its session."""
    return _open(exec_url(node, container, *cmd, **fields), transport, fields)


def attach(node: Node, container: str, *, transport: str = "spdy", **fields: bool) -> Command:
    """Attach to a container and return the session, once all that comes is shown to it.

    No client is told when that is; but the monitor has new pipes then, a line and the outputs.
    """
    outputs = 1 if fields.get("tty") else sum(fields.get(name, True) for name in OUTPUTS)
    monitor = node.pid_of("monitor")
    before = _pipes(monitor)
    session = _open(attach_url(node, container, **fields), transport, fields)
    wait_until(lambda: len(_pipes(monitor) - before) > outputs, what="the attachment")
    return session


def _pipes(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return {target for target in found if target.startswith("pipe:")}


def forward(node: Node, pod: str, *, tunnelled: bool = False) -> SpdyPorts:
    """Begin to forward ports."""
    return SpdyPorts(forward_url(node, pod), tunnelled=tunnelled)


def _open(url: str, transport: str, fields: dict[str, bool]) -> Command:
    if transport == "websocket":
        return WebSocketCommand(url)
    tty = fields.get("tty", False)
    wanted = {"stdin": False, "stdout": True, "stderr": not tty, "resize": tty, **fields}
    names = [name for name in ("stdin", "stdout", "stderr", "resize") if wanted[name]]
    return SpdyCommand(url, names)


def digest(data: bytes | bytearray) -> str:
    """Return the SHA-256 of data, short enough to be compared in a message."""
    return hashlib.sha256(data).hexdigest()
