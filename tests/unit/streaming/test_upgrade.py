# SPDX-License-Identifier: Apache-2.0
"""The HTTP request in front of a session."""

import pytest

from pycri.errors import ProtocolViolation
from pycri.streaming.upgrade import Refusal, Transport, UpgradeReader, UpgradeRequest

SPDY = (
    b"POST /exec/t?x=1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v9.channel.k8s.io\r\n"
    b"X-Stream-Protocol-Version: v3.channel.k8s.io, v4.channel.k8s.io\r\n\r\n"
)
WEBSOCKET = (
    b"GET /exec/t HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n\r\n"
)


def parse(sent: bytes) -> UpgradeRequest:
    request = UpgradeReader().receive(sent)
    assert request is not None
    return request


def test_a_request_may_come_byte_by_byte_with_more_behind_it() -> None:
    reader = UpgradeReader()
    answers = [reader.receive(SPDY[i : i + 1]) for i in range(len(SPDY) - 1)]
    assert answers == [None] * len(answers)
    request = reader.receive(SPDY[-1:] + b"\x80\x03")
    assert request is not None
    assert (request.method, request.path) == ("POST", "/exec/t")
    assert reader.behind() == b"\x80\x03"
    answer = reader.switch(request.acceptance("v4.channel.k8s.io"))
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n" in answer


def test_the_first_protocol_of_the_client_that_is_known_is_chosen() -> None:
    known = ("v4.channel.k8s.io", "v3.channel.k8s.io")
    assert parse(SPDY).transport() is Transport.SPDY
    assert parse(SPDY).choose(known) == "v3.channel.k8s.io"
    assert parse(WEBSOCKET).transport() is Transport.WEBSOCKET
    assert parse(WEBSOCKET).choose(known) == "v4.channel.k8s.io"


def test_the_websocket_handshake_is_that_of_the_specification() -> None:
    headers = dict(parse(WEBSOCKET).acceptance("v5.channel.k8s.io"))
    assert headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert headers["Sec-WebSocket-Protocol"] == "v5.channel.k8s.io"
    assert "Sec-WebSocket-Protocol" not in dict(parse(WEBSOCKET).acceptance(""))


def test_a_websocket_without_protocol_is_the_nameless_one() -> None:
    lines = WEBSOCKET.split(b"\r\n")
    bare = b"\r\n".join(line for line in lines if b"-Protocol" not in line)
    assert parse(bare).choose(("v4.channel.k8s.io", "")) == ""
    with pytest.raises(Refusal, match="negotiate") as refused:
        parse(bare).choose(("v4.channel.k8s.io",))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Upgrade: SPDY/3.1", b"Upgrade: h2c", 400),
        (b"Connection: Upgrade", b"Connection: close", 400),
        (b"X-Stream-Protocol-Version", b"X-Other", 400),
        (b".channel.k8s.io", b".other", 403),
    ],
)
def test_what_cannot_be_agreed_on_is_refused(old: bytes, new: bytes, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        parse(SPDY.replace(old, new)).choose(("v4.channel.k8s.io", "v3.channel.k8s.io"))
    assert refused.value.status == status
    if status == 403:
        accepted = ("X-Accepted-Stream-Protocol-Versions", "v4.channel.k8s.io")
        assert accepted in refused.value.headers
    answer = UpgradeReader().refuse(refused.value)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close\r\n" in answer


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"GET", b"POST", 405),
        (b"Version: 13", b"Version: 8", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"\xff\xfe", 400),
        (b"Sec-WebSocket-Key", b"X-Key", 400),
    ],
)
def test_a_websocket_handshake_that_is_none_is_refused(old: bytes, new: bytes, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        parse(WEBSOCKET.replace(old, new)).acceptance("")
    assert refused.value.status == status


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_no_request_is_a_violation(sent: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        UpgradeReader().receive(sent)
