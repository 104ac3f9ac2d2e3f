# SPDX-License-Identifier: Apache-2.0
"""Header blocks are read as RFC 7541 writes them, and wrong ones are refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.errors import ProtocolViolation
from pycri.http2 import huffman
from pycri.http2.hpack import MOST_BYTES, HeaderDecoder, encode

FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
HOST = (b":authority", b"www.example.com")
WANTED = [
    [*FIRST, HOST],
    [*FIRST, HOST, (b"cache-control", b"no-cache")],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        HOST,
        (b"custom-key", b"custom-value"),
    ],
]


@pytest.mark.parametrize(
    "blocks",
    [
        [  # appendix C.3
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [  # appendix C.4: the same in the Huffman code
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ],
)
def test_the_examples_of_the_rfc_are_read_in_their_order(blocks: list[str]) -> None:
    decoder = HeaderDecoder()
    assert [decoder.decode(bytes.fromhex(block)) for block in blocks] == WANTED


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=20))
def test_what_is_written_reads_the_same(fields: list[tuple[bytes, bytes]]) -> None:
    assert HeaderDecoder().decode(encode(fields)) == fields


def packed(data: bytes) -> bytes:
    """Encode by the table, as the RFC says: canonical codes, filled up with ones."""
    codes, code, last = {}, 0, 0
    for length, members in huffman._BYTES_BY_LENGTH.items():
        for byte in members:
            code <<= length - last
            last = length
            codes[byte] = f"{code:0{length}b}"
            code += 1
    bits = "".join(codes[byte] for byte in data)
    bits += "1" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


@given(st.binary(max_size=200))
def test_strings_of_any_bytes_come_out_of_the_huffman_code(data: bytes) -> None:
    assert huffman.decode(packed(data)) == data


@pytest.mark.parametrize("data", ["ff", "fe", "00ffff", "ffffffff", "1fff", "08"])
def test_padding_that_is_too_long_or_not_of_ones_is_refused(data: str) -> None:
    assert huffman.decode(bytes.fromhex(data)) is None


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # nothing in the dynamic table
        "ff" * 8,  # a number without end
        "40",  # cut short behind the name's length
        "000a61",  # a name longer than the block
        "0081ff00",  # the Huffman code of nothing
        "3fe21f",  # a table larger than was agreed on
        "8220",  # a size behind a field
    ],
)
def test_broken_blocks_are_refused(block: str) -> None:
    with pytest.raises(ProtocolViolation):
        HeaderDecoder().decode(bytes.fromhex(block))


def test_the_dynamic_table_forgets_what_is_beyond_its_bound() -> None:
    decoder = HeaderDecoder()
    decoder.decode(b"\x40" + b"\x01a" + b"\x01b")
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    assert decoder.decode(b"\x20") == []  # of no size at all
    with pytest.raises(ProtocolViolation, match="no header 62"):
        decoder.decode(b"\xbe")
    decoder.decode(b"\x21" + b"\x40" + b"\x01a" + b"\x01b")  # one byte: nothing fits
    with pytest.raises(ProtocolViolation, match="no header 62"):
        decoder.decode(b"\xbe")


def test_a_short_block_cannot_stand_for_very_much() -> None:
    decoder = HeaderDecoder()
    decoder.decode(b"\x40\x01a" + b"\x7f\xa1\x1e" + b"x" * 4000)
    with pytest.raises(ProtocolViolation, match=str(MOST_BYTES)):
        decoder.decode(b"\xbe" * 20)


@given(st.binary(max_size=100))
def test_no_block_makes_it_fail_in_another_way(block: bytes) -> None:
    decoder = HeaderDecoder()
    with contextlib.suppress(ProtocolViolation):
        decoder.decode(block)
