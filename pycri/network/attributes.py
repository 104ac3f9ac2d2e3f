# SPDX-License-Identifier: Apache-2.0
"""Netlink attributes (netlink(7), struct nlattr): kind and value, nested or in a row, to bytes.

    u16 length (with these four bytes) │ u16 kind │ value │ padding to four bytes

Numbers are in the host's order in rtnetlink and in the network's order in nfnetlink.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

_HEADER = struct.Struct("=HH")
_NESTED = 0x8000
_KIND = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute with its padding."""
    length = _HEADER.size + len(value)
    return _HEADER.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute whose value is a row of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Return a string with its NUL."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """Return a number in the host's order."""
    return attribute(kind, struct.pack("=I", value))


def address(kind: int, value: IPv4Address | IPv6Address) -> bytes:
    return attribute(kind, value.packed)


def mac(kind: int, value: str) -> bytes:
    """value: as text, "0a:58:0a:58:00:02"."""
    return attribute(kind, bytes.fromhex(value.replace(":", "")))


def parse(data: bytes) -> dict[int, bytes]:
    """Return the values of a row of attributes by their kinds; of two of a kind the last."""
    found = {}
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)
        found[kind & _KIND] = data[offset + _HEADER.size : offset + length]
        offset += max((length + 3) & ~3, _HEADER.size)
    return found


def parse_list(data: bytes, kind: int) -> list[bytes]:
    """Return the values of all attributes of one kind in a row."""
    found = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, of_kind = _HEADER.unpack_from(data, offset)
        if of_kind & _KIND == kind:
            found.append(data[offset + _HEADER.size : offset + length])
        offset += max((length + 3) & ~3, _HEADER.size)
    return found


def parse_text(value: bytes) -> str:
    """Return a string without its NUL."""
    return value.rstrip(b"\0").decode(errors="replace")
