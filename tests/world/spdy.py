# SPDX-License-Identifier: Apache-2.0
"""A SPDY/3.1 client, written from the specification (draft-mbelshe-httpbis-spdy-00, and 3.1's
flow control, which Kubernetes' peers ignore: the window is opened wide once and then left alone).

    control frame   1 version:15 type:16 | flags:8 length:24 | payload
    data frame      0 stream:31          | flags:8 length:24 | payload
    SYN_STREAM      stream:32 associated:32 priority:3 unused:5 slot:8 names-and-values
    SYN_REPLY       stream:32 names-and-values            RST_STREAM  stream:32 status:32
    PING            id:32                                 GOAWAY      last stream:32 status:32

Names and values: count:32, then length:32 and bytes of each name and each value; all blocks of one
direction are one zlib stream with the dictionary of 2.6.10.1.
"""

import ssl
import struct
import zlib
from collections.abc import Sequence

from tests.world.wires import DEADLINE_S, Wire, upgrade, wait_for

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = (
    1, 2, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
FIN = 1
VERSION = 3
FRAME = 32 << 10
"""Bytes of data a frame; as much as Go's clients send."""

_WORDS = """
options head post put delete trace accept accept-charset accept-encoding accept-language
accept-ranges age allow authorization cache-control connection content-base content-encoding
content-language content-length content-location content-md5 content-range content-type date etag
expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since
last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer
retry-after server te trailer transfer-encoding upgrade user-agent vary via warning
www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin
"""
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _text(word: str) -> bytes:
    data = word.encode()
    return struct.pack(">I", len(data)) + data


DICTIONARY = b"".join(_text(word.replace("_", " ")) for word in _WORDS.split()) + _TAIL.encode()
assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2, "the identifier that zlib streams of SPDY/3 carry"


class Stream:
    """One stream of a connection, opened by the client.

    data: what came and was not taken. ended: the server has closed its side. reset: status of an
    RST_STREAM. sink: count what comes instead of keeping it.
    """

    def __init__(self, connection: "Spdy", number: int) -> None:
        self._connection = connection
        self.number = number
        self.replied = False
        self.ended = False
        self.reset: int | None = None
        self.sink = False
        self.received = 0
        self.data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Send data, in frames of at most FRAME bytes."""
        view = memoryview(data)
        for start in range(0, len(view), FRAME):
            piece = view[start : start + FRAME]
            self._connection.send_frame(struct.pack(">II", self.number, len(piece)), piece)

    def close(self) -> None:
        """Close our side."""
        self._connection.send_frame(struct.pack(">II", self.number, FIN << 24))

    def abort(self, status: int = 5) -> None:
        """Reset the stream; 5 is CANCEL."""
        self._connection.send_control(RST_STREAM, 0, struct.pack(">II", self.number, status))

    def take(self) -> bytes:
        """Return what has come so far, and forget it."""
        taken = bytes(self.data)
        self.data.clear()
        return taken

    def read_until(self, end: bytes) -> bytes:
        """Read until `end` has come. Returns what came up to there; what follows stays."""
        self._connection.wait(lambda: end in self.data, f"{end!r} in {self.data!r}")
        length = self.data.index(end) + len(end)
        taken = bytes(self.data[:length])
        del self.data[:length]
        return taken

    def read_all(self) -> bytes:
        """Read to the end."""
        self._connection.wait(lambda: self.ended or self.reset is not None, "the stream's end")
        return self.take()

    def accept(self, payload: memoryview, *, last: bool) -> None:
        """Take a frame from the connection."""
        self.received += len(payload)
        if not self.sink:
            self.data += payload
        self.ended |= last


class Spdy:
    """A connection. Takes the wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.streams: dict[int, Stream] = {}
        self.pings: list[int] = []
        self.gone_away: int | None = None
        self.ended = False
        self._next_number = 1
        self._buffer = bytearray()
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 15, 8, 0, DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def open(self, headers: dict[str, str], *, last: bool = False) -> Stream:
        """Open a stream; does not wait for the reply."""
        stream = Stream(self, self._next_number)
        self._next_number += 2
        self.streams[stream.number] = stream
        fixed = struct.pack(">IIBB", stream.number, 0, 0, 0)
        self.send_control(SYN_STREAM, FIN if last else 0, fixed + self._block(headers))
        return stream

    def ping(self, number: int) -> None:
        """Send a ping; the answer comes up in `pings`."""
        self.send_control(PING, 0, struct.pack(">I", number))

    def send_control(self, kind: int, flags: int, payload: bytes) -> None:
        """Send a control frame."""
        head = struct.pack(">HHI", 0x8000 | VERSION, kind, flags << 24 | len(payload))
        self.send_frame(head, payload)

    def send_frame(self, head: bytes, payload: bytes | memoryview = b"") -> None:
        """Send a frame."""
        self.wire.send(head + payload)

    def pump(self, timeout_s: float = DEADLINE_S) -> bool:
        """Take what comes next. Returns False at the connection's end."""
        data = self.wire.receive(timeout_s)
        if not data:
            self.ended = True
            return False
        self._buffer += data
        self._take_frames()
        return True

    def wait(self, done, what: str) -> None:  # type: ignore[no-untyped-def] # Callable[[], bool]
        """Pump until `done`."""
        wait_for(self.pump, done, what)

    def close(self) -> None:
        """Close the connection."""
        self.wire.close()

    def _take_frames(self) -> None:
        view = memoryview(self._buffer)
        start, total = 0, len(view)
        while total - start >= 8:
            first, second = struct.unpack_from(">II", view, start)
            end = start + 8 + (second & 0xFFFFFF)
            if end > total:
                break
            payload, flags = view[start + 8 : end], second >> 24
            if first & 0x80000000:
                self._control(first & 0xFFFF, flags, bytes(payload))
            else:
                self.streams[first].accept(payload, last=bool(flags & FIN))
            payload.release()
            start = end
        view.release()
        del self._buffer[:start]

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind in (SYN_REPLY, HEADERS):
            stream = self.streams[struct.unpack_from(">I", payload)[0]]
            self._inflate.decompress(payload[4:])
            stream.replied = True
            stream.ended |= bool(flags & FIN)
        elif kind == RST_STREAM:
            number, status = struct.unpack(">II", payload)
            self.streams[number].reset = status
        elif kind == PING:
            self.pings.append(struct.unpack(">I", payload)[0])
        elif kind == GOAWAY:
            self.gone_away = struct.unpack(">II", payload)[1]
        else:
            assert kind in (SETTINGS, WINDOW_UPDATE), f"unexpected frame of type {kind}"

    def _block(self, headers: dict[str, str]) -> bytes:
        texts = [struct.pack(">I", len(headers))]
        for name, value in headers.items():
            texts += [_text(name.lower()), _text(value)]
        data = self._deflate.compress(b"".join(texts))
        return data + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def connect_spdy(
    url: str,
    protocols: Sequence[str],
    *,
    method: str = "POST",
    context: ssl.SSLContext | None = None,
) -> tuple[Spdy, str]:
    """Upgrade to SPDY/3.1. Returns the connection and the protocol that the server chose."""
    headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
    headers += [("X-Stream-Protocol-Version", protocol) for protocol in protocols]
    wire, answer = upgrade(url, method, headers, context)
    assert answer["upgrade"].lower() == "spdy/3.1"
    return Spdy(wire), answer.get("x-stream-protocol-version", "")
