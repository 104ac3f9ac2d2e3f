# SPDX-License-Identifier: Apache-2.0
"""The sub-protocols of port-forward, without I/O: bytes in, events out.

    portforward.k8s.io over SPDY
        For each connection the client opens two streams with the headers "port" (decimal),
        "requestid" (the same for both) and "streamtype": "error", on which it sends nothing, and
        "data". Either side half-closes data with FIN. At the end we close "error", with the reason
        of a failure in it. Any number of connections, at once and one after another.

    SPDY/3.1+portforward.k8s.io over WebSocket
        The same: binary messages hold the bytes of the SPDY connection, cut anywhere.

    "", v4.channel.k8s.io, v4.base64.channel.k8s.io over WebSocket
        One connection for each port of the request, as it opens. Message: first the channel (a
        byte, or a digit and then base64), 2 * i for data of port i, 2 * i + 1 for its errors, then
        payload. Our first message on each channel is the port, 16 bits, little-endian. Nobody can
        half-close.

Source: k8s.io/kubelet/pkg/cri/streaming/portforward, k8s.io/client-go/tools/portforward.
"""

import struct
from typing import Protocol

import msgspec

from pycri.errors import ProtocolViolation
from pycri.streaming import spdy
from pycri.streaming.departures import Broken, Left
from pycri.streaming.messages import MessageReader, render_message, render_message_head
from pycri.streaming.spdy import ResetStatus, SpdyConnection, render_data_head
from pycri.streaming.websocket import Closed, WebSocket, render_head

