# SPDX-License-Identifier: Apache-2.0
"""WebSocket, the server's side after the handshake, without I/O. The only user of wsproto.

A frame, as a server sends it (a client's has the mask bit and a mask of 32 bits behind the length):

    +-+---+-------+-+-------------+-------------------------------+------------------+
    |F|000|opcode |0| length (7)  |  length (16) if that is 126,  |   payload        |
    |I|   |  (4)  | |             |  (64) if it is 127            |                  |
    |N|   |       | |             |                               |                  |
    +-+---+-------+-+-------------+-------------------------------+------------------+
    opcode  0 continuation, 1 text, 2 binary, 8 close, 9 ping, 10 pong

Our heads are made here, not by wsproto, so that the payload need not pass through it: it may be
spliced from a pipe. Source: RFC 6455 section 5.
"""

import struct

import msgspec
from wsproto.connection import Connection, ConnectionState, ConnectionType  # noqa: TID251  its home
from wsproto.events import (  # noqa: TID251
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason  # noqa: TID251

_TEXT, _BINARY = 0x81, 0x82


class Chunk(msgspec.Struct, frozen=True):
    """A part of a message, as it comes. first: of its message."""

    payload: bytes
    first: bool


class Closed(msgspec.Struct, frozen=True):
    """The client has closed the connection, or broken the protocol's rules; nothing follows."""

    reason: str


class WebSocket:
    """One connection."""

    def __init__(self) -> None:
        self._connection = Connection(ConnectionType.SERVER)
        self._in_message = False
        self._replies = bytearray()

    def replies(self) -> bytes:
        """Return what is to be sent because of what was received, once."""
        replies = bytes(self._replies)
        self._replies.clear()
        return replies

    def answer(self, frame: bytes) -> None:
        """Put a frame among the replies."""
        self._replies += frame

    def receive(self, data: memoryview) -> list[Chunk | Closed]:
        """Take what came; return the messages in it, part by part."""
        if self._connection.state is not ConnectionState.OPEN:
            return []
        self._connection.receive_data(data)  # type: ignore[arg-type] # appended to a bytearray
        return [got for event in self._connection.events() if (got := self._take(event))]

    def _take(self, event: Event) -> Chunk | Closed | None:
        match event:
            case BytesMessage() | TextMessage():
                first, self._in_message = not self._in_message, not event.message_finished
                data = event.data
                return Chunk(data.encode() if isinstance(data, str) else bytes(data), first)
            case CloseConnection(code=code, reason=reason):
                self._replies += self._close(code)
                return Closed(reason or "")
            case Ping():
                self._replies += self._connection.send(event.response())
        return None

    def close(self) -> bytes:
        """Return the frame of an orderly close; nothing if one was sent before."""
        return self._close(CloseReason.NORMAL_CLOSURE)

    def _close(self, code: int) -> bytes:
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return self._connection.send(CloseConnection(code=code))
        return b""


def render_head(size: int, *, text: bool = False) -> bytes:
    """Return the head of a message in one frame; `size` bytes of payload follow."""
    first = _TEXT if text else _BINARY
    if size < 126:
        return struct.pack("!BB", first, size)
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)
