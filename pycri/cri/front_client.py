# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of the front: takes what the front passes on, answers through it.

The front is a process (`front_process.py`), so that who looks waits for nothing that this one does.
"""

import gc
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import msgspec

from pycri.cri import front_process
from pycri.cri.account import Look
from pycri.cri.call import Call, End
from pycri.cri.link import (
    TO_DAEMON,
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
from pycri.kernel.priority import go_first
from pycri.kernel.process import fork, kill_and_reap
from pycri.logs import Log
from pycri.model.cdi import DeviceEdits
from pycri.model.container import ContainerRecord
from pycri.model.ids import ContainerId, PodId
from pycri.model.image import ImageConfig
from pycri.model.pod import PodRecord

_log = Log("front")

_PATIENCE_S: Final = 1.0
"""How long the front may take to end after the time it was given."""


@contextmanager
def forked_front(*, watched: bool) -> Iterator["FrontClient"]:
    """Fork the front, of a process that has one thread; when the block ends it has ended.

    watched: whether those who watch calls are to be told of those that the front answers.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    ours, theirs = socket.socketpair()
    # What is there by now is shared as long as neither looks through it for garbage.
    gc.collect()
    gc.freeze()
    pid = fork(lambda: front_process.run(theirs, listener, watched=watched))
    theirs.close()
    client = FrontClient(ours, listener)
    try:
        yield client
    finally:
        kill_and_reap(pid)
        client.close()


class Taker(Protocol):
    """Performs what the front passes on (`pycri.cri.calls.Calls`)."""

    def take(self, call: Call) -> None:
        """Answer a call, or have it answered; at once."""

    def looked(self, look: Look) -> None:
        """Take note of a call that the front has answered."""


class FrontClient:
    """The front, as the daemon sees it: the mirror of the catalogue, the answerer of calls.

    listener: the daemon binds it and has it listen; the front's alone from `start` on.
    """

    def __init__(self, sock: socket.socket, listener: socket.socket) -> None:
        """sock: connected to a `front_process.FrontProcess` that has the listener, too."""
        self.listener = listener
        self.when_lost: Callable[[], object] = lambda: None
        self.is_lost = False
        self._epoll = select.epoll()
        self._link = Link(sock, self._epoll, TO_DAEMON)
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}  # that are not ended
        self._untaken: dict[int, int] = {}  # how many replies their clients have not been sent
        self._finishing = False
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)

    def start(self, taker: Taker) -> None:
        """Let the front serve who connects to `listener`, which listens."""
        self._taker = taker
        self.listener.close()
        self._link.send(Accept())
        self._thread.start()

    def go_away(self) -> None:
        """Take no further connection or call."""
        self._link.send(GoAway())

    def finish(self, within_s: float) -> None:
        """End the front once all answers are sent, or the time is over; wait for that."""
        self._finishing = True
        self._link.send(Finish(within_s))
        self._thread.join(within_s + _PATIENCE_S)

    def close(self) -> None:
        """Let go of the front, which has ended."""
        self._finishing = True
        if self._thread.ident is not None:
            self._thread.join()
        self.listener.close()
        self._link.close()
        self._epoll.close()

    # the mirror of the catalogue

    def put_pod(self, pod: PodRecord) -> None:
        """Show a pod from now on as this."""
        self._link.send(PutPod(pod))

    def drop_pod(self, pod_id: PodId) -> None:
        """Show it no more."""
        self._link.send(DropPod(pod_id))

    def put_container(self, container: ContainerRecord) -> None:
        """Show a container from now on as this."""
        self._link.send(PutContainer(without_what_is_not_shown(container)))

    def drop_container(self, container_id: ContainerId) -> None:
        """Show it no more."""
        self._link.send(DropContainer(container_id))

    # the answerer of calls

    def send(self, call: Call, messages: list[bytes], end: End | None) -> None:
        """Send a part of a call's answer."""
        with self._lock:
            if call.ended or call.gone:
                return
            if end is not None:
                call.ended = True
                self._calls.pop(call.number, None)
                self._untaken.pop(call.number, None)
            elif messages:
                self._untaken[call.number] = self._untaken.get(call.number, 0) + 1
            self._link.send(Reply(call.number, messages, end))

    def watch_gone(self, call: Call, callback: Callable[[], None]) -> bool:
        """Note whom to tell; return True if the client is gone already."""
        with self._lock:
            call.when_gone = callback
            return call.gone

    def watch_drained(self, call: Call, callback: Callable[[], None]) -> bool:
        """Note whom to tell once nothing waits; return False if nothing does."""
        with self._lock:
            if call.gone or not self._untaken.get(call.number):
                return False
            call.when_drained = callback
            return True

    # the thread

    def _run(self) -> None:
        try:
            self._serve()
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001  the thread's edge: without it nobody is served
            _log.exception("calls cannot be taken", error)
        self._end()

    def _serve(self) -> None:
        """Do what the front asks for. Raises: EOFError when it is gone."""
        go_first()
        heed: dict[type, Callable[[Any], None]] = {
            Asked: self._take,
            Left: lambda message: self._leave(message.number),
            Taken: lambda message: self._note_taken(message.number),
            Look: self._taker.looked,
        }
        while True:
            for _, mask in self._epoll.poll():
                for message in self._link.serve(mask):
                    heed[type(message)](message)

    def _take(self, asked: Asked) -> None:
        call = Call(self, asked.number, asked.headers, asked.message)
        with self._lock:
            self._calls[call.number] = call
        self._taker.take(call)

    def _leave(self, number: int) -> None:
        with self._lock:
            if not (call := self._calls.pop(number, None)):
                return
            call.gone = True
            self._untaken.pop(number, None)
            callbacks = call.when_gone, call.when_drained
        for callback in callbacks:
            if callback:
                callback()

    def _note_taken(self, number: int) -> None:
        callback = None
        with self._lock:
            if number not in self._untaken:
                return
            self._untaken[number] -= 1
            call = self._calls[number]
            if not self._untaken[number]:
                callback, call.when_drained = call.when_drained, None
        if callback:
            callback()

    def _end(self) -> None:
        """The front is gone, and every client with it."""
        for number in list(self._calls):
            self._leave(number)
        if not self._finishing:
            self.is_lost = True
            self.when_lost()


def without_what_is_not_shown(record: ContainerRecord) -> ContainerRecord:
    """Leave out what no list or status has: much of it, and secrets."""
    return msgspec.structs.replace(
        record,
        spec=msgspec.structs.replace(record.spec, env=()),
        image_layers=(),
        image_config=ImageConfig(),
        device_edits=DeviceEdits(),
        seccomp_text=b"",
    )