SPDY_PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = "SPDY/3.1+portforward.k8s.io"
WEBSOCKET_PROTOCOLS = (TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")

MOST_STREAMS = 2000
"""Open at once on one client's connection, two for each that is forwarded."""


class Opened(msgspec.Struct, frozen=True):
    """A connection to `port` is wanted. connection: its number from now on."""

    connection: int
    port: int


class Half(msgspec.Struct, frozen=True):
    """One stream of a pair is there; if the other does not come in time, call `give_up`."""

    stream: int


class Data(msgspec.Struct, frozen=True):
    connection: int
    payload: memoryview | bytes


class InputEnded(msgspec.Struct, frozen=True):
    """The client will send no more on the connection."""

    connection: int


class Dropped(msgspec.Struct, frozen=True):
    """The client has given up the connection, both ways."""

    connection: int


Event = Opened | Half | Data | InputEnded | Dropped | Left | Broken


class PortChannels(Protocol):
    """What all of them offer."""

    def receive(self, data: memoryview) -> list[Event]:
        """Take what came, at first once even if nothing has."""

    def replies(self) -> bytes:
        """Return what is to be sent because of what was received, once."""

    def prefix(self, connection: int, size: int) -> bytes | None:
        """Return what goes in front of `size` bytes for the client, which follow as they are.

        None: they must be encoded.
        """

    def encode(self, connection: int, data: memoryview) -> bytes:
        """Return bytes for the client ready to be sent, where they cannot be sent as they are."""

    def takes_input(self, connection: int) -> bool:
        """Tell whether data of the connection may still come, though we have ended our way."""

    def end(self, connection: int) -> bytes:
        """Return what tells that the pod's side has sent everything."""

    def fail(self, connection: int, reason: str) -> bytes:
        """Return what tells that the connection could not be made."""

    def reset(self, connection: int) -> bytes:
        """Return what tells that the connection has broken."""

    def give_up(self, stream: int) -> bytes:
        """Return what tells that the other stream of a pair has not come; b"" if it has."""

    def go_away(self) -> bytes:
        """Return good-bye."""


class _Pair(msgspec.Struct):
    """The streams of one connection; 0 for one that has not come."""

    data: int = 0
    error: int = 0


class SpdyPorts:
    """Port-forward over SPDY. A connection has the number of its data stream."""

    def __init__(self) -> None:
        self._spdy = SpdyConnection(MOST_STREAMS)
        self._half: dict[str, _Pair] = {}
        self._pairs: dict[int, _Pair] = {}

    def receive(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        try:
            for event in self._spdy.receive(data):
                self._take(event, events)
        except ProtocolViolation as violation:
            events.append(Broken(str(violation)))
        return events

    def replies(self) -> bytes:
        return self._wrap(self._spdy.replies())

    def prefix(self, connection: int, size: int) -> bytes | None:
        return self._wrap(render_data_head(connection, size), size)

    def encode(self, connection: int, data: memoryview) -> bytes:
        return self._wrap(render_data_head(connection, len(data)) + data)

    def takes_input(self, connection: int) -> bool:
        return connection in self._pairs

    def end(self, connection: int) -> bytes:
        # The error stream, too: a client waits for it before it closes its way of data.
        return self._close(connection, self._spdy.end(connection), "")

    def fail(self, connection: int, reason: str) -> bytes:
        return self._close(connection, self._spdy.end(connection), reason)

    def reset(self, connection: int) -> bytes:
        return self._close(connection, self._spdy.reset(connection, ResetStatus.CANCEL), "")

    def give_up(self, stream: int) -> bytes:
        for request, pair in list(self._half.items()):
            if stream in (pair.data, pair.error):
                del self._half[request]
                message = self._error(pair.error, "timed out waiting for the other stream")
                return self._wrap(message + self._spdy.reset(stream, ResetStatus.CANCEL))
        return b""

    def go_away(self) -> bytes:
        return self._wrap(self._spdy.go_away())

    def _wrap(self, frames: bytes, following: int = 0) -> bytes:
        """Return frames as they travel; `following` bytes come behind them."""
        return frames

    def _close(self, connection: int, frames: bytes, reason: str) -> bytes:
        """Return `frames`, and in front of them the end of the errors."""
        pair = self._pairs.get(connection)
        if pair is None:
            return b""
        self._forget_if_closed(connection)
        return self._wrap(self._error(pair.error, reason) + frames)

    def _error(self, stream: int, reason: str) -> bytes:
        if not self._spdy.is_open(stream):
            return b""
        text = reason.encode()
        message = render_data_head(stream, len(text)) + text if text else b""
        return message + self._spdy.end(stream)

    def _forget_if_closed(self, connection: int) -> None:
        if not self._spdy.knows(connection):
            self._pairs.pop(connection, None)

    def _take(self, event: spdy.Event, events: list[Event]) -> None:
        match event:
            case spdy.Opened(stream=stream, headers=headers):
                self._open(stream, headers, events)
            case spdy.Data(stream=stream, payload=payload):
                self._input(stream, payload, events)
            case spdy.Ended(stream=stream) if stream in self._pairs:
                events.append(InputEnded(stream))
                self._forget_if_closed(stream)
            case spdy.Reset(stream=stream) if stream in self._pairs:
                events.append(Dropped(stream))
                del self._pairs[stream]
            case spdy.GoneAway():
                events.append(Left())
            case spdy.Broken(reason=reason):
                events.append(Broken(reason))

    def _input(self, stream: int, payload: memoryview, events: list[Event]) -> None:
        if stream in self._pairs:
            events.append(Data(stream, payload))
        elif any(pair.data == stream for pair in self._half.values()):
            raise ProtocolViolation("data for a connection without error stream")

    def _open(self, stream: int, headers: dict[str, str], events: list[Event]) -> None:
        """Accept one stream of a pair; refuse what cannot be one, by itself."""
        kind, port = headers.get("streamtype", ""), _parse_port(headers.get("port", ""))
        # Old clients send no request id, but open the data stream right behind the error stream.
        request = headers.get("requestid") or str(stream if kind == "error" else stream - 2)
        pair = self._half.get(request, _Pair())
        if kind not in ("data", "error") or not port or getattr(pair, kind):
            self._spdy.answer(self._spdy.reset(stream, ResetStatus.PROTOCOL_ERROR))
            return
        setattr(pair, kind, stream)
        self._spdy.accept(stream)
        if pair.data and pair.error:
            self._half.pop(request)
            self._pairs[pair.data] = pair
            events.append(Opened(pair.data, port))
        else:
            self._half[request] = pair
            events.append(Half(stream))


class TunnelledPorts(SpdyPorts):
    """Port-forward over SPDY over WebSocket."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = WebSocket()

    def receive(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        for chunk in self._socket.receive(data):
            if isinstance(chunk, Closed):
                events.append(Left())
            else:
                events += super().receive(memoryview(chunk.payload))
        return events

    def replies(self) -> bytes:
        return self._socket.replies() + super().replies()

    def go_away(self) -> bytes:
        return super().go_away() + self._socket.close()

    def _wrap(self, frames: bytes, following: int = 0) -> bytes:
        return render_head(len(frames) + following) + frames if frames else b""


class WebSocketPorts:
    """Port-forward over the channels of a WebSocket. A connection has its port's place.

    ports: of the request, 1 to `most_ports`. text: the base64 kind.
    """

    def __init__(self, ports: tuple[int, ...], *, text: bool) -> None:
        self._socket = WebSocket()
        self._ports = ports
        self._text = text
        self._started = False
        self._messages = MessageReader(text=text)
        self._open = set(range(len(self._ports)))

    def receive(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        if not self._started:
            self._started = True
            events += [Opened(i, port) for i, port in enumerate(self._ports)]
            for i, port in enumerate(self._ports):
                for channel in (2 * i, 2 * i + 1):
                    self._socket.answer(self._message(channel, struct.pack("<H", port)))
        try:
            for chunk in self._socket.receive(data):
                if isinstance(chunk, Closed):
                    events.append(Left())
                else:
                    events += self._input(*self._messages.receive(chunk))
        except ProtocolViolation as violation:
            events.append(Broken(str(violation)))
        return events

    def replies(self) -> bytes:
        return self._socket.replies()

    def prefix(self, connection: int, size: int) -> bytes | None:
        return None if self._text else render_message_head(2 * connection, size)

    def encode(self, connection: int, data: memoryview) -> bytes:
        return self._message(2 * connection, data)

    def takes_input(self, connection: int) -> bool:
        return connection in self._open

    def end(self, connection: int) -> bytes:
        """Close with the last connection: there is no other way to tell of an end."""
        self._open.discard(connection)
        return b"" if self._open else self._socket.close()

    def fail(self, connection: int, reason: str) -> bytes:
        message = self._message(2 * connection + 1, reason.encode())
        return message + self.end(connection)

    def reset(self, connection: int) -> bytes:
        return self.end(connection)

    def give_up(self, stream: int) -> bytes:
        return b""

    def go_away(self) -> bytes:
        return self._socket.close()

    def _input(self, channel: int | None, payload: bytes) -> list[Event]:
        """Return data for a port; what comes on the channels of errors means nothing."""
        if channel is None or not payload or channel % 2 or channel // 2 not in self._open:
            return []
        return [Data(channel // 2, payload)]

    def _message(self, channel: int, data: memoryview | bytes) -> bytes:
        return render_message(channel, data, text=self._text)


def most_ports(*, text: bool) -> int:
    """Return how many ports have channels: a byte numbers 256 of these, a digit 10."""
    return 5 if text else 128


def _parse_port(text: str) -> int:
    """Return the port, 0 for what is none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return number if number < 1 << 16 else 0
