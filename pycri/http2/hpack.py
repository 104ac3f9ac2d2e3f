# SPDX-License-Identifier: Apache-2.0
"""Header blocks as a server reads and writes them (HPACK, RFC 7541).

    1xxxxxxx  index                   a field of a table
    01xxxxxx  index of name, value    a field that is also put into the dynamic table
    001xxxxx  size                    the dynamic table's bound from here on
    000?xxxx  index of name, value    a field that is not put into it

Names by index 0 are spelled out. What is sent is spelled out too, so no table is kept for it.
"""

from collections.abc import Iterable
from typing import Final

from pycri.errors import ProtocolViolation
from pycri.http2 import huffman

TABLE_BYTES: Final = 4096
"""The bound of the dynamic table: SETTINGS_HEADER_TABLE_SIZE as it is without saying anything."""
MOST_BYTES: Final = 64 << 10
"""How much the fields of one block may come to: a block of few bytes can name many."""
_ENTRY_BYTES: Final = 32
_LARGEST: Final = 1 << 20

Field = tuple[bytes, bytes]

_STATIC: Final[tuple[Field, ...]] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"),
    (b":path", b"/index.html"), (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"),
    (b":status", b"204"), (b":status", b"206"), (b":status", b"304"), (b":status", b"400"),
    (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""),
    (b"accept", b""), (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""),
    (b"authorization", b""), (b"cache-control", b""), (b"content-disposition", b""),
    (b"content-encoding", b""), (b"content-language", b""), (b"content-length", b""),
    (b"content-location", b""), (b"content-range", b""), (b"content-type", b""), (b"cookie", b""),
    (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""),
    (b"if-range", b""), (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""),
    (b"location", b""), (b"max-forwards", b""), (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""), (b"range", b""), (b"referer", b""), (b"refresh", b""),
    (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""),
    (b"vary", b""), (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip


class HeaderDecoder:
    """Reads the blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._dynamic: list[Field] = []  # the newest first
        self._bytes = 0
        self._bound = TABLE_BYTES

    def decode(self, block: bytes) -> list[Field]:
        """Return the fields of a block. Raises: ProtocolViolation; the connection is lost then."""
        fields: list[Field] = []
        position = size = 0
        try:
            while position < len(block):
                first = block[position]
                if first & 0x80:
                    index, position = _integer(block, position, 7)
                    field = self._indexed(index)
                elif first & 0xE0 == 0x20:
                    bound, position = _integer(block, position, 5)
                    self._set_bound(bound, late=bool(fields))
                    continue
                else:
                    kept = first & 0x40
                    field, position = self._literal(block, position, 6 if kept else 4)
                    if kept:
                        self._put(field)
                fields.append(field)
                size += len(field[0]) + len(field[1]) + _ENTRY_BYTES
                if size > MOST_BYTES:
                    raise ProtocolViolation(f"more than {MOST_BYTES} bytes of headers")
        except IndexError:
            raise ProtocolViolation("a header block is cut short") from None
        return fields

    def _literal(self, block: bytes, position: int, bits: int) -> tuple[Field, int]:
        index, position = _integer(block, position, bits)
        if index:
            name = self._indexed(index)[0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return (name, value), position

    def _indexed(self, index: int) -> Field:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        if len(_STATIC) < index <= len(_STATIC) + len(self._dynamic):
            return self._dynamic[index - len(_STATIC) - 1]
        raise ProtocolViolation(f"there is no header {index}")

    def _put(self, field: Field) -> None:
        self._bytes += _size(field)
        self._dynamic.insert(0, field)
        self._shrink()

    def _set_bound(self, bound: int, *, late: bool) -> None:
        if late or bound > TABLE_BYTES:
            raise ProtocolViolation("the header table cannot be sized so")
        self._bound = bound
        self._shrink()

    def _shrink(self) -> None:
        while self._bytes > self._bound:
            self._bytes -= _size(self._dynamic.pop())


def encode(fields: Iterable[Field]) -> bytes:
    """Return a block that spells out fields, to be put into no table."""
    parts = []
    for name, value in fields:
        parts += [b"\x00", _length(len(name)), name, _length(len(value)), value]
    return b"".join(parts)


def _size(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _ENTRY_BYTES


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """Return a number whose first part is the low bits of a byte, and where it ends."""
    full = (1 << bits) - 1
    value = block[position] & full
    position += 1
    if value < full:
        return value, position
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if value > _LARGEST or shift > 28:
            raise ProtocolViolation("a number in a header block is too large")
        if not byte & 0x80:
            return value, position


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    packed = block[position] & 0x80
    length, position = _integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise ProtocolViolation("a header block is cut short")
    data = block[position:end]
    if not packed:
        return data, end
    text = huffman.decode(data)
    if text is None:
        raise ProtocolViolation("a header is not in the Huffman code")
    return text, end


def _length(number: int) -> bytes:
    if number < 0x7F:
        return bytes([number])
    data = bytearray([0x7F])
    number -= 0x7F
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
