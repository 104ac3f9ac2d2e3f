# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1, the server's side, without I/O: bytes in, events out; calls in, bytes out.

What is used of it by Kubernetes (moby/spdystream): the client opens streams, each with a few
headers; both sides send data, half-close, reset. Numbers are big-endian. Every frame:

    control frame                               data frame
    +-+-------------------+----------------+    +-+-----------------------------------+
    |1|  version = 3 (15) |   type (16)    |    |0|          stream id (31)           |
    +-+-------+-----------+----------------+    +-+---------+-------------------------+
    |flags (8)|         length (24)        |    |flags (8)  |       length (24)       |
    +---------+----------------------------+    +-----------+-------------------------+
    |               body                   |    |               payload               |

    type            body
    1 SYN_STREAM    stream id (32), associated stream id (32), priority (8), slot (8), block
    2 SYN_REPLY     stream id (32), block
    3 RST_STREAM    stream id (32), status (32)
    4 SETTINGS      ignored
    6 PING          id (32): an odd one is the client's, and is sent back
    7 GOAWAY        last stream id (32), status (32)
    8 HEADERS       stream id (32), block
    9 WINDOW_UPDATE ignored: no peer counts windows, TCP alone holds a sender back

    block   zlib, one stream a direction for the whole connection, with a preset dictionary, flushed
            after each block: number of pairs (32), and each pair: length (32), name, length (32),
            value. Values of one name are joined by NUL.
    flags   1 FIN: the sender will send no more on this stream

Source: SPDY draft 3.1, sections 2.2 (framing), 2.6 (control frames).
"""

import enum
import struct
import zlib
from collections.abc import Iterator

import msgspec

from pycri.errors import ProtocolViolation
from pycri.streaming.spdy_dictionary import DICTIONARY


class Kind(enum.IntEnum):
    """Types of control frames that mean something here."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    PING = 6
    GOAWAY = 7
    HEADERS = 8


class ResetStatus(enum.IntEnum):
    """Why a stream is given up, in RST_STREAM."""

    PROTOCOL_ERROR = 1
    REFUSED_STREAM = 3
    CANCEL = 5


FLAG_FIN = 1

LARGEST_CONTROL_BYTES = 16 << 10
"""Body of a control frame; those of the field are below 200 bytes."""
LARGEST_BLOCK_BYTES = 64 << 10
"""Header block, inflated."""
MOST_HEADERS = 64
LARGEST_PAYLOAD = (1 << 24) - 1
"""Bytes in one data frame."""

_VERSION = 0x8003
_HEAD = struct.Struct("!II")
_WINDOW_BITS = 11
"""Of our compressor: 2 KiB hold the dictionary, and 200 connections cost little memory."""


class Opened(msgspec.Struct, frozen=True):
    """The client has opened a stream. headers: names in lower case."""

    stream: int
    headers: dict[str, str]


class Data(msgspec.Struct, frozen=True):
    """Bytes of a stream: a part of a frame, as it comes. A view of what was given to `receive`."""

    stream: int
    payload: memoryview


class Ended(msgspec.Struct, frozen=True):
    """The client will send no more on the stream."""

    stream: int


class Reset(msgspec.Struct, frozen=True):
    """The client has given up the stream, both ways."""

    stream: int


class GoneAway(msgspec.Struct, frozen=True):
    """The client is about to close the connection."""


class Broken(msgspec.Struct, frozen=True):
    """The client broke the rules; nothing that comes from it means anything any more."""

    reason: str


Event = Opened | Data | Ended | Reset | GoneAway | Broken


class _Stream:
    """Which ways are still open."""

    def __init__(self) -> None:
        self.readable = True
        self.writable = True


