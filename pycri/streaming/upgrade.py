# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 request that asks for an upgrade, and the answers to it, without I/O.

    client                                                  server
    POST /exec/TOKEN HTTP/1.1                               HTTP/1.1 101 Switching Protocols
    Connection: Upgrade                                     Connection: Upgrade
    Upgrade: SPDY/3.1                                       Upgrade: SPDY/3.1
    X-Stream-Protocol-Version: v4.channel.k8s.io            X-Stream-Protocol-Version: v4.chan...
    X-Stream-Protocol-Version: v3.channel.k8s.io

    GET /exec/TOKEN HTTP/1.1                                HTTP/1.1 101 Switching Protocols
    Connection: Upgrade                                     Connection: Upgrade
    Upgrade: websocket                                      Upgrade: websocket
    Sec-WebSocket-Version: 13                               Sec-WebSocket-Accept: s3pPLM...
    Sec-WebSocket-Key: dGhlIHN...                           Sec-WebSocket-Protocol: v5.chan...
    Sec-WebSocket-Protocol: v5.channel.k8s.io

The only user of h11. Source: RFC 9110 section 7.8, RFC 6455 section 4.2.
"""

import base64
import binascii
import enum
import hashlib
from collections.abc import Sequence
from http import HTTPStatus

import h11  # noqa: TID251  this is its one home
import msgspec

from pycri.errors import ProtocolViolation

PROTOCOL_HEADER = "X-Stream-Protocol-Version"
ACCEPTED_HEADER = "X-Accepted-Stream-Protocol-Versions"

_LARGEST_HEAD_BYTES = 32 << 10
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SERVER = [("Server", "pycri")]

Headers = Sequence[tuple[str, str]]


class Transport(enum.Enum):
    """What the client wants to speak from now on; the values are the Upgrade header's."""

    SPDY = "SPDY/3.1"
    WEBSOCKET = "websocket"


class Refusal(Exception):
    """The request is answered with an HTTP error. status: 400 ... 599."""

    def __init__(self, status: int, reason: str, headers: Headers = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class UpgradeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a request. path: without the query. headers: names in lower case."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> tuple[str, ...]:
        """Return the values of a header that is a list, from all its lines."""
        lines = [value for key, value in self.headers if key == name]
        return tuple(v for line in lines for part in line.split(",") if (v := part.strip()))

    def transport(self) -> Transport:
        """Return what is asked for. Raises Refusal."""
        asked = {value.lower() for value in self.values("upgrade")}
        if "upgrade" in {value.lower() for value in self.values("connection")}:
            for transport in Transport:
                if transport.value.lower() in asked:
                    return transport
        raise Refusal(400, "unable to upgrade: neither SPDY/3.1 nor websocket is asked for")

    def choose(self, known: Sequence[str]) -> str:
        """Return the first sub-protocol of the client's that is known too. Raises Refusal.

        A WebSocket client that names none means "".
        """
        if self.transport() is Transport.SPDY:
            offered = self.values(PROTOCOL_HEADER.lower())
            if not offered:
                raise Refusal(400, f"unable to upgrade: {PROTOCOL_HEADER} is required")
        else:
            offered = self.values("sec-websocket-protocol") or ("",)
        for protocol in offered:
            if protocol in known:
                return protocol
        reason = f"the client speaks {', '.join(offered)!r}, the server {', '.join(known)!r}"
        accepted = [(ACCEPTED_HEADER, protocol) for protocol in known if protocol]
        raise Refusal(403, f"unable to negotiate a protocol: {reason}", accepted)

    def acceptance(self, protocol: str) -> list[tuple[str, str]]:
        """Return the headers of the 101. Raises Refusal for a WebSocket handshake without key."""
        transport = self.transport()
        headers = [("Connection", "Upgrade"), ("Upgrade", transport.value)]
        if transport is Transport.SPDY:
            return [*headers, (PROTOCOL_HEADER, protocol)]
        headers.append(("Sec-WebSocket-Accept", self._websocket_accept()))
        return [*headers, ("Sec-WebSocket-Protocol", protocol)] if protocol else headers

    def _websocket_accept(self) -> str:
        if self.method != "GET":
            raise Refusal(405, "a WebSocket is opened with GET", [("Allow", "GET")])
        if self.values("sec-websocket-version") != ("13",):
            wanted = [("Sec-WebSocket-Version", "13")]
            raise Refusal(400, "the WebSocket version is not 13", wanted)
        key = "".join(self.values("sec-websocket-key"))
        try:
            decoded = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        if len(decoded) != 16:
            raise Refusal(400, "Sec-WebSocket-Key is not 16 bytes in base64")
        digest = hashlib.sha1(key.encode() + _WEBSOCKET_GUID, usedforsecurity=False).digest()
        return base64.b64encode(digest).decode()


class UpgradeReader:
    """Reads one request and writes one answer."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD_BYTES)
        self._request: UpgradeRequest | None = None

    def receive(self, data: bytes) -> UpgradeRequest | None:
        """Take bytes; return the request once it is whole. Raises ProtocolViolation.

        Not to be called with more after it has returned the request.
        """
        try:
            self._http.receive_data(data)
            while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return None
                if isinstance(event, h11.Data):
                    raise ProtocolViolation("the request has a body")
                if isinstance(event, h11.Request):
                    self._request = _from_h11(event)
        except h11.RemoteProtocolError as error:
            raise ProtocolViolation(f"not a request of HTTP/1.1: {error}") from error
        return self._request

    def switch(self, headers: Headers) -> bytes:
        """Return the 101; what the client sends from now on is the other protocol's."""
        response = h11.InformationalResponse(
            status_code=101, headers=[*_SERVER, *headers], reason=_reason(101)
        )
        return self._http.send(response) or b""

    def behind(self) -> bytes:
        """Return what has come behind the request already."""
        return self._http.trailing_data[0]

    def refuse(self, refusal: Refusal) -> bytes:
        """Return an error response that ends the connection."""
        body = f"{refusal}\n".encode()
        headers = [
            *_SERVER,
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *refusal.headers,
        ]
        http = h11.Connection(h11.SERVER)  # ours may be in its error state, which sends nothing
        status, reason = refusal.status, _reason(refusal.status)
        head = http.send(h11.Response(status_code=status, headers=headers, reason=reason))
        return (head or b"") + body


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


def _from_h11(event: h11.Request) -> UpgradeRequest:
    return UpgradeRequest(
        method=event.method.decode("ascii"),
        path=event.target.decode("latin-1").partition("?")[0],
        headers=tuple((n.decode("ascii"), v.decode("latin-1")) for n, v in event.headers),
    )
