# SPDX-License-Identifier: Apache-2.0
"""The sub-protocols of port-forward."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.streaming.departures import Broken, Left
from pycri.streaming.ports import (
    Data,
    Dropped,
    Event,
    Half,
    InputEnded,
    Opened,
    PortChannels,
    SpdyPorts,
    TunnelledPorts,
    WebSocketPorts,
)
from pycri.streaming.spdy import ResetStatus
from tests.unit.streaming import frames
from tests.unit.streaming.frames import SpdyClient


def receive(channels: PortChannels, sent: bytes = b"") -> list[Event]:
    """Return the events, payloads copied."""
    return [
        Data(event.connection, bytes(event.payload)) if isinstance(event, Data) else event
        for event in channels.receive(memoryview(sent))
    ]


def pair(client: SpdyClient, first: int, port: int = 80) -> bytes:
    headers = {"port": str(port), "requestID": str(first)}
    return client.open(first, headers | {"streamType": "error"}, flags=0) + client.open(
        first + 2, headers | {"streamType": "data"}
    )


class TestSpdy:
    def test_a_connection_is_a_pair_of_streams(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        assert receive(ports, pair(client, 1)) == [Half(1), Opened(3, 80)]
        assert [frame[:2] for frame in client.read(ports.replies())] == [("reply", 1), ("reply", 3)]
        sent = frames.data(1, fin=True) + frames.data(3, b"GET") + frames.data(3, fin=True)
        assert receive(ports, sent) == [Data(3, b"GET"), InputEnded(3)]
        head = ports.prefix(3, 2)
        assert head is not None
        assert client.read(head + b"OK") == [("data", 3, b"OK")]
        assert ports.takes_input(3)
        assert client.read(ports.end(3)) == [("end", 1, b""), ("end", 3, b"")]
        assert not ports.takes_input(3)

    def test_input_may_come_after_the_pod_has_ended_its_way(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        receive(ports, pair(client, 1))
        ports.end(3)
        assert ports.takes_input(3)
        sent = frames.data(3, b"more") + frames.data(3, fin=True)
        assert receive(ports, sent) == [Data(3, b"more"), InputEnded(3)]
        assert not ports.takes_input(3)

    def test_the_pairs_may_come_in_any_order(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        opened = []
        for number, (kind, request) in enumerate(
            [("data", "b"), ("error", "a"), ("data", "a"), ("error", "b")]
        ):
            headers = {"streamtype": kind, "port": "8080", "requestid": request}
            opened += receive(ports, client.open(2 * number + 1, headers))
        assert opened == [Half(1), Half(3), Opened(5, 8080), Opened(1, 8080)]

    def test_old_clients_pair_by_number(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        sent = client.open(1, {"streamtype": "error", "port": "80"})
        sent += client.open(3, {"streamtype": "data", "port": "80"})
        assert receive(ports, sent)[-1] == Opened(3, 80)

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"streamtype": "data"},
            {"streamtype": "data", "port": "0"},
            {"streamtype": "data", "port": "65536"},
            {"streamtype": "data", "port": "-1"},
            {"streamtype": "data", "port": "8" * 5000},
            {"streamtype": "data", "port": "²"},
            {"streamtype": "stdin", "port": "80"},
            {"port": "80"},
        ],
    )
    def test_a_stream_without_its_headers_is_reset_alone(self, headers: dict[str, str]) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        assert receive(ports, client.open(1, headers)) == []
        assert client.read(ports.replies()) == [("reset", 1, ResetStatus.PROTOCOL_ERROR)]
        assert receive(ports, pair(client, 3))[-1] == Opened(5, 80)

    def test_a_failure_is_told_on_the_streams_of_its_connection(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        receive(ports, pair(client, 1) + pair(client, 5))
        client.read(ports.replies())
        assert client.read(ports.fail(3, "refused")) == [
            ("data", 1, b"refused"),
            ("end", 1, b""),
            ("end", 3, b""),
        ]
        assert receive(ports, frames.data(7, b"on")) == [Data(7, b"on")]

    def test_a_connection_that_breaks_is_reset(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        receive(ports, pair(client, 1))
        client.read(ports.replies())
        assert client.read(ports.reset(3)) == [("end", 1, b""), ("reset", 3, ResetStatus.CANCEL)]

    def test_a_client_gives_up_a_connection_or_the_session(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        receive(ports, pair(client, 1))
        assert receive(ports, frames.reset(3) + frames.goaway()) == [Dropped(3), Left()]
        assert ports.end(3) == b""

    def test_half_a_pair_is_given_up(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        headers = {"streamtype": "error", "port": "80", "requestid": "1"}
        assert receive(ports, client.open(1, headers)) == [Half(1)]
        client.read(ports.replies())
        answer = client.read(ports.give_up(1))
        assert [kind for kind, _, _ in answer] == ["data", "end", "reset"]
        assert ports.give_up(1) == b""
        receive(ports, pair(client, 3))
        assert ports.give_up(3) == b""

    def test_data_for_half_a_pair_is_a_violation(self) -> None:
        ports, client = SpdyPorts(), SpdyClient()
        receive(ports, client.open(1, {"streamtype": "data", "port": "80", "requestid": "1"}))
        expected = [Broken("data for a connection without error stream")]
        assert receive(ports, frames.data(1, b"x")) == expected


def unwrapped(answer: bytes) -> bytes:
    return b"".join(payload for _, payload in frames.read_messages(answer))


def test_the_tunnel_is_spdy_in_messages_cut_anywhere() -> None:
    ports, client = TunnelledPorts(), SpdyClient()
    assert receive(ports) == []
    sent = pair(client, 1) + frames.data(3, b"GET")
    cut = b"".join(frames.message(sent[i : i + 7]) for i in range(0, len(sent), 7))
    events = receive(ports, cut)
    assert b"".join(bytes(e.payload) for e in events if isinstance(e, Data)) == b"GET"
    assert [e for e in events if not isinstance(e, Data)] == [Half(1), Opened(3, 80)]
    replies = client.read(unwrapped(ports.replies()))
    assert [frame[:2] for frame in replies] == [("reply", 1), ("reply", 3)]
    head = ports.prefix(3, 100_000)
    assert head is not None
    assert client.read(unwrapped(head + b"x" * 100_000)) == [("data", 3, b"x" * 100_000)]
    ended = client.read(unwrapped(ports.end(3)))
    assert [frame[:2] for frame in ended] == [("end", 1), ("end", 3)]
    assert receive(ports, frames.message(b"\x03\xe8", opcode=8)) == [Left()]
    assert [opcode for opcode, _ in frames.read_messages(ports.replies())] == [8]


class TestWebSocket:
    def test_each_port_has_two_channels_that_begin_with_its_number(self) -> None:
        ports = WebSocketPorts((80, 8080), text=False)
        assert receive(ports) == [Opened(0, 80), Opened(1, 8080)]
        assert frames.read_messages(ports.replies()) == [
            (2, b"\0\x50\0"),
            (2, b"\1\x50\0"),
            (2, b"\2\x90\x1f"),
            (2, b"\3\x90\x1f"),
        ]
        sent = frames.message(b"\2GET") + frames.message(b"\1?") + frames.message(b"\7?")
        assert receive(ports, sent) == [Data(1, b"GET")]
        head = ports.prefix(1, 2)
        assert head is not None
        assert frames.read_messages(head + b"OK") == [(2, b"\2OK")]

    def test_it_closes_with_the_last_connection(self) -> None:
        ports = WebSocketPorts((80, 81), text=False)
        receive(ports)
        assert ports.end(0) == b""
        assert not ports.takes_input(0)
        assert receive(ports, frames.message(b"\0late")) == []
        answer = frames.read_messages(ports.fail(1, "refused"))
        assert answer == [(2, b"\3refused"), (8, b"\x03\xe8")]

    def test_the_base64_kind_has_text_messages(self) -> None:
        ports = WebSocketPorts((80,), text=True)
        receive(ports)
        assert frames.read_messages(ports.replies())[0] == (1, b"0" + base64.b64encode(b"\x50\0"))
        sent = frames.message(b"0" + base64.b64encode(b"GET"), opcode=1)
        assert receive(ports, sent) == [Data(0, b"GET")]
        assert ports.prefix(0, 2) is None
        answer = frames.read_messages(ports.encode(0, memoryview(b"OK")))
        assert answer == [(1, b"0" + base64.b64encode(b"OK"))]


@given(
    sizes=st.lists(st.integers(0, 5000), max_size=6),
    cuts=st.lists(st.integers(1, 3000), max_size=30),
)
def test_how_the_tunnel_is_cut_does_not_matter(sizes: list[int], cuts: list[int]) -> None:
    client = SpdyClient()
    sent = pair(client, 1) + b"".join(frames.data(3, bytes([n % 256]) * n) for n in sizes)
    ports, got = TunnelledPorts(), b""
    for size in [*cuts, len(sent)]:
        for event in receive(ports, frames.message(sent[:size])):
            got += bytes(event.payload) if isinstance(event, Data) else b""
        sent = sent[size:]
    assert got == b"".join(bytes([n % 256]) * n for n in sizes)
