# SPDX-License-Identifier: Apache-2.0
"""What daemon and front say to each other, over a socket pair; either's end ends both.

    front ──▶ daemon   Asked, Left, Taken, Look
    daemon ──▶ front   Reply; PutPod, DropPod, PutContainer, DropContainer; Accept, GoAway, Finish

A message is its length, 32 bit, and msgpack; of any size, as answers are. The order is the
promise: a change of a record is on the way before any answer or event that can tell of it.
"""

import select
import socket
import struct
import threading
from typing import Final, Generic, TypeVar

import msgspec

from pycri.cri.account import Look
from pycri.cri.sender import Sender
from pycri.model.container import ContainerRecord
from pycri.model.ids import ContainerId, PodId
from pycri.model.pod import PodRecord

_LENGTH: Final = struct.Struct(">I")
_READ_BYTES: Final = 256 << 10

T = TypeVar("T")


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="asked"):
    """A call that the daemon is to perform. number: the front's, for this call."""

    number: int
    headers: dict[str, str]
    message: bytes


class Left(msgspec.Struct, frozen=True, array_like=True, tag="left"):
    """The client does not want the answer any more."""

    number: int


class Taken(msgspec.Struct, frozen=True, array_like=True, tag="taken"):
    """The client has been sent all of a Reply that did not end the call."""

    number: int


class Reply(msgspec.Struct, frozen=True, array_like=True, tag="reply"):
    """A part of an answer; without messages and end: it has begun. end: status and words."""

    number: int
    messages: list[bytes]
    end: tuple[int, str] | None


class PutPod(msgspec.Struct, frozen=True, array_like=True, tag="put-pod"):
    pod: PodRecord


class DropPod(msgspec.Struct, frozen=True, array_like=True, tag="drop-pod"):
    pod_id: PodId


class PutContainer(msgspec.Struct, frozen=True, array_like=True, tag="put-container"):
    container: ContainerRecord


class DropContainer(msgspec.Struct, frozen=True, array_like=True, tag="drop-container"):
    container_id: ContainerId


class Accept(msgspec.Struct, frozen=True, array_like=True, tag="accept"):
    """The socket listens and every record is told: serve."""


class GoAway(msgspec.Struct, frozen=True, array_like=True, tag="go-away"):
    """Take no further connections and calls."""


class Finish(msgspec.Struct, frozen=True, array_like=True, tag="finish"):
    """End once all answers are sent, or the time is over."""

    within_s: float


TO_DAEMON: Final = msgspec.msgpack.Decoder(Asked | Left | Taken | Look)
TO_FRONT: Final = msgspec.msgpack.Decoder(
    Reply | PutPod | DropPod | PutContainer | DropContainer | Accept | GoAway | Finish
)

_encode = msgspec.msgpack.Encoder().encode


class Link(Generic[T]):
    """One end. Any thread may send; the one that has the epoll reads. Takes the socket."""

    def __init__(
        self, sock: socket.socket, epoll: select.epoll, decoder: msgspec.msgpack.Decoder[T]
    ) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._decode = decoder.decode
        self._lock = threading.Lock()
        self._sender = Sender(sock, epoll)
        self._received = bytearray()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; to an end that is gone it goes nowhere."""
        data = _encode(message)
        with self._lock:
            self._sender.send(_LENGTH.pack(len(data)) + data)

    def serve(self, mask: int) -> list[T]:
        """Do what the epoll tells of; return what has come. Raises: EOFError."""
        if mask & select.EPOLLOUT:
            with self._lock:
                self._sender.send()
        return self._receive() if mask & ~select.EPOLLOUT else []

    def close(self) -> None:
        """Let go of the other end."""
        with self._lock:
            self._sender.close()

    def _receive(self) -> list[T]:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            raise EOFError
        received = self._received
        received += data
        messages, start = [], 0
        while len(received) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(received, start)
            end = start + _LENGTH.size + size
            if len(received) < end:
                break
            messages.append(self._decode(received[end - size : end]))
            start = end
        del received[:start]
        return messages
