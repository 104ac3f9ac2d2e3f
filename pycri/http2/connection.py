# SPDX-License-Identifier: Apache-2.0
"""The server's side of an HTTP/2 connection (RFC 9113), without I/O: libnghttp2, made for calls.

A request is handed out when it is whole, bounded in size; an answer is headers, data in any number
of pieces, and trailers.

    bytes ─▶ receive ─▶ Request, Gone              begin, write, finish ─▶ output ─▶ bytes

Not safe for threads: who owns it guards it.
"""

from collections.abc import Mapping
from ctypes import c_uint32, memmove, string_at  # noqa: TID251 - one of its homes
from typing import Any, Final, NamedTuple

from pycri.http2 import nghttp2
from pycri.http2.nghttp2 import Fields

MOST_STREAMS: Final = 4096
"""How many calls may be under way on a connection."""
_MOST_FIELDS: Final = 128
_WINDOW_BYTES: Final = 64 << 20
_FRAME_BYTES: Final = 16384


class Request(NamedTuple):
    """A whole request. too_large: its body was larger than is taken, and is left out."""

    stream_id: int
    headers: Mapping[str, str]
    body: bytes
    too_large: bool = False


class Gone(NamedTuple):
    """The client does not want the answer any more."""

    stream_id: int


class _Stream:
    """One call: what has come of the request, what of the answer waits to be sent.

    whole: the request has been handed out. ended: the client has said all. idle: the library waits
    to be told of more data. trailers: to be sent behind the data.
    """

    __slots__ = (
        "begun", "body", "ended", "finished", "headers", "idle", "sent", "trailers", "waiting",
        "whole",
    )  # fmt: skip

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.body = bytearray()
        self.whole = self.ended = self.begun = self.finished = self.idle = False
        self.waiting = b""
        self.sent = 0  # of what waits
        self.trailers: Fields | None = None


