# SPDX-License-Identifier: Apache-2.0
"""The sub-protocols of exec and attach."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.model.ids import ContainerId
from pycri.model.streams import ExecRequest
from pycri.streaming.channels import (
    Channel,
    Event,
    Ready,
    Refused,
    Resized,
    SpdyChannels,
    Stdin,
    StdinEnded,
    WebSocketChannels,
)
from pycri.streaming.departures import Broken, Left
from pycri.streaming.spdy import ResetStatus
from pycri.streaming.status import Exited, Failure
from tests.unit.streaming import frames
from tests.unit.streaming.frames import SpdyClient


def request(*streams: str, tty: bool = False) -> ExecRequest:
    wanted = dict.fromkeys(streams, True)
    return ExecRequest(container_id=ContainerId("c" * 64), cmd=("sh",), tty=tty, **wanted)


def receive(channels: SpdyChannels | WebSocketChannels, sent: bytes = b"") -> list[Event]:
    """Return the events, payloads copied."""
    return [
        Stdin(bytes(event.payload)) if isinstance(event, Stdin) else event
        for event in channels.receive(memoryview(sent))
    ]


class TestSpdy:
    def open(
        self, version: int, *streams: str, tty: bool = False
    ) -> tuple[SpdyChannels, SpdyClient, dict[str, int]]:
        """Return channels with all streams open, by name."""
        channels, client = SpdyChannels(request(*streams, tty=tty), version), SpdyClient()
        names = ["error", *streams, *(["resize"] if tty and version >= 3 else [])]
        numbers = {name: 2 * i + 1 for i, name in enumerate(names)}
        events: list[Event] = []
        for name, number in numbers.items():
            assert events == [], "ready before the last stream"
            events = receive(channels, client.open(number, {"streamtype": name}))
        assert events == [Ready()]
        replies = client.read(channels.replies())
        assert [(kind, n) for kind, n, _ in replies if kind == "reply"] == [
            ("reply", n) for n in numbers.values()
        ]
        assert [(kind, n) for kind, n, _ in replies if kind == "end"] == (
            [("end", numbers["stdin"])] if version == 1 and "stdin" in streams else []
        )
        return channels, client, numbers

    @pytest.mark.parametrize("version", [1, 2, 3, 4])
    def test_the_process_starts_when_every_stream_is_there(self, version: int) -> None:
        self.open(version, "stdin", "stdout", "stderr")
        self.open(version, "stdout")
        self.open(version, "stdin", "stdout", tty=True)

    def test_input_its_end_and_sizes_are_told(self) -> None:
        channels, _, streams = self.open(4, "stdin", "stdout", tty=True)
        stdin, resize = streams["stdin"], streams["resize"]
        sent = frames.data(stdin, b"ls\n")
        sent += frames.data(resize, b'{"Width":80,"Hei') + frames.data(resize, b'ght":24}\n{"wi')
        sent += frames.data(resize, b'dth":1,"height":2}\n') + frames.data(stdin, fin=True)
        assert receive(channels, sent) == [
            Stdin(b"ls\n"),
            Resized(80, 24),
            Resized(1, 2),
            StdinEnded(),
        ]

    def test_input_before_the_last_stream_is_kept_for_the_process(self) -> None:
        channels, client = SpdyChannels(request("stdin", "stdout"), 4), SpdyClient()
        sent = client.open(1, {"streamtype": "stdin"}) + frames.data(1, b"early", fin=True)
        sent += client.open(3, {"streamtype": "stdout"}) + frames.reset(3)
        assert receive(channels, sent) == []
        assert receive(channels, client.open(5, {"streamtype": "error"})) == [
            Ready(),
            Stdin(b"early"),
            StdinEnded(),
            Refused(Channel.STDOUT),
        ]

    def test_input_without_end_before_the_last_stream_is_a_violation(self) -> None:
        channels, client = SpdyChannels(request("stdin", "stdout"), 4), SpdyClient()
        receive(channels, client.open(1, {"streamtype": "stdin"}))
        (event,) = receive(channels, frames.data(1, b"x" * 70_000))
        assert isinstance(event, Broken)

    def test_a_size_that_no_terminal_has_is_passed_over(self) -> None:
        channels, _, streams = self.open(4, "stdout", tty=True)
        for size in (b'{"Width":0,"Height":0}', b'{"Width":65536,"Height":9}'):
            assert receive(channels, frames.data(streams["resize"], size)) == []

    @pytest.mark.parametrize(
        "text",
        [b"{}", b"[1]}", b'{"Width":"1","Height":2}', b"}", b"{" + b" " * 300, b"x" * 300],
    )
    def test_a_size_that_is_none_is_a_violation(self, text: bytes) -> None:
        channels, _, streams = self.open(4, "stdout", tty=True)
        (event,) = receive(channels, frames.data(streams["resize"], text))
        assert isinstance(event, Broken)
        assert "terminal's size" in event.reason

    def test_a_stream_that_was_not_asked_for_is_reset(self) -> None:
        channels, client = SpdyChannels(request("stdout"), 4), SpdyClient()
        names = ("stdin", "stderr", "resize", "data", "")
        for number, name in zip(range(1, 99, 2), names, strict=False):
            assert receive(channels, client.open(number, {"streamtype": name})) == []
            assert client.read(channels.replies()) == [
                ("reset", number, ResetStatus.PROTOCOL_ERROR)
            ]
        receive(channels, client.open(91, {}))
        assert client.read(channels.replies()) == [("reset", 91, ResetStatus.PROTOCOL_ERROR)]

    def test_a_second_stream_of_a_kind_is_reset(self) -> None:
        channels, client = SpdyChannels(request("stdin", "stdout"), 4), SpdyClient()
        receive(channels, client.open(1, {"streamtype": "stdin"}))
        receive(channels, client.open(3, {"streamtype": "stdin"}))
        assert [(kind, n) for kind, n, _ in client.read(channels.replies())] == [
            ("reply", 1),
            ("reset", 3),
        ]

    def test_resets_of_the_client_end_input_or_refuse_output(self) -> None:
        channels, _, streams = self.open(4, "stdin", "stdout")
        sent = frames.reset(streams["stdin"]) + frames.reset(streams["stdout"]) + frames.goaway()
        assert receive(channels, sent) == [StdinEnded(), Refused(Channel.STDOUT), Left()]

    def test_the_end_closes_every_stream_and_tells_the_status(self) -> None:
        channels, client, streams = self.open(4, "stdin", "stdout", "stderr")
        assert client.read(channels.end(Channel.STDOUT)) == [("end", streams["stdout"], b"")]
        answer = client.read(channels.finish(Exited(3)))
        status = next(payload for kind, n, payload in answer if n == streams["error"])
        assert isinstance(status, bytes)
        assert json.loads(status)["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
        assert [(kind, n) for kind, n, _ in answer if kind == "end"] == [
            ("end", streams["stdin"]),
            ("end", streams["stderr"]),
            ("end", streams["error"]),
        ]
        assert answer[-1] == ("goaway", 7, 0)

    @pytest.mark.parametrize(("version", "text"), [(1, b"no such file"), (3, b"no such file")])
    def test_old_versions_get_the_reason_as_text(self, version: int, text: bytes) -> None:
        channels, client, streams = self.open(version, "stdout")
        answer = client.read(channels.finish(Failure("no such file")))
        assert ("data", streams["error"], text) in answer
        assert not [
            payload
            for kind, n, payload in client.read(self.open(version, "stdout")[0].finish(Exited(0)))
            if n == streams["error"] and payload
        ]

    def test_the_end_can_be_told_before_all_streams_are_there(self) -> None:
        channels, client = SpdyChannels(request("stdin"), 4), SpdyClient()
        receive(channels, client.open(1, {"streamtype": "error"}))
        client.read(channels.replies())
        kind, number, status = client.read(channels.finish(Failure("timed out")))[0]
        assert (kind, number) == ("data", 1)
        assert isinstance(status, bytes)
        assert b"timed out" in status
        assert SpdyChannels(request("stdin"), 4).finish(Failure("x"))


class TestWebSocket:
    def channels(
        self, *streams: str, version: int = 4, text: bool = False, tty: bool = False
    ) -> WebSocketChannels:
        channels = WebSocketChannels(request(*streams, tty=tty), version, text=text)
        assert receive(channels) == [Ready()]
        return channels

    def test_the_greeting_is_empty_and_on_the_lowest_output(self) -> None:
        for streams, lowest in [
            (("stdin", "stdout", "stderr"), b"\1"),
            (("stderr",), b"\2"),
            (("stdin",), b"\3"),
        ]:
            replies = self.channels(*streams).replies()
            assert frames.read_messages(replies) == [(2, lowest)]
        text = self.channels("stdout", text=True).replies()
        assert frames.read_messages(text) == [(1, b"1")]

    def test_messages_carry_input_and_sizes(self) -> None:
        channels = self.channels("stdin", "stdout", tty=True)
        sent = frames.message(b"\0ls\n") + frames.message(b'\4{"Width":80,"Height":24}')
        sent += frames.message(b"\0") + frames.message(b"\x07?") + frames.message(b"")
        assert receive(channels, sent) == [Stdin(b"ls\n"), Resized(80, 24)]

    def test_input_nobody_asked_for_is_dropped(self) -> None:
        assert receive(self.channels("stdout"), frames.message(b"\0ls\n")) == []

    def test_only_version_5_knows_the_end_of_input(self) -> None:
        sent = frames.message(b"\xff\0")
        assert receive(self.channels("stdin", version=5), sent) == [StdinEnded()]
        assert receive(self.channels("stdin", version=4), sent) == []
        assert receive(self.channels("stdin", version=5), frames.message(b"\xff\1")) == []

    def test_the_number_may_come_before_the_rest_of_its_message(self) -> None:
        channels = self.channels("stdin")
        sent = frames.message(b"", fin=False) + frames.message(b"\0", opcode=0, fin=False)
        assert receive(channels, sent) == []
        assert receive(channels, frames.message(b"abc", opcode=0)) == [Stdin(b"abc")]

    def test_output_is_a_message_each_binary_or_base64(self) -> None:
        channels = self.channels("stdout")
        head = channels.prefix(Channel.STDOUT, 3)
        assert head is not None
        assert frames.read_messages(head + b"abc") == [(2, b"\1abc")]
        encoded = self.channels("stdout", text=True)
        assert encoded.prefix(Channel.STDOUT, 3) is None
        answer = encoded.encode(Channel.STDERR, memoryview(b"\xff\0a"))
        assert frames.read_messages(answer) == [(1, b"2" + base64.b64encode(b"\xff\0a"))]

    def test_input_in_base64_is_decoded_however_it_is_cut(self) -> None:
        payload = bytes(range(256))
        sent = frames.message(b"0" + base64.b64encode(payload), opcode=1)
        channels = self.channels("stdin", text=True)
        events = [e for i in range(len(sent)) for e in receive(channels, sent[i : i + 1])]
        assert b"".join(bytes(e.payload) for e in events if isinstance(e, Stdin)) == payload

    def test_input_that_is_not_base64_is_a_violation(self) -> None:
        sent = frames.message(b"0YWI=", opcode=1) + frames.message(b"0!!!!", opcode=1)
        events = receive(self.channels("stdin", text=True), sent)
        assert [type(event) for event in events] == [Stdin, Broken]

    def test_the_end_is_the_status_and_an_orderly_close(self) -> None:
        answer = frames.read_messages(self.channels("stdout", version=5).finish(Exited(0)))
        assert answer[0][1][:1] == b"\3"
        assert json.loads(answer[0][1][1:]) == {"metadata": {}, "status": "Success"}
        assert answer[1] == (8, b"\x03\xe8")
        old = frames.read_messages(self.channels("stdout", version=1).finish(Exited(0)))
        assert old == [(8, b"\x03\xe8")]

    def test_a_close_of_the_client_is_told_and_answered(self) -> None:
        channels = self.channels("stdin")
        channels.replies()
        assert receive(channels, frames.message(b"\x03\xe8", opcode=8)) == [Left()]
        assert frames.read_messages(channels.replies()) == [(8, b"\x03\xe8")]


@given(payloads=st.lists(st.binary(min_size=1, max_size=200), max_size=8), text=st.booleans())
def test_input_comes_out_as_it_was_put_in(payloads: list[bytes], text: bool) -> None:
    channels = WebSocketChannels(request("stdin"), 5, text=text)
    receive(channels)
    sent = b"".join(
        frames.message(b"0" + base64.b64encode(p), opcode=1) if text else frames.message(b"\0" + p)
        for p in payloads
    )
    got = [bytes(e.payload) for e in receive(channels, sent) if isinstance(e, Stdin)]
    assert b"".join(got) == b"".join(payloads)
