# SPDX-License-Identifier: Apache-2.0
"""A WebSocket client, written from RFC 6455.

    FIN:1 RSV:3 opcode:4 | MASK:1 length:7 [length:16 or 64] | masking key:32 | payload

A client masks what it sends, a server does not.
"""

import base64
import hashlib
import os
import ssl
import struct
from collections.abc import Sequence

from tests.world.wires import DEADLINE_S, Wire, upgrade

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_CONTINUATION = 0
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def mask(data: bytes, key: bytes) -> bytes:
    """Mask or unmask a payload (5.3)."""
    stretched = (key * (len(data) // 4 + 1))[: len(data)]
    number = int.from_bytes(data, "big") ^ int.from_bytes(stretched, "big")
    return number.to_bytes(len(data), "big")


class WebSocket:
    """A connection. Takes the wire.

    closed: code and reason of the server's close frame.
    """

    def __init__(self, wire: Wire, protocol: str) -> None:
        self.wire = wire
        self.protocol = protocol
        self.closed: tuple[int, str] | None = None
        self.pongs: list[bytes] = []
        self._buffer = bytearray()
        self._parts = bytearray()
        self._kind = 0
        self._messages: list[tuple[int, bytes]] = []

    def send(self, kind: int, payload: bytes | memoryview, *, last: bool = True) -> None:
        """Send one frame."""
        data, key = bytes(payload), os.urandom(4)
        size = len(data)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 1 << 16:
            length = struct.pack(">BH", 0x80 | 126, size)
        else:
            length = struct.pack(">BQ", 0x80 | 127, size)
        self.wire.send(bytes([(0x80 if last else 0) | kind]) + length + key + mask(data, key))

    def receive(self, timeout_s: float = DEADLINE_S) -> tuple[int, bytes] | None:
        """Return the next message: TEXT or BINARY, and its payload; None at the end."""
        while not self._messages:
            data = self.wire.receive(timeout_s)
            if not data:
                return None
            self._buffer += data
            while self._take_frame():
                pass
            if self.closed is not None and not self._messages:
                return None
        return self._messages.pop(0)

    @property
    def pending(self) -> bool:
        """True when a whole message is there already."""
        return bool(self._messages)

    def close(self) -> None:
        """Close the connection without a word."""
        self.wire.close()

    def _take_frame(self) -> bool:
        if len(self._buffer) < 2:
            return False
        first, second = self._buffer[:2]
        assert not second & 0x80, "a server must not mask"
        assert not first & 0x70, "no extension was agreed on"
        start, size = 2, second
        if size == 126:
            start, size = 4, int.from_bytes(self._buffer[2:4], "big")
        elif size == 127:
            start, size = 10, int.from_bytes(self._buffer[2:10], "big")
        if len(self._buffer) < start + size:
            return False
        payload = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        self._take(first & 0xF, payload, last=bool(first & 0x80))
        return True

    def _take(self, kind: int, payload: bytes, *, last: bool) -> None:
        if kind == CLOSE:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.closed = code, payload[2:].decode()
        elif kind == PING:
            self.send(PONG, payload)
        elif kind == PONG:
            self.pongs.append(payload)
        else:
            if kind != _CONTINUATION:
                self._kind = kind
            self._parts += payload
            if last:
                self._messages.append((self._kind, bytes(self._parts)))
                self._parts.clear()


class Tunnel:
    """A WebSocket's binary messages as a Wire: a stream of bytes without message boundaries."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    @property
    def inner(self) -> WebSocket:
        """What carries the bytes."""
        return self._socket

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it; what comes meanwhile is kept."""
        self._socket.send(BINARY, data)

    def receive(self, timeout_s: float = DEADLINE_S) -> bytes:
        """Return what comes next, b"" at the end. Raises TimeoutError."""
        while (message := self._socket.receive(timeout_s)) is not None:
            if message[1]:
                return message[1]
        return b""

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def connect_websocket(
    url: str,
    protocols: Sequence[str],
    *,
    context: ssl.SSLContext | None = None,
) -> WebSocket:
    """Open a WebSocket (4.1). The server must choose one of `protocols`, if there are any."""
    key = base64.b64encode(os.urandom(16)).decode()
    headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    ]
    if protocols:
        headers.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
    wire, answer = upgrade(url, "GET", headers, context)
    expected = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()
    assert answer["sec-websocket-accept"] == expected
    chosen = answer.get("sec-websocket-protocol", "")
    assert chosen in (protocols or [""]), f"{chosen} was not offered"
    return WebSocket(wire, chosen)
