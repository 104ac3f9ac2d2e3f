# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 as a client speaks it, frame by frame (RFC 9113), right or wrong.

length 24 | type 8 | flags 8 | reserved 1, stream 31 | payload of `length` bytes
"""

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES = 16384

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20

_HEADER = struct.Struct(">BHBBI")


class Kind(enum.IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(enum.IntEnum):
    """Why a stream or connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Setting(enum.IntEnum):
    """Settings by number."""

    HEADER_TABLE_SIZE = 1
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class Frame(NamedTuple):
    """A frame that was received. fields: of HEADERS."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    fields: dict[bytes, bytes]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return _HEADER.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def number(value: int) -> bytes:
    """Return a number of 32 bits."""
    return struct.pack(">I", value)


def number_frame(kind: int, stream_id: int, value: int) -> bytes:
    """Return a WINDOW_UPDATE or RST_STREAM."""
    return frame(kind, 0, stream_id, number(value))


def settings_frame(**settings: int) -> bytes:
    """Return SETTINGS, by names in lower case."""
    pairs = [(Setting[name.upper()], value) for name, value in settings.items()]
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a header block that can be sent at any time."""
    return Encoder().encode(fields)


class Reader:
    """Takes apart what a server sends, whose headers are whole in one frame each."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._headers = Decoder()

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._received += data

    def frame(self) -> Frame | None:
        """Return the next frame; None as long as it is not whole."""
        if len(self._received) < _HEADER.size:
            return None
        high, low, kind, flags, stream_id = _HEADER.unpack_from(self._received)
        end = _HEADER.size + (high << 16 | low)
        if len(self._received) < end:
            return None
        payload = bytes(self._received[_HEADER.size : end])
        del self._received[:end]
        fields = dict(self._headers.decode(payload, raw=True)) if kind == Kind.HEADERS else {}
        return Frame(kind, flags, stream_id, payload, fields)