class _Exchange:
    """What the library's callbacks work on. error: why one of them failed."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.streams: dict[int, _Stream] = {}
        self.fields: list[tuple[bytes, bytes]] = []  # of the headers that are being read
        self.events: list[Request | Gone] = []
        self.error: Exception | None = None

    def fail(self, error: Exception) -> int:
        """Note what must not cross the library; return what ends its call."""
        self.error = error
        return nghttp2.FAILED

    def open(self, stream_id: int) -> _Stream:
        """Begin a stream with the headers that were read."""
        headers: dict[str, str] = {}
        for name, value in self.fields:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        stream = self.streams[stream_id] = _Stream(headers)
        return stream

    def hand_out(self, stream_id: int, stream: _Stream, *, too_large: bool = False) -> None:
        """Let a request be answered."""
        stream.whole = True
        body = b"" if too_large else bytes(stream.body)
        stream.body.clear()
        self.events.append(Request(stream_id, stream.headers, body, too_large))


@nghttp2.OnBeginHeaders
def _on_begin_headers(_session: int, _frame: int, exchange: _Exchange) -> int:
    exchange.fields = []
    return 0


@nghttp2.OnHeader
def _on_header(
    _session: int, _frame: int, name: bytes, _bytes: int, value: bytes, *rest: Any
) -> int:
    fields = rest[-1].fields
    if len(fields) >= _MOST_FIELDS:
        return nghttp2.RESET_STREAM
    fields.append((name, value))
    return 0


@nghttp2.OnFrame
def _on_frame(_session: int, frame: int, exchange: _Exchange) -> int:
    try:
        header = nghttp2.FrameHeader.from_address(frame)
        if (kind := header.type) > nghttp2.HEADERS:
            return 0
        stream_id = header.stream_id
        stream = exchange.streams.get(stream_id)
        if stream is None and kind == nghttp2.HEADERS:
            stream = exchange.open(stream_id)
        if stream and header.flags & nghttp2.END_STREAM:
            stream.ended = True
            if not stream.whole:
                exchange.hand_out(stream_id, stream)
    except Exception as error:  # noqa: BLE001
        return exchange.fail(error)
    return 0


@nghttp2.OnData
def _on_data(
    _session: int, _flags: int, stream_id: int, data: int, size: int, exchange: _Exchange
) -> int:
    try:
        stream = exchange.streams.get(stream_id)
        if stream is None or stream.whole:
            return 0
        if len(stream.body) + size > exchange.max_body_bytes:
            exchange.hand_out(stream_id, stream, too_large=True)
        else:
            stream.body += string_at(data, size)
    except Exception as error:  # noqa: BLE001
        return exchange.fail(error)
    return 0


@nghttp2.OnClose
def _on_close(_session: int, stream_id: int, _code: int, exchange: _Exchange) -> int:
    stream = exchange.streams.pop(stream_id, None)
    if stream and not stream.finished:
        exchange.events.append(Gone(stream_id))
    return 0


@nghttp2.ReadData
def _read_data(session: int, stream_id: int, buffer: int, room: int, flags: int, *rest: Any) -> int:
    exchange: _Exchange = rest[-1]
    try:
        stream = exchange.streams[stream_id]
        if not stream.waiting:
            stream.idle = True
            return nghttp2.DEFERRED
        piece = stream.waiting[stream.sent : stream.sent + room]
        memmove(buffer, piece, len(piece))
        stream.sent += len(piece)
        if stream.sent == len(stream.waiting):
            stream.waiting, stream.sent = b"", 0
            if trailers := stream.trailers:
                c_uint32.from_address(flags).value = nghttp2.DATA_ENDS
                nghttp2.submit_trailer(session, stream_id, trailers.address, trailers.count)
        return len(piece)
    except Exception as error:  # noqa: BLE001
        return exchange.fail(error)


_CALLBACKS: Final = nghttp2.Callbacks(
    on_begin_headers=_on_begin_headers,
    on_header=_on_header,
    on_frame_recv=_on_frame,
    on_data_chunk_recv=_on_data,
    on_stream_close=_on_close,
)
_PROVIDER: Final = nghttp2.DataProvider(_read_data)


class Connection:
    """One client's connection. closed: nothing more is read; what output holds is still sent."""

    def __init__(self, max_body_bytes: int) -> None:
        self.closed = False
        self._exchange = _Exchange(max_body_bytes)
        self._session: int | None = nghttp2.new_server(_CALLBACKS, self._exchange)
        self._sending = nghttp2.Pointer()
        self._output: list[bytes] = []
        self._dirty = True
        self._cut_short: list[int] = []  # answered before the client has said all
        self._going_away = False
        settings = (
            # A body is taken whole, so it has to fit; and one that does not has to begin.
            nghttp2.Setting(nghttp2.INITIAL_WINDOW_SIZE, max_body_bytes + _FRAME_BYTES),
            nghttp2.Setting(nghttp2.MAX_CONCURRENT_STREAMS, MOST_STREAMS),
        )
        entries = (nghttp2.Setting * len(settings))(*settings)
        nghttp2.submit_settings(self._session, 0, entries, len(settings))
        nghttp2.set_local_window_size(self._session, 0, 0, _WINDOW_BYTES)

    def receive(self, data: bytes) -> list[Request | Gone]:
        """Take bytes; return what has become whole. A client that breaks the rules is closed."""
        if self._session is None:
            return []
        result = nghttp2.mem_recv(self._session, data, len(data))
        self._raise_error()
        self._pump()  # what is wrong with a stream is known when its reset goes out
        events = self._take_events()
        if result < 0 or (self._session and not nghttp2.want_read(self._session)):
            events += self.close()
        return events

    def close(self) -> list[Gone]:
        """The connection is over; return who is gone with it."""
        self.closed = True
        streams = self._exchange.streams
        gone = [Gone(stream_id) for stream_id, stream in streams.items() if not stream.finished]
        streams.clear()
        if self._session is not None:
            nghttp2.session_del(self._session)
            self._session = None
        return gone

    # to the client; of a stream that is gone nothing is sent

    def begin(self, stream_id: int, fields: Fields) -> None:
        """Send the headers of an answer."""
        if (stream := self._exchange.streams.get(stream_id)) and not stream.begun:
            self._dirty = stream.begun = True
            nghttp2.submit_response(
                self._session, stream_id, fields.address, fields.count, _PROVIDER.address
            )

    def write(self, stream_id: int, data: bytes) -> None:
        """Send data, or keep it until the client has room for it. Behind `begin`."""
        if not data or not (stream := self._exchange.streams.get(stream_id)):
            return
        stream.waiting, stream.sent = stream.waiting[stream.sent :] + data, 0
        self._dirty = True
        if stream.idle:
            stream.idle = False
            nghttp2.resume_data(self._session, stream_id)

    def finish(self, stream_id: int, fields: Fields) -> None:
        """Send trailers, or headers alone, behind all data; the stream ends with them."""
        stream = self._exchange.streams.get(stream_id)
        if not stream or stream.finished:
            return
        self._dirty = stream.finished = True
        if stream.waiting:
            stream.trailers = fields
        elif stream.begun:
            nghttp2.submit_trailer(self._session, stream_id, fields.address, fields.count)
        else:
            nghttp2.submit_response(self._session, stream_id, fields.address, fields.count, None)
        if not stream.ended:
            self._cut_short.append(stream_id)

    def unsent(self, stream_id: int) -> int:
        """Return how many bytes of a stream wait for the client to make room."""
        stream = self._exchange.streams.get(stream_id)
        return len(stream.waiting) - stream.sent if stream else 0

    def busy(self) -> bool:
        """Tell whether a stream is under way."""
        return bool(self._exchange.streams)

    def go_away(self) -> None:
        """Take no further streams; those under way go on."""
        if self._session is not None and not self._going_away:
            self._going_away = self._dirty = True
            last = nghttp2.last_stream_id(self._session)
            nghttp2.submit_goaway(self._session, 0, last, nghttp2.NO_ERROR, None, 0)

    def output(self) -> bytes:
        """Return, once, what is to be sent."""
        if self._dirty:
            self._pump()
        data = b"".join(self._output)
        self._output.clear()
        return data

    def _pump(self) -> None:
        """Take from the library what may be sent now."""
        self._dirty = False
        if self._session is None:
            return
        self._drain()
        if self._cut_short:
            for stream_id in self._cut_short:
                nghttp2.submit_rst_stream(self._session, 0, stream_id, nghttp2.NO_ERROR)
            self._cut_short.clear()
            self._drain()

    def _drain(self) -> None:
        session, sending = self._session, self._sending
        while (size := nghttp2.mem_send(session, sending)) > 0:
            self._output.append(string_at(sending.value or 0, size))
        self._raise_error()

    def _take_events(self) -> list[Request | Gone]:
        events, self._exchange.events = self._exchange.events, []
        return events

    def _raise_error(self) -> None:
        if error := self._exchange.error:
            raise error
