# SPDX-License-Identifier: Apache-2.0
"""Frames of HTTP/2 (RFC 9113, sections 4, 6 and 7).

length 24 | type 8 | flags 8 | reserved 1, stream 31 | payload of `length` bytes
"""

import enum
import struct
from typing import Final, NamedTuple

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
MAX_FRAME_BYTES: Final = 16384
"""The largest payload each side takes, unless it says otherwise; we never do."""
LARGEST_WINDOW: Final = (1 << 31) - 1
_LARGEST_FRAME: Final = (1 << 24) - 1

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

_HEADER: Final = struct.Struct(">BHBBI")
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")


class Kind(enum.IntEnum):
    """Types of frames (section 6)."""

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
    """Why a stream or connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9


class Setting(enum.IntEnum):
    """Settings that mean something to us (section 6.5.2)."""

    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Frame(NamedTuple):
    """A frame that was received. kind: a Kind, or a number that nobody has to know."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Fault(Exception):
    """The peer breaks the protocol: the connection is to end with this code."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return header(len(payload), kind, flags, stream_id) + payload


def header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return what stands before a payload of `length` bytes."""
    return _HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id)


def number_frame(kind: int, stream_id: int, number: int) -> bytes:
    """Return a WINDOW_UPDATE or RST_STREAM."""
    return frame(kind, 0, stream_id, _NUMBER.pack(number))


def settings_frame(settings: dict[Setting, int]) -> bytes:
    """Return SETTINGS."""
    payload = b"".join(_SETTING.pack(name, value) for name, value in settings.items())
    return frame(Kind.SETTINGS, 0, 0, payload)


def goaway_frame(last_stream_id: int, code: Code, reason: str = "") -> bytes:
    """Return GOAWAY: no stream above the last is looked at any more."""
    words = _NUMBER.pack(last_stream_id) + _NUMBER.pack(code)
    return frame(Kind.GOAWAY, 0, 0, words + reason.encode())


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return settings by number. Raises: Fault."""
    if len(payload) % _SETTING.size:
        raise Fault(Code.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
    found = list(_SETTING.iter_unpack(payload))
    for name, value in found:
        if name == Setting.INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise Fault(Code.FLOW_CONTROL_ERROR, "the initial window is too large")
        if name == Setting.MAX_FRAME_SIZE and not MAX_FRAME_BYTES <= value <= _LARGEST_FRAME:
            raise Fault(Code.PROTOCOL_ERROR, "frames cannot be of that size")
    return found


def parse_number(payload: bytes) -> int:
    """Return what a WINDOW_UPDATE or RST_STREAM says. Raises: Fault."""
    if len(payload) != _NUMBER.size:
        raise Fault(Code.FRAME_SIZE_ERROR, "a frame of a wrong length")
    (number,) = _NUMBER.unpack(payload)
    return int(number) & LARGEST_WINDOW


def content(received: Frame) -> bytes:
    """Return a frame's payload without padding and priority. Raises: Fault."""
    payload = received.payload
    start, end = 0, len(payload)
    if received.flags & PADDED:
        if not payload:
            raise Fault(Code.FRAME_SIZE_ERROR, "no length of padding")
        start, end = 1, end - payload[0]
    if received.kind == Kind.HEADERS and received.flags & PRIORITY:
        start += 5
    if start > end:
        raise Fault(Code.PROTOCOL_ERROR, "more padding than payload")
    return payload[start:end]


def take_frame(data: bytearray) -> Frame | None:
    """Take the next frame off the data; None as long as it is not whole. Raises: Fault."""
    if len(data) < HEADER_BYTES:
        return None
    high, low, kind, flags, stream_id = _HEADER.unpack_from(data)
    end = HEADER_BYTES + (high << 16 | low)
    if end > HEADER_BYTES + MAX_FRAME_BYTES:
        raise Fault(Code.FRAME_SIZE_ERROR, "a frame is too large")
    if len(data) < end:
        return None
    payload = bytes(data[HEADER_BYTES:end])
    del data[:end]
    return Frame(kind, flags, stream_id & LARGEST_WINDOW, payload)
