# SPDX-License-Identifier: Apache-2.0
"""The front's process: clients' connections, and a copy of the records to answer who looks.

It is forked by the daemon while that has one thread, and ends with it. What it cannot answer from
the records it passes on; the daemon answers through it (`front_client.py`).
"""

import gc
import itertools
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from pycri.cri.account import Look, subject
from pycri.cri.api import runtime_v1_pb2
from pycri.cri.call import Call, End
from pycri.cri.front import Front
from pycri.cri.link import (
    TO_FRONT,
    Accept,
    Asked,
    DropContainer,
    DropPod,
    Finish,
    GoAway,
    Left,
    Link,
    PutContainer,
    PutPod,
    Reply,
    Taken,
)
from pycri.cri.looking import LookingService
from pycri.cri.looks import Looks
from pycri.cri.rpc import Code
from pycri.kernel.fds import close_inherited
from pycri.kernel.process import set_name
from pycri.logs import Log, request_id
from pycri.pods.records import Records

_log = Log("front")

MAX_MESSAGE_BYTES: Final = 16 << 20
"""What the kubelet takes, too (cri-client, maxMsgSize)."""
_NAME: Final = "pycri-front"
_FAREWELL_S: Final = 1.0
"""How long clients of a daemon that is gone are told so."""


def run(sock: socket.socket, listener: socket.socket, *, watched: bool) -> None:
    """Be the front until the daemon says so, or is gone; in a fork that has just been made.

    listener: listens once the daemon says so.
    watched: the daemon wants to know what is answered here.
    """
    # Others that the service manager stops end by themselves; this one ends after the daemon.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    close_inherited([sock.fileno(), listener.fileno()])
    set_name(_NAME)
    gc.enable()
    try:
        FrontProcess(sock, listener, watched=watched).run()
    except Exception as error:
        _log.exception("the front fails", error)
        raise


class FrontProcess:
    """Answers who looks, and passes on all else."""

    def __init__(self, sock: socket.socket, listener: socket.socket, *, watched: bool) -> None:
        self._listener = listener
        self._records = Records()
        self._front = Front(self._take, max_message_bytes=MAX_MESSAGE_BYTES)
        self._link = Link(sock, self._front.epoll, TO_FRONT)
        self._front.watch(sock.fileno(), self._serve)
        self._looks = Looks([self] if watched else [])
        service = runtime_v1_pb2.DESCRIPTOR.services_by_name["RuntimeService"]
        self._looks.add(service, LookingService(self._records))
        self._heed: dict[type, Callable[[Any], object]] = {
            Reply: self._reply,
            PutPod: lambda message: self._records.put_pod(message.pod),
            DropPod: lambda message: self._records.drop_pod(message.pod_id),
            PutContainer: lambda message: self._records.put_container(message.container),
            DropContainer: lambda message: self._records.drop_container(message.container_id),
            Accept: lambda _: self._accept(),
            GoAway: lambda _: self._front.go_away(),
            Finish: lambda message: self._front.finish(message.within_s),
        }
        self._asked: dict[int, Call] = {}
        self._numbers = itertools.count(1)

    def run(self) -> None:
        """Serve until the end."""
        self._front.run()
        self._link.close()
        self._listener.close()  # that was not served
        self._front.close()

    # as a watch of calls that are answered here

    def begin(self, method: str, request: Any, headers: Mapping[str, str]) -> Callable[[str], None]:
        """Take note of a call, and tell the daemon of its end."""
        start_ns, begun_ns = time.time_ns(), time.monotonic_ns()

        def end(code: str) -> None:
            self._link.send(
                Look(
                    method=method,
                    code=code,
                    start_ns=start_ns,
                    duration_ns=time.monotonic_ns() - begun_ns,
                    headers=dict(headers),
                    subject={name: str(value) for name, value in subject(request).items()},
                    request=request_id.get(),
                )
            )

        return end

    # clients

    def _take(self, call: Call) -> None:
        if self._looks.serves(call.path):
            self._looks.take(call)
            return
        number = next(self._numbers)
        self._asked[number] = call
        self._link.send(Asked(number, dict(call.headers), call.message))
        call.tell_gone(partial(self._leave, number))

    def _leave(self, number: int) -> None:
        if self._asked.pop(number, None):
            self._link.send(Left(number))

    # the daemon

    def _serve(self, mask: int) -> None:
        try:
            messages = self._link.serve(mask)
        except EOFError:
            self._end()
            return
        for message in messages:
            self._heed[type(message)](message)

    def _accept(self) -> None:
        # As the daemon does: what is there by now stays.
        gc.collect()
        gc.freeze()
        self._front.accept_from(self._listener)

    def _reply(self, reply: Reply) -> None:
        if not (call := self._asked.get(reply.number)):
            return
        if reply.end is not None:
            del self._asked[reply.number]
            code, text = reply.end
            call.send(reply.messages, End(Code(code), text))
            return
        call.send(reply.messages, None)
        taken = partial(self._link.send, Taken(reply.number))
        if reply.messages and not call.must_wait(taken):
            taken()

    def _end(self) -> None:
        """The daemon is gone: let clients know."""
        self._front.ignore(self._link.fileno())
        self._link.close()
        for call in self._asked.values():
            call.end(Code.UNAVAILABLE, "the runtime has ended")
        self._asked.clear()
        self._front.go_away()
        self._front.finish(_FAREWELL_S)
