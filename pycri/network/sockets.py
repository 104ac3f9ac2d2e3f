# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets (netlink(7)): requests out in one packet, acknowledgements and answers back.

What the messages mean is the business of `netlink.py` (links, addresses, routes, queues),
`elements.py` (nftables) and `flows.py` (connection tracking).

All calls block; every failure is an OSError with the kernel's own words. A socket is for one
thread at a time, and shows and changes the network namespace it was opened in.
"""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, Self

import msgspec

from pycri.network import attributes

ANSWER_TIMEOUT_S: Final = 10.0

NETLINK_NETFILTER: Final = 12
"""Protocol of nftables and connection tracking; the module `socket` lacks it."""

ACK, DUMP, CREATE, EXCLUSIVE, REPLACE = 0x4, 0x300, 0x400, 0x200, 0x100
"""Flags of requests, NLM_F_*."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_RECEIVE_BYTES = 1 << 18
_RECEIVE_BUFFER_BYTES = 1 << 20
_REQUEST = 0x1
_ERROR, _DONE = 2, 3
_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11


class Request(msgspec.Struct, frozen=True):
    """A message to the kernel. body: all behind the header. answered: it asks for an answer."""

    kind: int
    body: bytes
    flags: int = 0
    answered: bool = True


class NetlinkSocket:
    """One socket; owns its descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes `sock`."""
        self._socket = sock
        self._sequence = 0
        sock.settimeout(ANSWER_TIMEOUT_S)
        sock.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)

    @classmethod
    def open(cls, protocol: int) -> Self:
        """Open a socket in the caller's network namespace. protocol: NETLINK_ROUTE and so on."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        # Answers to a long packet of requests must all find room.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        return cls(sock)

    @classmethod
    def borrow(cls, fd: int, protocol: int) -> Self:
        """Use a socket opened elsewhere, through a duplicate; borrows `fd`."""
        # Named in full: asking the kernel would cost three calls.
        duplicate = os.dup(fd)
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=duplicate))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def change(self, requests: Sequence[Request]) -> None:
        """Send requests in one packet; raise the first that is refused.

        The kernel goes on after a refused request, unless they are a batch of nfnetlink.
        """
        first, missing = self._send(requests)
        for kind, flags, body in self._receive(first):
            if kind != _ERROR:
                continue
            if failure := _failure(flags, body):
                raise failure
            missing -= 1
            if missing == 0:
                return

    def ask(self, request: Request) -> list[bytes]:
        """Send a query; return the bodies of the answer's messages."""
        first, _ = self._send([request])
        answers = []
        for kind, flags, body in self._receive(first):
            if kind in (_DONE, _ERROR):  # an error of 0 is the acknowledgement
                failure = _failure(flags, body) if kind == _ERROR else None
                if failure is not None:
                    raise failure
                break
            answers.append(body)
        return answers

    def _send(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Return the sequence number of the first and how many are to be acknowledged."""
        first = self._sequence + 1
        packet = []
        for request in requests:
            self._sequence += 1
            flags = request.flags | _REQUEST | (ACK if request.answered else 0)
            length = _HEADER.size + len(request.body)
            packet.append(_HEADER.pack(length, request.kind, flags, self._sequence, 0))
            packet.append(request.body + bytes(-length % 4))
        self._socket.send(b"".join(packet))
        return first, sum(request.answered for request in requests)

    def _receive(self, first: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield (type, flags, body) of messages as they come; the caller knows which is the last.

        first: answers to earlier requests, left over from one that timed out, are dropped.
        """
        while True:
            packet = self._socket.recv(_RECEIVE_BYTES)
            offset = 0
            while offset < len(packet):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(packet, offset)
                if sequence >= first:
                    yield kind, flags, packet[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3


def _failure(flags: int, body: bytes) -> OSError | None:
    """Decode struct nlmsgerr, and the kernel's explanation behind it if there is one."""
    (error,) = struct.unpack_from("=i", body)
    if error == 0:
        return None
    reason = os.strerror(-error)
    if flags & _ACK_TLVS:
        # _CAP_ACK: only the header of the request comes back before the attributes.
        said = attributes.parse(body[4 + _HEADER.size :]).get(_NLMSGERR_ATTR_MSG)
        if said is not None:
            reason = f"{reason}: {attributes.parse_text(said)}"
    return OSError(-error, reason)
