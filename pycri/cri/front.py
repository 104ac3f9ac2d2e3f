# SPDX-License-Identifier: Apache-2.0
"""The thread that talks to clients: connections, and calls on them.

It reads what clients send, and has each call taken by whoever serves calls; who only looks is
answered right here, between two reads, whatever the event loop is busy with. Answers go to the
socket from the thread in which they are ready; only what the socket does not take at once waits for
this one. A connection is guarded by its lock, which nobody holds while anything is waited for.
"""

import collections
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from pycri.cri import rpc
from pycri.http2.connection import Connection, Gone, Request
from pycri.http2.nghttp2 import Fields
from pycri.kernel.priority import go_first
from pycri.logs import Log

_log = Log("front")

_READ_BYTES: Final = 256 << 10
_MOST_UNSENT: Final = 1 << 20
"""A client that reads so little is not listened to."""
_BACKLOG: Final = 128
_REST_S: Final = 0.5
"""How long nobody is accepted after that has failed."""


class Call:
    """One call: what is asked, and where the answer goes. For any thread.

    path: "/package.Service/Method". headers: of the request, names in lower case.
    timeout_s: how long the caller waits, if it says so. An answer to one that is gone goes nowhere.
    """

    def __init__(self, peer: "Peer", request: Request, message: bytes) -> None:
        self.path = request.headers.get(":path", "")
        self.headers: Mapping[str, str] = request.headers
        self.message = message
        self.timeout_s = rpc.parse_timeout(request.headers)
        self.gone = False
        self.stream_id = request.stream_id
        self.begun = self.ended = False
        self.when_gone: Callable[[], None] | None = None
        self.when_drained: Callable[[], None] | None = None
        self._peer = peer

    def begin(self) -> None:
        """Let the client know that it is served."""
        self._peer.send(self, [], None)

    def write(self, message: bytes) -> None:
        """Send a message of the answer."""
        self._peer.send(self, [message], None)

    def answer(self, message: bytes) -> None:
        """Send the only message, and the good end."""
        self._peer.send(self, [message], rpc.trailers(rpc.Code.OK, ""))

    def end(self, code: rpc.Code = rpc.Code.OK, text: str = "") -> None:
        """End the answer; only the first end counts."""
        self._peer.send(self, [], rpc.trailers(code, text))

    def tell_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the client is gone, unless the answer ended before."""
        if self._peer.watch_gone(self, callback):
            callback()

    def must_wait(self, callback: Callable[[], None]) -> bool:
        """Tell whether the client is behind; then `callback` is called when it is not, or gone."""
        return self._peer.watch_drained(self, callback)


class Peer:
    """A client's connection and socket. Takes the socket."""

    def __init__(self, sock: socket.socket, epoll: select.epoll, max_message_bytes: int) -> None:
        self._socket = sock
        self._epoll = epoll
        self._lock = threading.Lock()
        self._connection = Connection(max_message_bytes + rpc.PREFIX_BYTES)
        self._calls: dict[int, Call] = {}  # that are not ended
        self._behind: dict[int, Call] = {}  # that wait until their client takes more
        self._unsent = b""
        self._mask = select.EPOLLIN
        self._closed = False
        epoll.register(sock, self._mask)

    def read(self, take: Callable[[Call], None]) -> bool:
        """Read once, and hand over what calls came; return False at the end of the connection."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        with self._lock:
            events = self._connection.receive(data)
            drained = self._take_drained()
            self._flush()
        for callback in drained:
            callback()
        for event in events:  # in their order: a call may be made and given up in one read
            if isinstance(event, Request):
                self._receive(event, take)
            else:
                self._tell_gone(event)
        return not self._connection.closed

    def write(self) -> None:
        """Send what the socket did not take before."""
        with self._lock:
            self._flush()

    def send(self, call: Call, messages: list[bytes], end: Fields | None) -> None:
        """Send a part of a call's answer."""
        with self._lock:
            if call.ended or self._closed:
                return
            stream_id, connection = call.stream_id, self._connection
            if not call.begun:
                call.begun = True
                connection.begin(stream_id, rpc.BEGINNING)
            for message in messages:
                connection.write(stream_id, rpc.framed(message))
            if end is not None:
                call.ended = True
                connection.finish(stream_id, end)
                self._calls.pop(stream_id, None)
            self._flush()

    def watch_gone(self, call: Call, callback: Callable[[], None]) -> bool:
        """Note whom to tell; return True if the client is gone already."""
        with self._lock:
            call.when_gone = callback
            return call.gone

    def watch_drained(self, call: Call, callback: Callable[[], None]) -> bool:
        """Note whom to tell once nothing waits; return False if nothing does."""
        with self._lock:
            if call.gone or not self._connection.unsent(call.stream_id):
                return False
            call.when_drained = callback
            self._behind[call.stream_id] = call
            return True

    def go_away(self) -> None:
        """Take no further calls."""
        with self._lock:
            self._connection.go_away()
            self._flush()

    def busy(self) -> bool:
        """Tell whether an answer is not sent yet."""
        with self._lock:
            return bool(self._unsent) or self._connection.busy()

    def close(self) -> None:
        """Hang up; whose calls are not answered are told."""
        with self._lock:
            self._closed = True
            self._epoll.unregister(self._socket)
            self._socket.close()
            everybody = self._connection.close()
        for gone in everybody:
            self._tell_gone(gone)

    def _receive(self, request: Request, take: Callable[[Call], None]) -> None:
        """Have a request taken, if it is a call."""
        headers = request.headers
        if not headers.get("content-type", "").startswith("application/grpc"):
            self._refuse(request, rpc.rejection(415))
        elif headers.get(":method") != "POST":
            self._refuse(request, rpc.rejection(405))
        elif request.too_large:
            text = "the request is larger than this server takes"
            self._refuse_call(request, rpc.Code.RESOURCE_EXHAUSTED, text)
        else:
            try:
                call = Call(self, request, rpc.parse_message(request.body))
            except rpc.Malformed as error:
                self._refuse_call(request, error.code, str(error))
                return
            with self._lock:
                self._calls[call.stream_id] = call
            take(call)

    def _refuse_call(self, request: Request, code: rpc.Code, text: str) -> None:
        self._refuse(request, rpc.refusal(code, text))

    def _refuse(self, request: Request, fields: Fields) -> None:
        with self._lock:
            self._connection.finish(request.stream_id, fields)
            self._flush()

    def _tell_gone(self, gone: Gone) -> None:
        """Tell those whom it concerns that the client does not want the answer."""
        with self._lock:
            if not (call := self._calls.pop(gone.stream_id, None)):
                return
            call.gone = True
            self._behind.pop(call.stream_id, None)
            callbacks = call.when_gone, call.when_drained
        for callback in callbacks:
            if callback:
                callback()

    def _take_drained(self) -> list[Callable[[], None]]:
        """Return whom to tell that nothing waits any more."""
        drained = [one for one in self._behind.values() if not self._unsent_of(one)]
        callbacks = [call.when_drained for call in drained if call.when_drained]
        for call in drained:
            call.when_drained = None
            del self._behind[call.stream_id]
        return callbacks

    def _unsent_of(self, call: Call) -> int:
        return self._connection.unsent(call.stream_id)

    def _flush(self) -> None:
        """Send what there is; the rest waits for the socket, and if it is much so does all else."""
        data = self._unsent + self._connection.output()
        if self._closed or not (data or self._mask & select.EPOLLOUT):
            return
        sent = 0
        try:
            sent = self._socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)  # the end of the connection is read next
        self._unsent = data[sent:]
        mask = select.EPOLLIN if len(self._unsent) < _MOST_UNSENT else 0
        mask |= select.EPOLLOUT if self._unsent else 0
        if mask != self._mask:
            self._mask = mask
            self._epoll.modify(self._socket, mask)


