# SPDX-License-Identifier: Apache-2.0
"""WebSocket without I/O."""

from hypothesis import given
from hypothesis import strategies as st

from pycri.streaming.websocket import Chunk, Closed, WebSocket, render_head
from tests.unit.streaming import frames


def payloads(socket: WebSocket, *parts: bytes) -> list[bytes]:
    """Return whole messages as the parts give them; a close is told as b"close"."""
    found: list[bytes] = []
    for part in parts:
        for event in socket.receive(memoryview(part)):
            if isinstance(event, Closed):
                found.append(b"close")
            elif event.first:
                found.append(event.payload)
            else:
                found[-1] += event.payload
    return found


def test_a_message_may_come_in_several_frames_with_a_ping_between() -> None:
    socket = WebSocket()
    sent = frames.message(b"ab", fin=False) + frames.message(b"!", opcode=9)
    assert payloads(socket, sent + frames.message(b"cd", opcode=0)) == [b"abcd"]
    assert frames.read_messages(socket.replies()) == [(10, b"!")]
    assert socket.receive(memoryview(frames.message(b"x"))) == [Chunk(b"x", first=True)]


def test_text_is_told_in_bytes() -> None:
    assert payloads(WebSocket(), frames.message("ä1".encode(), opcode=1)) == ["ä1".encode()]


def test_a_close_is_answered_once_and_nothing_is_read_behind_it() -> None:
    socket = WebSocket()
    sent = frames.message(b"\x03\xe8bye", opcode=8) + frames.message(b"late")
    assert payloads(socket, sent) == [b"close"]
    assert payloads(socket, frames.message(b"later")) == []
    assert frames.read_messages(socket.replies()) == [(8, b"\x03\xe8")]
    assert socket.close() == b""


def test_a_frame_against_the_rules_closes_with_its_code() -> None:
    unmasked = b"\x82\x01x"
    for sent, code in [
        (unmasked, 1002),
        (b"\xf2\x80mask", 1002),
        (frames.message(b"\xff", opcode=1), 1007),
        (frames.message(b"x", opcode=3), 1002),
        (frames.message(b"x" * 126, opcode=9), 1002),
    ]:
        socket = WebSocket()
        assert payloads(socket, sent) == [b"close"]
        assert frames.read_messages(socket.replies()) == [(8, code.to_bytes(2, "big"))]


def test_a_head_says_the_length_in_the_fewest_bytes() -> None:
    for size in (0, 1, 125, 126, 65535, 65536):
        assert frames.read_messages(render_head(size) + b"x" * size) == [(2, b"x" * size)]
    assert [len(render_head(n)) for n in (125, 126, 65535, 65536)] == [2, 4, 4, 10]
    assert render_head(1, text=True) == b"\x81\x01"


@given(
    messages=st.lists(st.binary(max_size=400), max_size=10),
    cuts=st.lists(st.integers(1, 50), max_size=100),
)
def test_how_the_bytes_are_cut_does_not_matter(messages: list[bytes], cuts: list[int]) -> None:
    rest = b"".join(frames.message(payload) for payload in messages)
    parts = []
    for size in cuts:
        parts.append(rest[:size])
        rest = rest[size:]
    assert payloads(WebSocket(), *parts, rest) == messages