class SpdyConnection:
    """One connection.

    most_streams: open at once; further ones are refused, each by itself.
    """

    def __init__(self, most_streams: int) -> None:
        self._most_streams = most_streams
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0
        self._blocks: _Blocks | None = _Blocks()
        self._partial = bytearray()  # a frame's head, or a control frame, until it is whole
        self._data_stream = 0
        self._data_left = 0
        self._data_fin = False
        self._replies = bytearray()
        self._broken = False

    def replies(self) -> bytes:
        """Return what is to be sent because of what was received, once."""
        replies = bytes(self._replies)
        self._replies.clear()
        return replies

    def receive(self, data: memoryview) -> list[Event]:
        """Take what came; return what it means."""
        events: list[Event] = []
        try:
            while data and not self._broken:
                if self._data_left:
                    data = self._take_payload(data, events)
                else:
                    data = self._take_frame(data, events)
        except ProtocolViolation as violation:
            self._broken = True
            events.append(Broken(str(violation)))
        return events

    def knows(self, stream: int) -> bool:
        """Tell whether either way of the stream is still open."""
        return stream in self._streams

    def is_open(self, stream: int) -> bool:
        """Tell whether we may still send on the stream."""
        found = self._streams.get(stream)
        return found is not None and found.writable

    def answer(self, frame: bytes) -> None:
        """Put a frame among the replies."""
        self._replies += frame

    def accept(self, stream: int) -> None:
        """Put an empty SYN_REPLY among the replies; the client waits for it. Not once sealed."""
        assert self._blocks is not None
        block = self._blocks.render_empty()
        self.answer(render_control(Kind.SYN_REPLY, struct.pack("!I", stream) + block))

    def seal(self) -> None:
        """Refuse all further streams: so headers mean nothing any more, and cost no memory."""
        self._blocks = None

    def reset(self, stream: int, status: ResetStatus) -> bytes:
        """Return the frame that gives up a stream."""
        self._streams.pop(stream, None)
        return render_control(Kind.RST_STREAM, _HEAD.pack(stream, status))

    def end(self, stream: int) -> bytes:
        """Return the frame that half-closes our way; nothing if it is closed already."""
        if not self.is_open(stream):
            return b""
        self._streams[stream].writable = False
        self._drop_if_closed(stream)
        return render_data_head(stream, 0, fin=True)

    def go_away(self) -> bytes:
        """Return the frame that announces our close."""
        return render_control(Kind.GOAWAY, _HEAD.pack(self._last_stream, 0))

    def _take_payload(self, data: memoryview, events: list[Event]) -> memoryview:
        size = min(self._data_left, len(data))
        self._data_left -= size
        self._deliver(data[:size], events)
        return data[size:]

    def _deliver(self, payload: memoryview, events: list[Event]) -> None:
        """Tell of payload, and of the end if the frame is whole and says so.

        Data of streams that are closed or unknown is what the client sent before it knew.
        """
        stream = self._streams.get(self._data_stream)
        if stream is None or not stream.readable:
            return
        if payload:
            events.append(Data(self._data_stream, payload))
        if self._data_fin and not self._data_left:
            self._end_input(self._data_stream, events)

    def _end_input(self, number: int, events: list[Event]) -> None:
        self._streams[number].readable = False
        self._drop_if_closed(number)
        events.append(Ended(number))

    def _take_frame(self, data: memoryview, events: list[Event]) -> memoryview:
        """Take up to the end of a head, or of a whole control frame."""
        data = self._fill(data, _HEAD.size)
        if len(self._partial) < _HEAD.size:
            return data
        first, second = _HEAD.unpack_from(self._partial)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first >> 31:
            self._partial.clear()
            self._data_stream, self._data_left, self._data_fin = first, length, bool(flags & 1)
            if not length:
                self._deliver(data[:0], events)
            return data
        if first >> 16 != _VERSION:
            raise ProtocolViolation(f"a frame of SPDY version {first >> 16 & 0x7FFF}")
        if length > LARGEST_CONTROL_BYTES:
            raise ProtocolViolation(f"a control frame of {length} bytes")
        data = self._fill(data, _HEAD.size + length)
        if len(self._partial) == _HEAD.size + length:
            body = bytes(self._partial[_HEAD.size :])
            self._partial.clear()
            self._control(first & 0xFFFF, flags, body, events)
        return data

    def _fill(self, data: memoryview, size: int) -> memoryview:
        """Collect up to `size` bytes of an unfinished frame; return what is behind them."""
        missing = max(0, size - len(self._partial))
        self._partial += data[:missing]
        return data[missing:]

    def _control(self, kind: int, flags: int, body: bytes, events: list[Event]) -> None:
        match kind:
            case Kind.SYN_STREAM:
                self._syn_stream(flags, body, events)
            case Kind.SYN_REPLY:
                raise ProtocolViolation("a reply to a stream that nobody has opened")
            case Kind.RST_STREAM:
                self._rst_stream(body, events)
            case Kind.PING:
                if _number(body) & 1:
                    self.answer(render_control(Kind.PING, body[:4]))
            case Kind.GOAWAY:
                events.append(GoneAway())
            case Kind.HEADERS:
                self._headers(flags, body, events)

    def _rst_stream(self, body: bytes, events: list[Event]) -> None:
        number = _number(body)
        if self._streams.pop(number, None):
            events.append(Reset(number))

    def _headers(self, flags: int, body: bytes, events: list[Event]) -> None:
        self._read_block(body[4:])  # they mean nothing, but the zlib stream goes on through them
        stream = self._streams.get(number := _number(body))
        if flags & FLAG_FIN and stream and stream.readable:
            self._end_input(number, events)

    def _syn_stream(self, flags: int, body: bytes, events: list[Event]) -> None:
        number = _number(body) & 0x7FFFFFFF
        if not number & 1 or number <= self._last_stream or len(body) < 10:
            raise ProtocolViolation(f"a stream opened as number {number}")
        self._last_stream = number
        headers = self._read_block(body[10:])
        if self._blocks is None or len(self._streams) >= self._most_streams:
            self.answer(self.reset(number, ResetStatus.REFUSED_STREAM))
            return
        self._streams[number] = _Stream()
        events.append(Opened(number, headers))
        if flags & FLAG_FIN:
            self._end_input(number, events)

    def _drop_if_closed(self, number: int) -> None:
        stream = self._streams[number]
        if not stream.readable and not stream.writable:
            del self._streams[number]

    def _read_block(self, block: bytes) -> dict[str, str]:
        return {} if self._blocks is None else self._blocks.parse(block)