class Front:
    """Serves a listening socket in a thread of its own. Takes the socket."""

    def __init__(
        self, listener: socket.socket, take: Callable[[Call], None], *, max_message_bytes: int
    ) -> None:
        """take: called in the front's thread with each call; it must not wait, and not raise."""
        self._listener = listener
        self._take = take
        self._max_message_bytes = max_message_bytes
        self._epoll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._posted: collections.deque[Callable[[], None]] = collections.deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._full_since_s = 0.0
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)

    def start(self) -> None:
        """Listen and serve."""
        self._listener.settimeout(0)
        self._listener.listen(_BACKLOG)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._thread.start()

    def go_away(self) -> None:
        """Accept no further connection or call."""
        self._post(self._stop_listening)

    def busy(self) -> bool:
        """Tell whether an answer is not sent yet."""
        return any(peer.busy() for peer in list(self._peers.values()))

    def close(self) -> None:
        """Hang up on everybody and end the thread."""
        self._post(self._stop)
        self._thread.join()
        os.close(self._wake_fd)
        self._epoll.close()

    def _post(self, action: Callable[[], None]) -> None:
        self._posted.append(action)
        os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        go_first()
        while not self._stopped:
            for fd, mask in self._epoll.poll(_REST_S if self._full_since_s else None):
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                    while self._posted:
                        self._posted.popleft()()
                elif fd in self._peers:
                    self._serve(fd, mask)
                elif fd == self._listener.fileno():
                    self._accept()
            self._listen_again()

    def _serve(self, fd: int, mask: int) -> None:
        peer, goes_on = self._peers[fd], True
        try:
            if mask & select.EPOLLOUT:
                peer.write()
            if mask & ~select.EPOLLOUT:
                goes_on = peer.read(self._take)
        except Exception as error:  # noqa: BLE001  one client's trouble is not another's
            _log.exception("connection failed", error)
            goes_on = False
        if not goes_on:
            del self._peers[fd]
            peer.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Descriptors or memory are used up; it waits in the queue until there are some again.
            _log.error("a client cannot be accepted", error=str(error))
            self._full_since_s = time.monotonic()
            self._epoll.modify(self._listener, 0)
            return
        sock.settimeout(0)
        self._peers[sock.fileno()] = Peer(sock, self._epoll, self._max_message_bytes)

    def _listen_again(self) -> None:
        rested = self._full_since_s and time.monotonic() - self._full_since_s >= _REST_S
        if rested and self._listener.fileno() >= 0:
            self._full_since_s = 0.0
            self._epoll.modify(self._listener, select.EPOLLIN)

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            self._epoll.unregister(self._listener)
            self._listener.close()
        for peer in self._peers.values():
            peer.go_away()

    def _stop(self) -> None:
        self._stop_listening()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        self._stopped = True
