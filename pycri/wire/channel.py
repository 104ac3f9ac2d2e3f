# SPDX-License-Identifier: Apache-2.0
"""One end of a private connection: whole messages with descriptors beside them.

Framing: one SOCK_SEQPACKET packet is one message, msgpack, at most MESSAGE_LIMIT bytes;
descriptors travel as SCM_RIGHTS, at most FD_LIMIT a message, and arrive close-on-exec.
"""

import array
import os
import socket
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from pycri.errors import Unavailable

MESSAGE_LIMIT = 8 << 20
FD_LIMIT = 16

# socket.SO_SNDBUFFORCE is not exposed; the plain limit (wmem_max) is below an environment of 2 MB.
_SO_SNDBUFFORCE = 32

T = TypeVar("T")


class Channel:
    """A connected SOCK_SEQPACKET socket, blocking or not as the socket is set. Takes the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, MESSAGE_LIMIT)

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send one message and copies of `fds`, which stay the caller's.

        Raises: OSError (BrokenPipeError when the peer is gone, BlockingIOError when it is slow);
        Unavailable when the message is too long.
        """
        data = msgspec.msgpack.encode(message)
        if len(data) > MESSAGE_LIMIT // 2:
            raise Unavailable(f"a message of {len(data)} bytes is too long for the spawner")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    def receive(self, decoder: msgspec.msgpack.Decoder[T]) -> tuple[T, list[int]] | None:
        """Receive one message and its descriptors, which the caller closes.

        decoder: one of those in `messages.py`, which say who may send what.
        Returns None at end-of-file. Raises BlockingIOError when non-blocking and nothing is there.
        """
        size = self._next_size()
        if size == 0:
            return None
        data, ancillary, _, _ = self._socket.recvmsg(
            size, socket.CMSG_SPACE(FD_LIMIT * 4), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, type_, content in ancillary:
            if level == socket.SOL_SOCKET and type_ == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        try:
            return decoder.decode(data), fds.tolist()
        except msgspec.MsgspecError:
            for fd in fds:
                os.close(fd)
            raise

    def close(self) -> None:
        """Close the socket; again is fine."""
        self._socket.close()

    def _next_size(self) -> int:
        # MSG_TRUNC reports the packet's whole length, so that no buffer of the limit is needed.
        try:
            return self._socket.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
        except ConnectionResetError:
            return 0