class _Blocks:
    """The two zlib streams of header blocks; some 50 KB of memory."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(wbits=_WINDOW_BITS, memLevel=1, zdict=DICTIONARY)

    def render_empty(self) -> bytes:
        """Return our next block: without headers."""
        return self._deflate.compress(b"\0\0\0\0") + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def parse(self, block: bytes) -> dict[str, str]:
        """Return what is in the client's next block. Raises ProtocolViolation."""
        try:
            text = self._inflate.decompress(block, LARGEST_BLOCK_BYTES + 1)
        except zlib.error as error:
            raise ProtocolViolation(f"headers that are not zlib: {error}") from error
        if len(text) > LARGEST_BLOCK_BYTES:
            raise ProtocolViolation(f"headers of more than {LARGEST_BLOCK_BYTES} bytes")
        return dict(_parse_pairs(text))


def render_control(kind: int, body: bytes) -> bytes:
    """Return a control frame without flags."""
    return _HEAD.pack(_VERSION << 16 | kind, len(body)) + body


def render_data_head(stream: int, size: int, *, fin: bool = False) -> bytes:
    """Return the head of a data frame; `size` bytes of payload follow."""
    return _HEAD.pack(stream, (FLAG_FIN if fin else 0) << 24 | size)


def _number(body: bytes) -> int:
    if len(body) < 4:
        raise ProtocolViolation("a control frame that is too short")
    return int.from_bytes(body[:4], "big")


def _parse_pairs(text: bytes) -> Iterator[tuple[str, str]]:
    count, rest = _take_number(text)
    if count > MOST_HEADERS:
        raise ProtocolViolation(f"{count} headers in a block")
    for _ in range(count):
        name, rest = _take_text(rest)
        value, rest = _take_text(rest)
        yield name.lower(), value


def _take_text(text: bytes) -> tuple[str, bytes]:
    size, rest = _take_number(text)
    if size > len(rest):
        raise ProtocolViolation("a header that is longer than its block")
    return rest[:size].decode("latin-1"), rest[size:]


def _take_number(text: bytes) -> tuple[int, bytes]:
    if len(text) < 4:
        raise ProtocolViolation("a header block that is too short")
    return int.from_bytes(text[:4], "big"), text[4:]
