# SPDX-License-Identifier: Apache-2.0
"""What clients send, byte by byte: frames of SPDY/3.1 and WebSocket."""

import struct
import zlib

from pycri.streaming.spdy_dictionary import DICTIONARY


class SpdyClient:
    """Makes a client's frames; its header blocks are one zlib stream, so order counts."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._rest = b""

    def block(self, headers: dict[str, str]) -> bytes:
        text = struct.pack("!I", len(headers))
        for name, value in headers.items():
            for word in (name.encode(), value.encode()):
                text += struct.pack("!I", len(word)) + word
        return self._deflate.compress(text) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def open(self, stream: int, headers: dict[str, str], *, flags: int = 0) -> bytes:
        return control(1, struct.pack("!IIH", stream, 0, 0) + self.block(headers), flags=flags)

    def headers(self, stream: int, headers: dict[str, str], *, flags: int = 0) -> bytes:
        return control(8, struct.pack("!I", stream) + self.block(headers), flags=flags)

    def read(self, answer: bytes) -> list[tuple[str, int, bytes | int]]:
        """Return the server's frames: (kind, stream, payload or number)."""
        found: list[tuple[str, int, bytes | int]] = []
        self._rest += answer
        while len(self._rest) >= 8:
            first, second = struct.unpack_from("!II", self._rest)
            size = second & 0xFFFFFF
            if len(self._rest) < 8 + size:
                break
            body, self._rest = self._rest[8 : 8 + size], self._rest[8 + size :]
            if first >> 31:
                found.append(self._control(first & 0xFFFF, body))
                continue
            found += [("data", first, body)] if body else []
            found += [("end", first, b"")] if second >> 24 & 1 else []
        return found

    def _control(self, kind: int, body: bytes) -> tuple[str, int, bytes | int]:
        number = int.from_bytes(body[:4], "big")
        match kind:
            case 2:
                assert self._inflate.decompress(body[4:]) == b"\0\0\0\0"
                return "reply", number, b""
            case 3:
                return "reset", number, int.from_bytes(body[4:], "big")
            case 6:
                return "ping", number, b""
            case 7:
                return "goaway", number, int.from_bytes(body[4:], "big")
        raise AssertionError(f"a frame of type {kind}")


def control(kind: int, body: bytes, *, flags: int = 0) -> bytes:
    return struct.pack("!II", 0x80030000 | kind, flags << 24 | len(body)) + body


def data(stream: int, payload: bytes = b"", *, fin: bool = False) -> bytes:
    return struct.pack("!II", stream, int(fin) << 24 | len(payload)) + payload


def reset(stream: int) -> bytes:
    return control(3, struct.pack("!II", stream, 5))


def ping(number: int) -> bytes:
    return control(6, struct.pack("!I", number))


def goaway() -> bytes:
    return control(7, struct.pack("!II", 0, 0))


def message(payload: bytes, *, opcode: int = 2, fin: bool = True, mask: bytes = b"mask") -> bytes:
    """Return a client's WebSocket frame."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", fin << 7 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", fin << 7 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", fin << 7 | opcode, 0x80 | 127, size)
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def read_messages(answer: bytes) -> list[tuple[int, bytes]]:
    """Return a server's WebSocket frames, which are whole messages: (opcode, payload)."""
    found = []
    while answer:
        first, size = answer[0], answer[1]
        assert first & 0x80, "a server's messages are one frame each"
        start = 2
        if size == 126:
            start, size = 4, int.from_bytes(answer[2:4], "big")
        elif size == 127:
            start, size = 10, int.from_bytes(answer[2:10], "big")
        found.append((first & 15, answer[start : start + size]))
        answer = answer[start + size :]
    return found
