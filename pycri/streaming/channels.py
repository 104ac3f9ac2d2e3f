# SPDX-License-Identifier: Apache-2.0
"""The sub-protocols of exec and attach ("remotecommand"), without I/O: bytes in, events out.

A session has up to five channels, whatever carries them:

    number  name    from     over SPDY: a stream with     over WebSocket: the first byte of a
                             the header "streamType"      message is the channel's number
    0       stdin   client   stdin                        0
    1       stdout  us       stdout                       1
    2       stderr  us       stderr                       2
    3       error   us       error                        3      at the end: see status.py
    4       resize  client   resize                       4      {"Width": 80, "Height": 24}

    SPDY       channel.k8s.io (v1), v2 ... v4.channel.k8s.io. `Ready` is when the client
               has opened all streams that the request asks for; resize is there with a tty, from
               v3 on. Either side half-closes its way with FIN. In v1 we close ours of stdin at
               once.
    WebSocket  "", channel.k8s.io (both as v1), v4.channel.k8s.io, v5.channel.k8s.io; the kinds
               base64.* carry text: the number as a digit, then base64. All channels are there at
               once; we begin with an empty message, which says so. Only v5 can half-close: a
               message of the bytes 255, number.

Source: k8s.io/apimachinery/pkg/util/remotecommand, k8s.io/kubelet/pkg/cri/streaming/remotecommand.
"""

import enum
import json
from typing import Protocol

import msgspec

from pycri.errors import ProtocolViolation
from pycri.model.streams import AttachRequest, ExecRequest
from pycri.streaming import spdy
from pycri.streaming.departures import Broken, Left
from pycri.streaming.messages import MessageReader, render_message, render_message_head
from pycri.streaming.spdy import ResetStatus, SpdyConnection, render_data_head
from pycri.streaming.status import Outcome, render_outcome
from pycri.streaming.websocket import Closed, WebSocket

SPDY_PROTOCOLS = {
    "v4.channel.k8s.io": 4,
    "v3.channel.k8s.io": 3,
    "v2.channel.k8s.io": 2,
    "channel.k8s.io": 1,
}
"""Sub-protocols to versions. A client without one cannot be: the header is required."""
WEBSOCKET_PROTOCOLS = {
    "v5.channel.k8s.io": 5,
    "v4.channel.k8s.io": 4,
    "v4.base64.channel.k8s.io": 4,
    "channel.k8s.io": 1,
    "base64.channel.k8s.io": 1,
    "": 1,
}

_MOST_STREAMS = 8
_MOST_EARLY_BYTES = 64 << 10
"""Of input that comes before the last stream is opened."""
_LARGEST_RESIZE_BYTES = 256
_RESIZE_VERSION = 3


class Channel(enum.IntEnum):
    """The numbers of WebSocket messages."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


class Ready(msgspec.Struct, frozen=True):
    """All channels are there."""


class Stdin(msgspec.Struct, frozen=True):
    payload: memoryview | bytes


class StdinEnded(msgspec.Struct, frozen=True):
    """The client will send no more."""


class Resized(msgspec.Struct, frozen=True):
    """The client's terminal has this size, in characters."""

    width: int
    height: int


class Refused(msgspec.Struct, frozen=True):
    """The client does not want an output any more."""

    channel: Channel


Event = Ready | Stdin | StdinEnded | Resized | Refused | Left | Broken
Request = ExecRequest | AttachRequest


class CommandChannels(Protocol):
    """What both transports offer."""

    def receive(self, data: memoryview) -> list[Event]:
        """Take what came, at first once even if nothing has."""

    def replies(self) -> bytes:
        """Return what is to be sent because of what was received, once."""

    def prefix(self, channel: int, size: int) -> bytes | None:
        """Return what goes in front of `size` bytes of output, which follow as they are.

        None: they must be encoded.
        """

    def encode(self, channel: int, data: memoryview) -> bytes:
        """Return output ready to be sent, where it cannot be sent as it is."""

    def end(self, channel: int) -> bytes:
        """Return what tells that an output is at its end."""

    def finish(self, outcome: Outcome) -> bytes:
        """Return the last bytes: how it ended, and good-bye."""


