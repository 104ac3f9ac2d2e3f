# SPDX-License-Identifier: Apache-2.0
"""gRPC over HTTP/2: what a request's headers say, how a message is framed, how an answer ends.

    HEADERS :method POST, :path /package.Service/Method, content-type, grpc-timeout, metadata
    DATA    compressed 8 | length 32 | message            ── and so the messages of the answer
    HEADERS grpc-status, grpc-message                      ── the answer's end

Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md). Messages are never compressed: clients may only do it
if the server says that it can.
"""

import enum
import re
import struct
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from pycri.http2.nghttp2 import Fields

PREFIX_BYTES: Final = 5
_PREFIX: Final = struct.Struct(">BI")
_TIMEOUT: Final = re.compile(r"(\d{1,8})([HMSmun])")
_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Code(enum.IntEnum):
    """How a call ended (gRPC status codes)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_BEGINNING: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
BEGINNING: Final = Fields(_BEGINNING)
"""The headers of every answer."""
_WELL: Final = Fields([(b"grpc-status", b"0")])


class Malformed(Exception):
    """A request that is no call; code and words are the answer."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def trailers(code: Code, message: str) -> Fields:
    """Return the fields that end an answer."""
    return _WELL if code is Code.OK else Fields(_status(code, message))


def refusal(code: Code, message: str) -> Fields:
    """Return the only headers of an answer that ends at once."""
    return Fields([*_BEGINNING, *_status(code, message)])


def rejection(status: int) -> Fields:
    """Return the only headers of an answer to what is not gRPC at all."""
    return Fields([(b":status", b"%d" % status), (b"grpc-status", b"%d" % Code.UNKNOWN)])


def _status(code: Code, message: str) -> list[tuple[bytes, bytes]]:
    text = quote(message, safe=_PLAIN).encode()
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", text)]


def framed(message: bytes) -> bytes:
    """Return a message as data."""
    return _PREFIX.pack(0, len(message)) + message


def parse_message(body: bytes) -> bytes:
    """Return the one message of a request. Raises: Malformed."""
    if len(body) < PREFIX_BYTES:
        raise Malformed(Code.INTERNAL, "the request has no message")
    compressed, length = _PREFIX.unpack_from(body)
    if compressed:
        raise Malformed(Code.UNIMPLEMENTED, "the request is compressed")
    if len(body) != PREFIX_BYTES + length:
        raise Malformed(Code.INTERNAL, "the request is not one message")
    return body[PREFIX_BYTES:]


def parse_timeout(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the caller waits; None if it does not say. Raises: Malformed."""
    text = headers.get("grpc-timeout")
    if text is None:
        return None
    if not (match := _TIMEOUT.fullmatch(text)):
        raise Malformed(Code.INTERNAL, "grpc-timeout is malformed")
    return int(match[1]) * _UNIT_S[match[2]]
