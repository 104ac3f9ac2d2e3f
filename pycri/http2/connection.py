# SPDX-License-Identifier: Apache-2.0
"""The server's side of an HTTP/2 connection (RFC 9113), without I/O.

Made for calls: a request is handed out when it is whole, bounded in size; an answer is headers,
data in any number of pieces, and trailers. Of the protocol this leaves out what no such server
needs: pushes, priorities, and compression of what it sends.

    bytes ─▶ receive ─▶ Request, Gone          begin, write, finish, refuse ─▶ output ─▶ bytes

Not safe for threads: who owns it guards it.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from pycri.errors import ProtocolViolation
from pycri.http2 import frames
from pycri.http2.frames import Code, Fault, Frame, Kind, Setting
from pycri.http2.hpack import MOST_BYTES, HeaderDecoder
from pycri.http2.streams import Stream

MOST_STREAMS: Final = 4096
"""How many calls may be under way on a connection."""
_CONNECTION_WINDOW: Final = 64 << 20
_FIRST_WINDOW: Final = 65535


class Request(NamedTuple):
    """A whole request. too_large: its body was larger than is taken, and is left out."""

    stream_id: int
    headers: Mapping[str, str]
    body: bytes
    too_large: bool = False


class Gone(NamedTuple):
    """The client does not want the answer any more."""

    stream_id: int


class _Block(NamedTuple):
    """Headers that are not whole yet."""

    stream_id: int
    ends_stream: bool
    data: bytes


class Connection:
    """One client's connection. closed: nothing more is read; what output holds is still sent."""

    def __init__(self, max_body_bytes: int) -> None:
        self.closed = False
        self._max_body_bytes = max_body_bytes
        self._input = bytearray()
        self._output: list[bytes] = []
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}  # those that have more to send than they may
        self._headers = HeaderDecoder()
        self._block: _Block | None = None
        self._last_id = 0
        self._greeted = self._going_away = False
        self._window = self._initial_window = _FIRST_WINDOW
        self._max_frame = frames.MAX_FRAME_BYTES
        self._unreturned = 0
        self._announce()

    # from the client

    def receive(self, data: bytes) -> list[Request | Gone]:
        """Take bytes; return what has become whole. A client that breaks the rules is closed."""
        self._input += data
        found: list[Request | Gone] = []
        try:
            self._greet()
            while self._greeted and (frame := frames.take_frame(self._input)) is not None:
                if (event := self._take(frame)) is not None:
                    found.append(event)
        except Fault as fault:
            self._output.append(frames.goaway_frame(self._last_id, fault.code, str(fault)))
            found += self.close()
        self._return_window()
        return found

    def close(self) -> list[Gone]:
        """The connection is over; return who is gone with it."""
        self.closed = True
        gone = [Gone(stream_id) for stream_id in self._streams]
        self._streams.clear()
        self._blocked.clear()
        return gone

    def _announce(self) -> None:
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            # A body is taken whole, so it has to fit; and one that does not has to begin.
            Setting.INITIAL_WINDOW_SIZE: self._max_body_bytes + frames.MAX_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MOST_BYTES,
        }
        more = _CONNECTION_WINDOW - _FIRST_WINDOW
        self._output.append(frames.settings_frame(settings))
        self._output.append(frames.number_frame(Kind.WINDOW_UPDATE, 0, more))

    def _greet(self) -> None:
        if self._greeted:
            return
        if not frames.PREFACE.startswith(self._input[: len(frames.PREFACE)]):
            raise Fault(Code.PROTOCOL_ERROR, "not HTTP/2")
        if len(self._input) >= len(frames.PREFACE):
            del self._input[: len(frames.PREFACE)]
            self._greeted = True

    def _take(self, frame: Frame) -> Request | Gone | None:
        if self._block is not None and frame.kind != Kind.CONTINUATION:
            raise Fault(Code.PROTOCOL_ERROR, "headers are interrupted")
        match frame.kind:
            case Kind.HEADERS | Kind.CONTINUATION:
                return self._take_headers(frame)
            case Kind.DATA:
                return self._take_data(frame)
            case Kind.RST_STREAM:
                return self._take_reset(frame)
        self._take_control(frame)
        return None

    def _take_control(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.WINDOW_UPDATE:
                self._take_window(frame)
            case Kind.SETTINGS:
                self._take_settings(frame)
            case Kind.PING:
                self._take_ping(frame)
            case Kind.PUSH_PROMISE:
                raise Fault(Code.PROTOCOL_ERROR, "clients do not push")

    def _take_headers(self, frame: Frame) -> Request | None:
        if frame.kind == Kind.HEADERS:
            ends_stream = bool(frame.flags & frames.END_STREAM)
            block = _Block(frame.stream_id, ends_stream, frames.content(frame))
        elif self._block is not None and self._block.stream_id == frame.stream_id:
            block = self._block._replace(data=self._block.data + frame.payload)
        else:
            raise Fault(Code.PROTOCOL_ERROR, "nothing to continue")
        if len(block.data) > MOST_BYTES:
            raise Fault(Code.PROTOCOL_ERROR, "the headers are too large")
        self._block = None
        if frame.flags & frames.END_HEADERS:
            return self._open(block)
        self._block = block
        return None

    def _open(self, block: _Block) -> Request | None:
        try:
            fields = self._headers.decode(block.data)
        except ProtocolViolation as error:
            raise Fault(Code.COMPRESSION_ERROR, str(error)) from error
        stream_id = block.stream_id
        if stream_id % 2 == 0:
            raise Fault(Code.PROTOCOL_ERROR, "a client's streams are odd")
        if stream_id <= self._last_id:
            # Trailers, which say nothing; or of a stream that has ended here meanwhile.
            stream = self._streams.get(stream_id)
            return self._whole(stream) if stream and block.ends_stream else None
        if self._going_away or len(self._streams) >= MOST_STREAMS:
            self._last_id = max(self._last_id, stream_id)
            self._reset(stream_id, Code.REFUSED_STREAM)
            return None
        self._last_id = stream_id
        headers: dict[str, str] = {}
        for name, value in fields:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        stream = self._streams[stream_id] = Stream(stream_id, headers, self._initial_window)
        return self._whole(stream) if block.ends_stream else None

    def _take_data(self, frame: Frame) -> Request | None:
        self._unreturned += len(frame.payload)
        if not 0 < frame.stream_id <= self._last_id:
            raise Fault(Code.PROTOCOL_ERROR, "data of no stream")
        stream = self._streams.get(frame.stream_id)
        if stream is None or stream.whole:
            return None
        stream.body += frames.content(frame)
        if len(stream.body) > self._max_body_bytes:
            stream.body.clear()
            return self._whole(stream, too_large=True)
        return self._whole(stream) if frame.flags & frames.END_STREAM else None

    def _whole(self, stream: Stream, *, too_large: bool = False) -> Request | None:
        if stream.whole:
            return None
        stream.whole, stream.cut_short = True, too_large
        body = bytes(stream.body)
        stream.body.clear()
        return Request(stream.id, stream.headers, body, too_large)

    def _take_reset(self, frame: Frame) -> Gone | None:
        frames.parse_number(frame.payload)
        if not 0 < frame.stream_id <= self._last_id:
            raise Fault(Code.PROTOCOL_ERROR, "no such stream to reset")
        return Gone(frame.stream_id) if self._forget(frame.stream_id) else None

    def _take_window(self, frame: Frame) -> None:
        more = frames.parse_number(frame.payload)
        if more == 0:
            raise Fault(Code.PROTOCOL_ERROR, "a window grows by nothing")
        largest = 0
        if frame.stream_id == 0:
            self._window = largest = self._window + more
        elif stream := self._streams.get(frame.stream_id):
            stream.window = largest = stream.window + more
        if largest > frames.LARGEST_WINDOW:
            raise Fault(Code.FLOW_CONTROL_ERROR, "a window is too large")
        self._send_blocked()

    def _take_settings(self, frame: Frame) -> None:
        if frame.flags & frames.ACK:
            return
        for name, value in frames.parse_settings(frame.payload):
            if name == Setting.MAX_FRAME_SIZE:
                self._max_frame = value
            elif name == Setting.INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                self._initial_window = value
        self._output.append(frames.frame(Kind.SETTINGS, frames.ACK, 0))
        self._send_blocked()

    def _take_ping(self, frame: Frame) -> None:
        if len(frame.payload) != 8:
            raise Fault(Code.FRAME_SIZE_ERROR, "a ping of a wrong length")
        if not frame.flags & frames.ACK:
            self._output.append(frames.frame(Kind.PING, frames.ACK, 0, frame.payload))

    def _return_window(self) -> None:
        """Let the client send as much again as was taken, now and then."""
        if self._unreturned > _CONNECTION_WINDOW // 4 and not self.closed:
            more, self._unreturned = self._unreturned, 0
            self._output.append(frames.number_frame(Kind.WINDOW_UPDATE, 0, more))

    # to the client; of a stream that is gone nothing is sent

    def begin(self, stream_id: int, block: bytes) -> None:
        """Send the headers of an answer."""
        if stream_id in self._streams:
            self._output.append(frames.frame(Kind.HEADERS, frames.END_HEADERS, stream_id, block))

    def write(self, stream_id: int, data: bytes) -> None:
        """Send data, or keep it until the client has room for it."""
        if stream := self._streams.get(stream_id):
            stream.put(data)
            self._send(stream)

    def finish(self, stream_id: int, block: bytes) -> None:
        """Send trailers, or headers alone, behind all data; the stream ends with them."""
        if stream := self._streams.get(stream_id):
            stream.trailers = block
            self._send(stream)

    def unsent(self, stream_id: int) -> int:
        """Return how many bytes of a stream wait for the client to make room."""
        stream = self._streams.get(stream_id)
        return stream.unsent if stream else 0

    def busy(self) -> bool:
        """Tell whether a stream is under way."""
        return bool(self._streams)

    def go_away(self) -> None:
        """Take no further streams; those under way go on."""
        if not self._going_away:
            self._going_away = True
            self._output.append(frames.goaway_frame(self._last_id, Code.NO_ERROR))

    def output(self) -> bytes:
        """Return, once, what is to be sent."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def _send_blocked(self) -> None:
        for stream in tuple(self._blocked.values()):
            self._send(stream)

    def _send(self, stream: Stream) -> None:
        while stream.unsent and (room := min(stream.window, self._window)) > 0:
            data = stream.take(min(room, self._max_frame))
            stream.window -= len(data)
            self._window -= len(data)
            self._output += (frames.header(len(data), Kind.DATA, 0, stream.id), data)
        if stream.unsent:
            self._blocked[stream.id] = stream
            return
        self._blocked.pop(stream.id, None)
        if stream.trailers is not None:
            flags = frames.END_HEADERS | frames.END_STREAM
            self._output.append(frames.frame(Kind.HEADERS, flags, stream.id, stream.trailers))
            if not stream.whole or stream.cut_short:
                self._reset(stream.id, Code.NO_ERROR)
            self._forget(stream.id)

    def _reset(self, stream_id: int, code: Code) -> None:
        self._output.append(frames.number_frame(Kind.RST_STREAM, stream_id, code))

    def _forget(self, stream_id: int) -> bool:
        self._blocked.pop(stream_id, None)
        return self._streams.pop(stream_id, None) is not None