class SpdyChannels:
    """Exec and attach over SPDY. version: 1 ... 4."""

    def __init__(self, request: Request, version: int) -> None:
        self._spdy = SpdyConnection(_MOST_STREAMS)
        self._version = version
        self._missing = {Channel.ERROR} | {
            channel
            for channel, wanted in (
                (Channel.STDIN, request.stdin),
                (Channel.STDOUT, request.stdout),
                (Channel.STDERR, request.stderr),
                (Channel.RESIZE, request.tty and version >= _RESIZE_VERSION),
            )
            if wanted
        }
        self._streams: dict[Channel, int] = {}
        self._channels: dict[int, Channel] = {}
        self._sizes = _Sizes()
        self._early: list[Event] = []
        self._early_bytes = 0

    def receive(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        try:
            for event in self._spdy.receive(data):
                self._take(event, events)
        except ProtocolViolation as violation:
            events.append(Broken(str(violation)))
        return events

    def replies(self) -> bytes:
        return self._spdy.replies()

    def prefix(self, channel: int, size: int) -> bytes | None:
        return render_data_head(self._streams[Channel(channel)], size)

    def encode(self, channel: int, data: memoryview) -> bytes:
        return render_data_head(self._streams[Channel(channel)], len(data)) + data

    def end(self, channel: int) -> bytes:
        stream = self._streams.get(Channel(channel))
        return self._spdy.end(stream) if stream else b""

    def finish(self, outcome: Outcome) -> bytes:
        status = b""
        error = self._streams.get(Channel.ERROR)
        if error and self._spdy.is_open(error):
            text = render_outcome(outcome, self._version)
            status = render_data_head(error, len(text), fin=True) + text
        outputs = b"".join(self.end(c) for c in self._streams if c is not Channel.ERROR)
        return outputs + status + self._spdy.go_away()

    def _take(self, event: spdy.Event, events: list[Event]) -> None:
        match event:
            case spdy.Opened(stream=stream, headers=headers):
                self._open(stream, headers, events)
            case spdy.Data(stream=stream, payload=payload):
                self._input(self._channels.get(stream), payload, events)
            case spdy.Ended(stream=stream):
                if self._channels.get(stream) is Channel.STDIN:
                    self._tell(StdinEnded(), events)
            case spdy.Reset(stream=stream):
                self._reset(self._channels.get(stream), events)
            case spdy.GoneAway():
                events.append(Left())
            case spdy.Broken(reason=reason):
                events.append(Broken(reason))

    def _open(self, stream: int, headers: dict[str, str], events: list[Event]) -> None:
        """Accept a stream that is missing; refuse any other, by itself."""
        channel = Channel.__members__.get(headers.get("streamtype", "").upper())
        if channel is None or channel not in self._missing:
            self._spdy.answer(self._spdy.reset(stream, ResetStatus.PROTOCOL_ERROR))
            return
        self._missing.remove(channel)
        self._streams[channel] = stream
        self._channels[stream] = channel
        self._spdy.accept(stream)
        if channel is Channel.STDIN and self._version == 1:
            self._spdy.answer(self._spdy.end(stream))
        if not self._missing:
            self._spdy.seal()
            events += [Ready(), *self._early]
            self._early.clear()

    def _input(self, channel: Channel | None, payload: memoryview, events: list[Event]) -> None:
        if channel is Channel.STDIN:
            self._tell(Stdin(bytes(payload) if self._missing else payload), events)
        elif channel is Channel.RESIZE:
            for size in self._sizes.receive(payload):
                self._tell(size, events)
        if self._missing:
            self._early_bytes += len(payload)
            if self._early_bytes > _MOST_EARLY_BYTES:
                raise ProtocolViolation("input without end before all streams are there")

    def _tell(self, event: Event, events: list[Event]) -> None:
        """Tell of an event, or keep it until there is a process that it can be about."""
        (self._early if self._missing else events).append(event)

    def _reset(self, channel: Channel | None, events: list[Event]) -> None:
        if channel is Channel.STDIN:
            self._tell(StdinEnded(), events)
        elif channel in (Channel.STDOUT, Channel.STDERR):
            self._tell(Refused(channel), events)


class WebSocketChannels:
    """Exec and attach over WebSocket. version: 1, 4, 5; text: the base64 kinds."""

    def __init__(self, request: Request, version: int, *, text: bool) -> None:
        self._socket = WebSocket()
        self._request = request
        self._version = version
        self._text = text
        self._started = False
        self._messages = MessageReader(text=text)
        self._sizes = _Sizes()

    def receive(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        if not self._started:
            self._started = True
            self._greet()
            events.append(Ready())
        try:
            for chunk in self._socket.receive(data):
                if isinstance(chunk, Closed):
                    events.append(Left())
                else:
                    self._deliver(*self._messages.receive(chunk), events)
        except ProtocolViolation as violation:
            events.append(Broken(str(violation)))
        return events

    def replies(self) -> bytes:
        return self._socket.replies()

    def prefix(self, channel: int, size: int) -> bytes | None:
        return None if self._text else render_message_head(channel, size)

    def encode(self, channel: int, data: memoryview | bytes) -> bytes:
        return render_message(channel, data, text=self._text)

    def end(self, channel: int) -> bytes:
        return b""

    def finish(self, outcome: Outcome) -> bytes:
        status = render_outcome(outcome, self._version)
        return (self.encode(Channel.ERROR, status) if status else b"") + self._socket.close()

    def _greet(self) -> None:
        """Send the first message: empty, on the lowest of our channels."""
        request = self._request
        outputs = ((Channel.STDOUT, request.stdout), (Channel.STDERR, request.stderr))
        lowest = next((channel for channel, wanted in outputs if wanted), Channel.ERROR)
        self._socket.answer(self.encode(lowest, b""))

    def _deliver(self, channel: int | None, payload: bytes, events: list[Event]) -> None:
        if not payload:
            return
        match channel:
            case Channel.STDIN:
                if self._request.stdin:
                    events.append(Stdin(payload))
            case Channel.RESIZE:
                events += self._sizes.receive(payload)
            case 255:
                if self._version >= 5 and payload[0] == Channel.STDIN:
                    events.append(StdinEnded())


class _Sizes:
    """Sizes of the client's terminal: flat JSON objects, one behind another."""

    def __init__(self) -> None:
        self._text = b""

    def receive(self, data: memoryview | bytes) -> list[Resized]:
        """Return the sizes in it. Raises ProtocolViolation."""
        *objects, self._text = (self._text + data).split(b"}")
        if any(len(text) > _LARGEST_RESIZE_BYTES for text in (*objects, self._text)):
            raise ProtocolViolation("a terminal's size without end")
        return [size for text in objects for size in _parse_size(text + b"}")]


def _parse_size(text: bytes) -> list[Resized]:
    """Return the size in it, if it is one that a terminal can have."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ProtocolViolation(f"a terminal's size that is not JSON: {error}") from error
    sides = {str(key).lower(): side for key, side in value.items()}
    width, height = sides.get("width"), sides.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        raise ProtocolViolation("a terminal's size without width and height")
    return [Resized(width, height)] if 0 < width < 1 << 16 and 0 < height < 1 << 16 else []
