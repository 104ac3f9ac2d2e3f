# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets: whatever a client sends, a parser answers with events or a refusal.

Examples are whole sessions, cut and changed at random places, and bytes of no meaning. With
HYPOTHESIS_PROFILE=fuzz each target runs for a hundred times as many.
"""

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pycri.errors import ProtocolViolation
from pycri.model.ids import ContainerId
from pycri.model.streams import ExecRequest
from pycri.streaming.channels import SpdyChannels, WebSocketChannels
from pycri.streaming.ports import SpdyPorts, TunnelledPorts, WebSocketPorts
from pycri.streaming.spdy import SpdyConnection
from pycri.streaming.upgrade import Refusal, UpgradeReader
from pycri.streaming.websocket import WebSocket
from tests.unit.streaming import frames
from tests.unit.streaming.frames import SpdyClient

EXEC = ExecRequest(
    container_id=ContainerId("c" * 64), cmd=("sh",), tty=True, stdin=True, stdout=True
)
LARGEST_ANSWER = 1 << 20


class _Http:
    """The request's reader, as the other targets are."""

    def __init__(self) -> None:
        self._reader = UpgradeReader()
        self._done = False

    def receive(self, data: memoryview) -> None:
        if self._done:
            return
        try:
            if request := self._reader.receive(bytes(data)):
                self._done = True
                request.acceptance(request.choose(("v4.channel.k8s.io",)))
        except ProtocolViolation as violation:
            self._done = True
            assert str(violation)
        except Refusal as refusal:
            self._reader.refuse(refusal)

    def replies(self) -> bytes:
        return b""


TARGETS: dict[str, Callable[[], object]] = {
    "http": _Http,
    "spdy": lambda: SpdyConnection(10),
    "websocket": WebSocket,
    "exec over SPDY": lambda: SpdyChannels(EXEC, 4),
    "exec over WebSocket": lambda: WebSocketChannels(EXEC, 5, text=False),
    "exec over base64": lambda: WebSocketChannels(EXEC, 4, text=True),
    "ports over SPDY": SpdyPorts,
    "ports over a tunnel": TunnelledPorts,
    "ports over WebSocket": lambda: WebSocketPorts((80, 81), text=False),
    "ports over base64": lambda: WebSocketPorts((80,), text=True),
}


def _spdy_session() -> bytes:
    client = SpdyClient()
    sent = b"".join(
        client.open(2 * i + 1, {"streamtype": name, "port": "80", "requestid": str(i // 2)})
        for i, name in enumerate(("error", "stdin", "stdout", "resize", "error", "data"))
    )
    sent += frames.data(3, b"ls\n" * 9) + frames.data(7, b'{"Width":80,"Height":24}\n')
    sent += client.headers(3, {"a": "b"}) + frames.ping(1) + frames.data(11, b"GET /", fin=True)
    return sent + frames.reset(5) + frames.data(3, fin=True) + frames.goaway()


def _websocket_session() -> bytes:
    sent = frames.message(b"\0ls\n", fin=False) + frames.message(b"?", opcode=9)
    sent += frames.message(b"more", opcode=0) + frames.message(b'\4{"Width":80,"Height":24}')
    sent += frames.message(b"0bHMK", opcode=1) + frames.message(_spdy_session())
    return sent + frames.message(b"\xff\0") + frames.message(b"\x03\xe8", opcode=8)


HTTP = (
    b"GET /exec/t HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
)
SESSIONS = (_spdy_session(), _websocket_session(), HTTP)


def _changed(session: bytes, seed: int) -> bytes:
    """Return the session with a few bytes changed, left out, doubled or put in."""
    source, sent = random.Random(seed), bytearray(session)
    for _ in range(source.randrange(5)):
        at = source.randrange(len(sent))
        match source.randrange(4):
            case 0:
                sent[at] = source.randrange(256)
            case 1:
                del sent[at : at + source.randrange(20)]
            case 2:
                sent[at:at] = sent[at : at + source.randrange(40)]
            case 3:
                sent[at:at] = source.randbytes(source.randrange(9))
        sent = sent or bytearray(1)
    return bytes(sent)


HOSTILE = st.one_of(
    st.binary(max_size=500),
    st.builds(_changed, st.sampled_from(SESSIONS), st.integers(0, 1 << 60)),
)


def feed(target: str, sent: bytes, piece: int) -> None:
    """Give the bytes to a new parser in pieces; it must stay sane and small."""
    parser = TARGETS[target]()
    for at in range(0, len(sent), piece):
        parser.receive(memoryview(sent)[at : at + piece])  # type: ignore[attr-defined]
        replies = parser.replies()  # type: ignore[attr-defined]
        assert len(replies) < LARGEST_ANSWER


@pytest.mark.parametrize("target", TARGETS)
@given(sent=HOSTILE, piece=st.sampled_from([1, 7, 64, 1 << 20]))
@example(sent=b"", piece=1)
def test_hostile_bytes_are_answered_or_refused(target: str, sent: bytes, piece: int) -> None:
    feed(target, sent, piece)
