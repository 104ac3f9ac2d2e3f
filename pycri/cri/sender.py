# SPDX-License-Identifier: Apache-2.0
"""Sending on a socket without waiting: what it does not take at once waits for a thread's epoll."""

import select
import socket


class Sender:
    """What is to be sent on a socket that does not block. Guarded by its owner.

    While something waits the epoll watches for room; the owner then calls `send` again.
    """

    def __init__(
        self, sock: socket.socket, epoll: select.epoll, *, most_unsent: int | None = None
    ) -> None:
        """most_unsent: bytes from which on the socket is not read either."""
        self._socket = sock
        self._epoll = epoll
        self._most_unsent = most_unsent
        self._unsent = bytearray()
        self._mask = select.EPOLLIN
        epoll.register(sock, self._mask)

    @property
    def waits(self) -> bool:
        """Whether something is not sent yet."""
        return bool(self._unsent)

    def send(self, data: bytes = b"") -> None:
        """Send what waits and then `data`, as far as the socket takes it; nothing once closed."""
        if self._socket.fileno() < 0:
            return
        unsent = self._unsent
        unsent += data
        if not (unsent or self._mask & select.EPOLLOUT):
            return
        sent = 0
        try:
            sent = self._socket.send(unsent, socket.MSG_NOSIGNAL) if unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(unsent)  # the end of the connection is read next
        del unsent[:sent]  # takes the same time however much is left
        behind = self._most_unsent is not None and len(unsent) >= self._most_unsent
        mask = 0 if behind else select.EPOLLIN
        mask |= select.EPOLLOUT if unsent else 0
        if mask != self._mask:
            self._mask = mask
            self._epoll.modify(self._socket, mask)

    def close(self) -> None:
        """Close the socket; what waits is lost. Again is fine."""
        if self._socket.fileno() >= 0:
            self._epoll.unregister(self._socket)
            self._socket.close()
