# SPDX-License-Identifier: Apache-2.0
"""Talking to clients: their connections, and calls on them.

One thread, which never waits but for all of them at once: it reads what clients send, has each call
taken by whoever serves calls, and sends answers; what a socket does not take at once goes when the
socket has room.
"""

import select
import socket
import time
from collections.abc import Callable
from typing import Final

from pycri.cri import rpc
from pycri.cri.call import Call, End
from pycri.cri.sender import Sender
from pycri.http2.connection import Connection, Gone, Request
from pycri.http2.nghttp2 import Fields
from pycri.kernel.priority import go_first
from pycri.logs import Log

_log = Log("front")

_READ_BYTES: Final = 256 << 10
_MOST_UNSENT: Final = 1 << 20
"""A client that reads so little is not listened to."""
_REST_S: Final = 0.5
"""How long nobody is accepted after that has failed."""


class Peer:
    """A client's connection and socket. Takes the socket."""

    def __init__(self, sock: socket.socket, epoll: select.epoll, max_message_bytes: int) -> None:
        self._socket = sock
        self._sender = Sender(sock, epoll, most_unsent=_MOST_UNSENT)
        self._connection = Connection(max_message_bytes + rpc.PREFIX_BYTES)
        self._calls: dict[int, Call] = {}  # that are not ended
        self._behind: dict[int, Call] = {}  # that wait until their client takes more
        self._closed = False

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
        self._flush()

    def send(self, call: Call, messages: list[bytes], end: End | None) -> None:
        """Send a part of a call's answer."""
        if call.ended or self._closed:
            return
        stream_id, connection = call.number, self._connection
        if not call.begun:
            call.begun = True
            connection.begin(stream_id, rpc.BEGINNING)
        for message in messages:
            connection.write(stream_id, rpc.framed(message))
        if end is not None:
            call.ended = True
            connection.finish(stream_id, rpc.trailers(*end))
            self._calls.pop(stream_id, None)
        self._flush()

    def watch_gone(self, call: Call, callback: Callable[[], None]) -> bool:
        """Note whom to tell; return True if the client is gone already."""
        call.when_gone = callback
        return call.gone

    def watch_drained(self, call: Call, callback: Callable[[], None]) -> bool:
        """Note whom to tell once nothing waits; return False if nothing does."""
        if call.gone or not self._connection.unsent(call.number):
            return False
        call.when_drained = callback
        self._behind[call.number] = call
        return True

    def go_away(self) -> None:
        """Take no further calls."""
        self._connection.go_away()
        self._flush()

    def busy(self) -> bool:
        """Tell whether an answer is not sent yet."""
        return self._sender.waits or self._connection.busy()

    def close(self) -> None:
        """Hang up; whose calls are not answered are told."""
        self._closed = True
        self._sender.close()
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
                call = Call(self, request.stream_id, headers, rpc.parse_message(request.body))
            except rpc.Malformed as error:
                self._refuse_call(request, error.code, str(error))
                return
            self._calls[call.number] = call
            take(call)

    def _refuse_call(self, request: Request, code: rpc.Code, text: str) -> None:
        self._refuse(request, rpc.refusal(code, text))

    def _refuse(self, request: Request, fields: Fields) -> None:
        self._connection.finish(request.stream_id, fields)
        self._flush()

    def _tell_gone(self, gone: Gone) -> None:
        """Tell those whom it concerns that the client does not want the answer."""
        if not (call := self._calls.pop(gone.stream_id, None)):
            return
        call.gone = True
        self._behind.pop(call.number, None)
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
            del self._behind[call.number]
        return callbacks

    def _unsent_of(self, call: Call) -> int:
        return self._connection.unsent(call.number)

    def _flush(self) -> None:
        if not self._closed:
            self._sender.send(self._connection.output())


class Front:
    """Serves a listening socket in the thread that runs it."""

    def __init__(self, take: Callable[[Call], None], *, max_message_bytes: int) -> None:
        """take: called with each call, in the thread that runs; it must not wait, and not raise."""
        self._take = take
        self._max_message_bytes = max_message_bytes
        self.epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._peers: dict[int, Peer] = {}
        self._others: dict[int, Callable[[int], None]] = {}
        self._full_since_s = 0.0
        self._end_s: float | None = None

    def watch(self, fd: int, ready: Callable[[int], None]) -> None:
        """Call `ready` with what the epoll tells of a descriptor that is registered with it."""
        self._others[fd] = ready

    def ignore(self, fd: int) -> None:
        """Watch it no more; it is to be closed."""
        del self._others[fd]

    def accept_from(self, listener: socket.socket) -> None:
        """Accept clients from now on. Takes the socket, which listens."""
        listener.settimeout(0)
        self._listener = listener
        self.watch(listener.fileno(), self._accept)
        self.epoll.register(listener, select.EPOLLIN)

    def run(self) -> None:
        """Serve until `finish`, which is called from within."""
        go_first()
        while not self._is_over():
            for fd, mask in self.epoll.poll(self._patience_s()):
                if fd in self._peers:
                    self._serve(fd, mask)
                elif fd in self._others:
                    self._others[fd](mask)
            self._listen_again()

    def go_away(self) -> None:
        """Accept no further connection or call."""
        if self._listener:
            self.ignore(self._listener.fileno())
            self.epoll.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for peer in self._peers.values():
            peer.go_away()

    def finish(self, within_s: float) -> None:
        """Have `run` end once all answers are sent, or the time is over."""
        self._end_s = time.monotonic() + within_s

    def close(self) -> None:
        """Hang up on everybody."""
        self.go_away()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        self.epoll.close()

    def _is_over(self) -> bool:
        if self._end_s is None:
            return False
        return self._patience_s() == 0 or not any(peer.busy() for peer in self._peers.values())

    def _patience_s(self) -> float | None:
        """Return how long to wait for what may come."""
        if self._end_s is not None:
            return max(0.0, self._end_s - time.monotonic())
        return _REST_S if self._full_since_s else None

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

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Descriptors or memory are used up; it waits in the queue until there are some again.
            _log.error("a client cannot be accepted", error=str(error))
            self._full_since_s = time.monotonic()
            self.epoll.modify(self._listener, 0)
            return
        sock.settimeout(0)
        self._peers[sock.fileno()] = Peer(sock, self.epoll, self._max_message_bytes)

    def _listen_again(self) -> None:
        rested = self._full_since_s and time.monotonic() - self._full_since_s >= _REST_S
        if rested and self._listener:
            self._full_since_s = 0.0
            self.epoll.modify(self._listener, select.EPOLLIN)
