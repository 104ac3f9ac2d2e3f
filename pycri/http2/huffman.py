# SPDX-License-Identifier: Apache-2.0
"""The Huffman code of header strings (RFC 7541, Appendix B).

The code is canonical: codes are counted up in the order of their lengths, and of their bytes within
a length. So the table is who has which length. Input is taken four bits at a time: no code is
shorter than five, so that many bits complete one byte at most.
"""

from functools import cache
from typing import Final, NamedTuple

_BYTES_BY_LENGTH: Final = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4"
    b"\xc6\xe4\xe8\xe9",
    23: b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4"
    b"\xb6\xb7\xbc\xbf\xc5\xe7\xef",
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff",
    27: b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    28: b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b"
    b"\x1c\x1d\x1e\x1f\x7f\xdc\xf9",
    30: b"\n\r\x16",  # and after them the end of string, which no string may hold
}
_LONGEST_PADDING: Final = 7


class _Step(NamedTuple):
    """What four bits do. target: the node they lead to; None for a code that stands for nothing."""

    target: int | None
    byte: bytes


def decode(data: bytes) -> bytes | None:
    """Return the string, or None if that is not one."""
    steps, ends = _automaton()
    node = 0
    parts = []
    for byte in data:
        for bits in (byte >> 4, byte & 15):
            target, found = steps[node][bits]
            if target is None:
                return None
            node = target
            if found:
                parts.append(found)
    return b"".join(parts) if node in ends else None


@cache
def _automaton() -> tuple[list[list[_Step]], set[int]]:
    """Return the steps of each node, and the nodes that a string may end in.

    A string is filled up with the first bits of the end of string: ones, fewer than eight.
    """
    children = _tree()
    steps = [[_walk(children, node, bits) for bits in range(16)] for node in range(len(children))]
    ends, node = {0}, 0
    for _ in range(_LONGEST_PADDING):
        step = children[node][1]
        assert isinstance(step, int)
        node = step
        ends.add(node)
    return steps, ends


def _tree() -> list[list[int | bytes | None]]:
    """Return of each inner node where a 0 and a 1 lead: to a node, a byte, or nowhere."""
    children: list[list[int | bytes | None]] = [[None, None]]
    code, last = 0, 0
    for length, members in _BYTES_BY_LENGTH.items():
        for byte in members:
            code <<= length - last
            last = length
            node = 0
            for shift in range(length - 1, 0, -1):
                bit = code >> shift & 1
                following = children[node][bit]
                if following is None:
                    children.append([None, None])
                    following = children[node][bit] = len(children) - 1
                assert isinstance(following, int)
                node = following
            children[node][code & 1] = bytes([byte])
            code += 1
    return children


def _walk(children: list[list[int | bytes | None]], node: int, bits: int) -> _Step:
    found = b""
    for shift in (3, 2, 1, 0):
        following = children[node][bits >> shift & 1]
        if following is None:
            return _Step(None, b"")
        if isinstance(following, bytes):
            found, node = following, 0
        else:
            node = following
    return _Step(node, found)
