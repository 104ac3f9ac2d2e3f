# SPDX-License-Identifier: Apache-2.0
"""Exec, attach and port-forward: what is behind the streams of each session.

What must be true is said by the protocol `streaming/interface.py`; here is how. The descriptors
of an exec come straight from the spawner; those of an attach are pipes that the monitor fills and
the container's own stdin; a forwarded port is a socket that was made in the pod's network.
"""

import asyncio
import os
import socket
from typing import TypeVar

import msgspec

from pycri.errors import InvalidRequest, Unavailable, WrongState
from pycri.kernel.sockets import open_tcp_sockets
from pycri.model.container import ContainerRecord
from pycri.model.ids import TaskId
from pycri.model.pod import PodRecord, PodState
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest
from pycri.pods.execs import Execs
from pycri.pods.foundation import Foundation
from pycri.pods.processes import AttachedProcess, ExecProcess

CONNECT_DEADLINE_S = 10.0
"""How long a connection to a port of a pod may take, IPv4 and IPv6 together."""

_LOCALHOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

Request = TypeVar("Request", ExecRequest, AttachRequest, PortForwardRequest)


class StreamSessions:
    """Starts what a streaming session talks to (`streaming.interface.Sessions`)."""

    def __init__(self, foundation: Foundation, execs: Execs) -> None:
        self._catalogue = foundation.catalogue
        self._spawner = foundation.spawner
        self._layout = foundation.layout
        self._execs = execs

    def admit(self, request: Request) -> Request:
        """Return the request with its whole id. Raises: NotFound, WrongState, InvalidRequest."""
        if isinstance(request, PortForwardRequest):
            return msgspec.structs.replace(request, pod_id=self._pod(request.pod_id).id)
        container = self._execs.running_container(request.container_id)
        if isinstance(request, AttachRequest):
            _check_terminal(request, container)
        return msgspec.structs.replace(request, container_id=container.id)

    async def exec(self, request: ExecRequest) -> ExecProcess:
        """Start a command. Raises what ExecSync does."""
        return ExecProcess(self._spawner, await self._execs.start(request), stdin=request.stdin)

    async def attach(self, request: AttachRequest) -> AttachedProcess:
        """Take part in a container's stdio from now on. Raises as `admit`."""
        container = self._execs.running_container(request.container_id)
        _check_terminal(request, container)
        spec = container.spec
        wanted = {"stdout": request.stdout, "stderr": request.stderr}
        names = [name for name, is_wanted in wanted.items() if is_wanted]
        attachment = await self._spawner.attach_task(
            TaskId(container.id),
            ["terminal"] if spec.tty else names,
            # The size of a terminal is set through its input, whoever may write to that.
            stdin=spec.tty or (spec.stdin and request.stdin),
            once=spec.stdin_once,
        )
        return AttachedProcess(attachment, stdin=spec.stdin and request.stdin)

    async def connect(self, request: PortForwardRequest, port: int) -> int:
        """Connect to a port of the pod's localhost. Returns the socket, caller closes.

        Raises: NotFound, WrongState; Unavailable when nobody listens.
        """
        pod = self._pod(request.pod_id)
        sockets = await self._open_sockets(pod)
        failures = []
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                for each in sockets:
                    address = _LOCALHOST[each.family]
                    try:
                        await asyncio.get_running_loop().sock_connect(each, (address, port))
                        return each.detach()
                    except OSError as error:
                        failures.append(f"{address}: {os.strerror(error.errno or 0)}")
        except TimeoutError:
            failures.append(f"no answer in {CONNECT_DEADLINE_S:.0f} s")
        finally:
            for each in sockets:
                each.close()
        raise Unavailable(f"port {port} of pod sandbox {pod.id}: {', '.join(failures)}")

    async def _open_sockets(self, pod: PodRecord) -> list[socket.socket]:
        pin = self._layout.pod_paths(pod.id, pod.spec).pins.get("net")
        if pin is not None:
            return await self._spawner.open_sockets(pin)
        return open_tcp_sockets()

    def _pod(self, pod_id: str) -> PodRecord:
        pod = self._catalogue.pod(pod_id)
        if pod.state is not PodState.READY:
            raise WrongState(f"pod sandbox {pod.id} is not ready")
        return pod


def _check_terminal(request: AttachRequest, container: ContainerRecord) -> None:
    if request.tty != container.spec.tty:
        has = "has a terminal" if container.spec.tty else "has no terminal"
        raise InvalidRequest("tty", f"the container {has}")
