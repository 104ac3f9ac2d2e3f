# SPDX-License-Identifier: Apache-2.0
"""SPDY/3.1 without I/O."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.streaming import spdy
from pycri.streaming.spdy import Broken, Data, Ended, GoneAway, Opened, Reset, SpdyConnection
from pycri.streaming.spdy_dictionary import DICTIONARY
from tests.unit.streaming import frames
from tests.unit.streaming.frames import SpdyClient


def receive(connection: SpdyConnection, *parts: bytes) -> list[spdy.Event]:
    """Return the events, data copied, and pieces of the same stream joined."""
    events: list[spdy.Event] = []
    for part in parts:
        for event in connection.receive(memoryview(part)):
            last = events[-1] if events else None
            if not isinstance(event, Data):
                events.append(event)
            elif isinstance(last, Data) and last.stream == event.stream:
                joined = bytes(last.payload) + bytes(event.payload)
                events[-1] = Data(event.stream, memoryview(joined))
            else:
                events.append(Data(event.stream, memoryview(bytes(event.payload))))
    return events


def test_the_dictionary_is_that_of_the_specification() -> None:
    """Its Adler-32 is what every zlib stream made with it names (draft 3: e3 c6 a7 c2)."""
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


def test_a_stream_is_opened_answered_used_and_closed() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    assert receive(server, client.open(1, {"StreamType": "stdin", "port": "80"})) == [
        Opened(1, {"streamtype": "stdin", "port": "80"})
    ]
    server.accept(1)
    assert client.read(server.replies()) == [("reply", 1, b"")]
    assert receive(server, frames.data(1, b"abc"), frames.data(1, b"", fin=True)) == [
        Data(1, memoryview(b"abc")),
        Ended(1),
    ]
    assert server.is_open(1)
    assert client.read(server.end(1)) == [("end", 1, b"")]
    assert not server.knows(1)
    assert server.end(1) == b""


def test_blocks_of_many_streams_are_one_zlib_stream() -> None:
    client, server = SpdyClient(), SpdyConnection(1000)
    for number in range(1, 400, 2):
        headers = {"streamtype": "data", "requestid": str(number)}
        assert receive(server, client.open(number, headers)) == [Opened(number, headers)]
        server.accept(number)
        assert client.read(server.replies()) == [("reply", number, b"")]


def test_data_and_fin_in_one_frame_are_data_then_the_end() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    events = receive(server, client.open(1, {}), frames.data(1, b"last", fin=True))
    assert events[1:] == [Data(1, memoryview(b"last")), Ended(1)]


def test_a_stream_may_be_opened_and_ended_at_once() -> None:
    server = SpdyConnection(10)
    assert receive(server, SpdyClient().open(1, {}, flags=1)) == [Opened(1, {}), Ended(1)]


def test_headers_that_come_later_keep_the_zlib_stream_going_and_may_end_a_stream() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    sent = client.open(1, {"a": "b"}) + client.headers(1, {"c": "d"}, flags=1)
    sent += client.headers(1, {}, flags=1) + client.open(3, {"e": "f"})
    assert receive(server, sent) == [Opened(1, {"a": "b"}), Ended(1), Opened(3, {"e": "f"})]


def test_reset_ends_a_stream_both_ways_once() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    receive(server, client.open(1, {}))
    assert receive(server, frames.reset(1), frames.reset(1)) == [Reset(1)]
    assert not server.is_open(1)


def test_what_comes_on_a_stream_after_its_end_is_dropped() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    receive(server, client.open(1, {}), frames.data(1, b"", fin=True))
    assert receive(server, frames.data(1, b"x" * 100), frames.data(99, b"y")) == []
    assert receive(server, client.open(3, {})) == [Opened(3, {})]


def test_a_ping_of_the_client_is_sent_back_and_one_of_ours_is_not() -> None:
    server = SpdyConnection(10)
    assert receive(server, frames.ping(7), frames.ping(8)) == []
    assert server.replies() == frames.ping(7)
    assert server.replies() == b""


def test_settings_windows_and_unknown_frames_are_passed_over() -> None:
    server = SpdyConnection(10)
    passed = [frames.control(kind, b"12345678") for kind in (4, 5, 9, 10, 99)]
    assert receive(server, *passed, frames.goaway()) == [GoneAway()]


def test_too_many_streams_are_refused_each_by_itself() -> None:
    client, server = SpdyClient(), SpdyConnection(2)
    events = [e for n in (1, 3, 5) for e in receive(server, client.open(n, {"n": str(n)}))]
    assert events == [Opened(1, {"n": "1"}), Opened(3, {"n": "3"})]
    assert client.read(server.replies()) == [("reset", 5, spdy.ResetStatus.REFUSED_STREAM)]
    receive(server, frames.reset(1))
    assert receive(server, client.open(7, {"n": "7"})) == [Opened(7, {"n": "7"})]


def test_a_sealed_connection_refuses_streams_and_goes_on_with_those_it_has() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    receive(server, client.open(1, {}))
    server.seal()
    assert receive(server, client.open(3, {"a": "b"}), client.headers(1, {"c": "d"})) == []
    assert client.read(server.replies()) == [("reset", 3, spdy.ResetStatus.REFUSED_STREAM)]
    assert receive(server, frames.data(1, b"x", fin=True)) == [Data(1, memoryview(b"x")), Ended(1)]
    assert receive(server, client.open(3, {})) == [Broken("a stream opened as number 3")]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (struct.pack("!II", 0x80020001, 0), "version 2"),
        (struct.pack("!II", 0x80030001, spdy.LARGEST_CONTROL_BYTES + 1), "control frame of"),
        (SpdyClient().open(2, {}), "number 2"),
        (SpdyClient().open(0, {}), "number 0"),
        (frames.control(1, b"\0\0\0\1"), "number 1"),
        (frames.control(1, struct.pack("!IIH", 1, 0, 0) + b"no zlib"), "not zlib"),
        (frames.control(1, struct.pack("!IIH", 1, 0, 0)), "too short"),
        (frames.control(2, b"\0\0\0\1"), "nobody has opened"),
        (frames.control(3, b"\0"), "too short"),
        (frames.control(6, b""), "too short"),
        (frames.control(8, b"\0\0\0\1"), "too short"),
        (SpdyClient().open(1, {"a": "b" * spdy.LARGEST_BLOCK_BYTES}), "more than"),
        (SpdyClient().open(1, {str(n): "" for n in range(65)}), "65 headers"),
    ],
)
def test_what_breaks_the_rules_is_named(sent: bytes, words: str) -> None:
    server = SpdyConnection(10)
    event = receive(server, sent)[-1]
    assert isinstance(event, Broken)
    assert words in event.reason
    assert receive(server, frames.ping(1), SpdyClient().open(1, {})) == []


def test_a_stream_number_is_not_used_twice() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    receive(server, client.open(5, {}))
    assert receive(server, client.open(3, {})) == [Broken("a stream opened as number 3")]


def test_what_came_before_the_rules_were_broken_counts() -> None:
    client, server = SpdyClient(), SpdyConnection(10)
    sent = client.open(1, {}) + frames.data(1, b"x") + frames.control(2, b"\0\0\0\1")
    assert [type(event) for event in receive(server, sent)] == [Opened, Data, Broken]


def test_a_length_inside_a_block_that_lies_is_found() -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    block = deflate.compress(struct.pack("!II", 1, 1 << 31)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    sent = frames.control(1, struct.pack("!IIH", 1, 0, 0) + block)
    expected = [Broken("a header that is longer than its block")]
    assert receive(SpdyConnection(10), sent) == expected


SESSION = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.sampled_from([1, 3, 9]), st.binary(max_size=300)),
        st.tuples(st.just("fin"), st.sampled_from([1, 3]), st.binary(max_size=3)),
        st.tuples(st.just("reset"), st.sampled_from([1, 3]), st.just(b"")),
        st.tuples(st.just("ping"), st.integers(0, 9), st.just(b"")),
        st.tuples(st.just("headers"), st.sampled_from([1, 3]), st.binary(max_size=9)),
    ),
    max_size=20,
)


@given(session=SESSION, cuts=st.lists(st.integers(1, 40), max_size=200))
def test_how_the_bytes_are_cut_does_not_matter(
    session: list[tuple[str, int, bytes]], cuts: list[int]
) -> None:
    client = SpdyClient()
    sent = client.open(1, {"a": "1"}) + client.open(3, {"b": "2"})
    for kind, number, payload in session:
        match kind:
            case "data" | "fin":
                sent += frames.data(number, payload, fin=kind == "fin")
            case "reset":
                sent += frames.reset(number)
            case "ping":
                sent += frames.ping(number)
            case "headers":
                sent += client.headers(number, {"x": payload.hex()})
    whole, cut = SpdyConnection(10), SpdyConnection(10)
    parts = []
    rest = sent
    for size in cuts:
        parts.append(rest[:size])
        rest = rest[size:]
    assert receive(cut, *parts, rest) == receive(whole, sent)
    assert cut.replies() == whole.replies()
