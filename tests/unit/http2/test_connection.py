# SPDX-License-Identifier: Apache-2.0
"""A connection as its client sees it, frame by frame. Real clients are in `cri/test_server.py`."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.http2 import connection as http2
from pycri.http2.connection import Connection, Gone, Request
from pycri.http2.nghttp2 import Fields
from tests.world import http2 as frames
from tests.world.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITY,
    Code,
    Frame,
    Kind,
    encode,
    number,
)

MOST = 100_000
HELLO = PREFACE + frames.settings_frame()
BLOCK = encode([(b":method", b"POST"), (b":path", b"/s/M")])
HEAD = Fields([(b":status", b"200"), (b"name", b"head")])
TAIL = Fields([(b"name", b"tail")])


class Client:
    """Says hello at once. `frames` takes what has come since."""

    def __init__(self, **settings: int) -> None:
        self.server = Connection(MOST)
        self.reader = frames.Reader()
        self.server.receive(PREFACE + frames.settings_frame(**settings))
        self.send(Kind.SETTINGS, ACK, 0)
        self.frames()

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> list[object]:
        return list(self.server.receive(frames.frame(kind, flags, stream, payload)))

    def ask(self, stream: int, body: bytes = b"") -> list[object]:
        events = self.send(Kind.HEADERS, END_HEADERS, stream, BLOCK)
        return events + self.send(Kind.DATA, END_STREAM, stream, body)

    def frames(self) -> list[Frame]:
        self.reader.feed(self.server.output())
        found = []
        while (frame := self.reader.frame()) is not None:
            found.append(frame)
        return found

    def data(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames() if frame.kind == Kind.DATA)


def test_a_request_is_handed_out_once_it_is_whole_however_it_is_cut() -> None:
    sent = HELLO + frames.frame(Kind.HEADERS, END_HEADERS, 1, BLOCK)
    sent += frames.frame(Kind.DATA, 0, 1, b"ab") + frames.frame(Kind.DATA, END_STREAM, 1, b"c")
    server = Connection(MOST)
    events = [event for byte in sent for event in server.receive(bytes([byte]))]
    assert events == [Request(1, {":method": "POST", ":path": "/s/M"}, b"abc")]
    assert not server.closed


def test_headers_come_in_pieces_with_padding_and_priority() -> None:
    client = Client()
    first = bytes([4]) + bytes(5) + BLOCK[:10] + bytes(4)
    client.send(Kind.HEADERS, PADDED | PRIORITY | END_STREAM, 1, first)
    client.send(Kind.CONTINUATION, 0, 1, BLOCK[10:12])
    (request,) = client.send(Kind.CONTINUATION, END_HEADERS, 1, BLOCK[12:])
    assert request == Request(1, {":method": "POST", ":path": "/s/M"}, b"")


def test_an_answer_is_headers_data_and_trailers() -> None:
    client = Client()
    client.ask(1)
    client.server.begin(1, HEAD)
    client.server.write(1, b"body")
    client.server.finish(1, TAIL)
    head, body, tail = client.frames()
    assert head[:3] == (Kind.HEADERS, END_HEADERS, 1)
    assert head.fields == {b":status": b"200", b"name": b"head"}
    assert body[:4] == (Kind.DATA, 0, 1, b"body")
    assert tail[:3] == (Kind.HEADERS, END_HEADERS | END_STREAM, 1)
    assert tail.fields == {b"name": b"tail"}
    assert not client.server.busy()
    client.server.write(1, b"more")
    assert client.frames() == []


def test_no_more_is_sent_than_the_client_has_room_for() -> None:
    client = Client(initial_window_size=10)
    client.ask(1)
    client.server.begin(1, HEAD)
    client.server.write(1, bytes(range(40)))
    client.server.finish(1, TAIL)
    assert (client.data(), client.server.unsent(1)) == (bytes(range(10)), 30)
    client.send(Kind.WINDOW_UPDATE, 0, 1, number(5))
    assert client.data() == bytes(range(10, 15))
    client.send(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 20))  # ten more for each stream
    assert client.data() == bytes(range(15, 25))
    client.send(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 0))  # less than is under way
    client.send(Kind.WINDOW_UPDATE, 0, 1, number(20))
    assert client.data() == b""
    client.send(Kind.WINDOW_UPDATE, 0, 1, number(15))
    received = client.frames()
    assert received[0].payload == bytes(range(25, 40))
    assert received[-1].flags & END_STREAM
    assert not client.server.busy()


def test_all_streams_share_the_window_of_the_connection() -> None:
    client = Client(initial_window_size=1 << 20)
    for stream in (1, 3):
        client.ask(stream)
        client.server.begin(stream, HEAD)
        client.server.write(stream, bytes(50_000))
    assert len(client.data()) == 65535
    client.send(Kind.WINDOW_UPDATE, 0, 0, number(100_000))
    received = client.frames()
    assert sum(len(frame.payload) for frame in received) == 100_000 - 65535
    assert max(len(frame.payload) for frame in received) == frames.MAX_FRAME_BYTES


def test_trailers_need_no_room() -> None:
    client = Client(initial_window_size=10)
    client.ask(1)
    client.server.begin(1, HEAD)
    client.server.write(1, bytes(10))
    assert client.data() == bytes(10)
    client.server.finish(1, TAIL)
    (tail,) = client.frames()
    assert (tail.flags & END_STREAM, tail.fields) == (END_STREAM, {b"name": b"tail"})


def test_an_answer_may_have_no_data_or_be_headers_alone() -> None:
    client = Client()
    client.ask(1)
    client.ask(3)
    client.server.begin(1, HEAD)
    client.server.finish(1, TAIL)
    client.server.finish(3, HEAD)
    found = [(frame.kind, frame.flags & END_STREAM, frame.stream_id) for frame in client.frames()]
    assert [one for one in found if one[2] == 1] == [(Kind.HEADERS, 0, 1), (Kind.HEADERS, 1, 1)]
    assert [one for one in found if one[2] == 3] == [(Kind.HEADERS, 1, 3)]
    assert not client.server.busy()


def test_pieces_go_out_as_they_are_written() -> None:
    client = Client()
    client.ask(1)
    client.server.begin(1, HEAD)
    assert client.data() == b""
    for piece in (b"one", b"two", b"three"):
        client.server.write(1, piece)
        assert client.data() == piece
    client.server.write(1, b"four")
    client.server.write(1, b"five")
    client.server.finish(1, TAIL)
    assert client.data() == b"fourfive"
    assert not client.server.busy()


def test_what_is_too_large_is_answered_before_it_is_over() -> None:
    client = Client()
    client.send(Kind.HEADERS, END_HEADERS, 1, BLOCK)
    events: list[object] = []
    for _ in range(10):
        events += client.send(Kind.DATA, 0, 1, bytes(frames.MAX_FRAME_BYTES))
    assert [(e.too_large, e.body) for e in events if isinstance(e, Request)] == [(True, b"")]
    client.server.finish(1, TAIL)
    *_, tail, reset = client.frames()
    assert (tail.kind, tail.fields) == (Kind.HEADERS, {b"name": b"tail"})
    assert (reset.kind, reset.payload) == (Kind.RST_STREAM, number(Code.NO_ERROR))
    assert client.ask(3, b"next")


def test_too_many_headers_reset_their_stream_alone() -> None:
    client = Client()
    many = encode([(b":method", b"POST"), (b":path", b"/s/M"), *[(b"a", b"b")] * 200])
    assert client.send(Kind.HEADERS, END_HEADERS | END_STREAM, 1, many) == []
    assert [(frame.kind, frame.stream_id) for frame in client.frames()] == [(Kind.RST_STREAM, 1)]
    assert client.ask(3) == [Request(3, {":method": "POST", ":path": "/s/M"}, b"")]


def test_the_client_gets_back_the_room_it_has_filled() -> None:
    client = Client()
    received: list[Frame] = []
    for stream in range(1, 801, 2):
        client.send(Kind.HEADERS, END_HEADERS, stream, BLOCK)
        for _ in range(6):
            client.send(Kind.DATA, 0, stream, bytes(frames.MAX_FRAME_BYTES))
        client.send(Kind.DATA, END_STREAM, stream)
        client.server.finish(stream, TAIL)
        received += client.frames()
    returned = [f for f in received if f.kind == Kind.WINDOW_UPDATE and f.stream_id == 0]
    assert sum(struct.unpack(">I", frame.payload)[0] for frame in returned) > 16 << 20


def test_who_resets_or_hangs_up_is_gone() -> None:
    client = Client()
    client.ask(1)
    client.ask(3)
    assert client.send(Kind.RST_STREAM, 0, 1, number(Code.CANCEL)) == [Gone(1)]
    assert client.send(Kind.RST_STREAM, 0, 1, number(Code.CANCEL)) == []
    assert client.server.close() == [Gone(3)]


def test_pings_and_settings_are_acknowledged_and_unknown_frames_ignored() -> None:
    client = Client()
    client.send(99, 0, 0, b"?")
    client.send(Kind.PRIORITY, 0, 1, bytes(5))
    client.send(Kind.PING, ACK, 0, b"12345678")
    client.send(Kind.PING, 0, 0, b"12345678")
    client.send(Kind.SETTINGS, 0, 0, struct.pack(">HI", 0x99, 1))
    assert [frame[:4] for frame in client.frames()] == [
        (Kind.PING, ACK, 0, b"12345678"),
        (Kind.SETTINGS, ACK, 0, b""),
    ]


def test_after_the_farewell_only_calls_under_way_go_on() -> None:
    client = Client()
    client.ask(1)
    client.server.go_away()
    client.server.go_away()
    (farewell,) = client.frames()
    assert (farewell.kind, farewell.payload[:4]) == (Kind.GOAWAY, number(1))
    assert client.ask(3) == []
    assert not client.server.closed
    client.server.finish(1, TAIL)
    assert [(frame.kind, frame.stream_id) for frame in client.frames()] == [(Kind.HEADERS, 1)]
    client.send(Kind.PING, 0, 0, bytes(8))
    assert client.server.closed


def test_who_makes_more_calls_at_once_than_allowed_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2, "MOST_STREAMS", 2)
    client = Client()
    assert [len(client.ask(stream)) for stream in (1, 3)] == [1, 1]
    assert client.ask(5) == [Gone(1), Gone(3)]
    assert client.server.closed


def test_a_fault_of_ours_under_the_library_is_raised_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    monkeypatch.setattr(http2, "Request", None)
    with pytest.raises(TypeError):
        client.ask(1)


@pytest.mark.parametrize(
    ("kind", "flags", "stream", "payload", "code"),
    [
        (Kind.HEADERS, END_HEADERS, 2, BLOCK, Code.PROTOCOL_ERROR),
        (Kind.HEADERS, END_HEADERS, 0, BLOCK, Code.PROTOCOL_ERROR),
        (Kind.HEADERS, END_HEADERS, 1, b"\x80", Code.COMPRESSION_ERROR),
        (Kind.HEADERS, END_HEADERS | PADDED, 1, b"\xff" + bytes(9), Code.PROTOCOL_ERROR),
        (Kind.CONTINUATION, END_HEADERS, 1, BLOCK, Code.PROTOCOL_ERROR),
        (Kind.DATA, 0, 1, b"", Code.PROTOCOL_ERROR),
        (Kind.DATA, 0, 0, b"", Code.PROTOCOL_ERROR),
        (Kind.RST_STREAM, 0, 1, number(0), Code.PROTOCOL_ERROR),
        (Kind.RST_STREAM, 0, 1, b"", Code.FRAME_SIZE_ERROR),
        (Kind.WINDOW_UPDATE, 0, 0, number(0), Code.PROTOCOL_ERROR),
        (Kind.WINDOW_UPDATE, 0, 0, number((1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
        (Kind.SETTINGS, 0, 0, b"x", Code.FRAME_SIZE_ERROR),
        (Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31), Code.FLOW_CONTROL_ERROR),
        (Kind.SETTINGS, 0, 0, struct.pack(">HI", 5, 1), Code.PROTOCOL_ERROR),
        (Kind.PING, 0, 0, b"", Code.FRAME_SIZE_ERROR),
        (Kind.PUSH_PROMISE, 0, 1, bytes(4), Code.PROTOCOL_ERROR),
        (Kind.DATA, 0, 1, bytes(frames.MAX_FRAME_BYTES + 1), Code.FRAME_SIZE_ERROR),
    ],
)
def test_a_client_that_breaks_the_rules_is_told_and_closed(
    kind: int, flags: int, stream: int, payload: bytes, code: Code
) -> None:
    client = Client()
    assert client.send(kind, flags, stream, payload) == []
    (goaway,) = client.frames()
    assert goaway.kind == Kind.GOAWAY
    assert goaway.payload[4:8] == number(code)
    assert client.server.closed


def test_headers_are_not_interrupted() -> None:
    client = Client()
    client.send(Kind.HEADERS, 0, 1, BLOCK)
    client.send(Kind.PING, 0, 0, bytes(8))
    assert client.server.closed


def test_something_else_than_http2_is_closed_at_once() -> None:
    server = Connection(MOST)
    server.receive(b"GET / HTTP/1.1\r\n")
    assert server.closed


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary())))
def test_no_frames_make_it_fail_in_another_way(
    sent: list[tuple[int, int, int, bytes]],
) -> None:
    client = Client()
    for kind, flags, stream, payload in sent:
        for event in client.send(kind, flags, stream, payload):
            if isinstance(event, Request):
                client.server.begin(event.stream_id, HEAD)
                client.server.write(event.stream_id, b"body")
                client.server.finish(event.stream_id, TAIL)
        client.frames()
