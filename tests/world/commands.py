# SPDX-License-Identifier: Apache-2.0
"""Exec, attach and port-forward as their clients see them, over SPDY and over WebSocket.

What is known of the protocols comes from Kubernetes' documentation of remotecommand and
portforward, and from what kubectl and crictl send.
"""

import base64
import json
import select
import socket
import ssl
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from tests.world.spdy import Spdy, Stream, connect_spdy
from tests.world.websocket import BINARY, TEXT, Tunnel, WebSocket, connect_websocket
from tests.world.wires import DEADLINE_S, Connection, wait_for

SPDY_PROTOCOLS = (
    "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io",
)  # fmt: skip
NAMES = ("stdin", "stdout", "stderr", "error", "resize")
"""Channels by their number, and values of the header streamType."""

_MESSAGE = 32 << 10
_CLOSE_CHANNEL = 255


class Outcome(msgspec.Struct, frozen=True):
    """How a command ended. status: a Status of Kubernetes' API, or text before version 4."""

    stdout: bytes
    stderr: bytes
    status: Any

    @property
    def exit_code(self) -> int:
        """The code in the status, 0 for a success."""
        if self.status["status"] == "Success":
            return 0
        assert self.status["reason"] == "NonZeroExitCode", self.status
        (code,) = [
            cause["message"]
            for cause in self.status["details"]["causes"]
            if cause["reason"] == "ExitCode"
        ]
        assert int(code) != 0
        return int(code)


class Command(Protocol):
    """An exec or attach session. protocol: as the server chose."""

    protocol: str

    def write(self, data: bytes) -> None:
        """Write to stdin."""

    def close_stdin(self) -> None:
        """End stdin; output goes on."""

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size."""

    def read_until(self, end: bytes, name: str = "stdout") -> bytes:
        """Read an output until `end` has come; what follows stays."""

    def received(self, name: str = "stdout") -> int:
        """Return how many bytes have come and been read from the connection so far."""

    def finish(self) -> Outcome:
        """Read everything to the end."""

    def close(self) -> None:
        """Hang up."""


class SpdyCommand:
    """A session over SPDY."""

    def __init__(
        self,
        url: str,
        names: Sequence[str],
        *,
        protocols: Sequence[str] = SPDY_PROTOCOLS,
        method: str = "POST",
        context: ssl.SSLContext | None = None,
    ) -> None:
        """names: streams to open besides "error"."""
        self.spdy, self.protocol = connect_spdy(url, protocols, method=method, context=context)
        self.streams: dict[str, Stream] = {}
        for name in ("error", *names):
            self.streams[name] = self.spdy.open({"streamType": name})
        self.spdy.wait(lambda: all(each.replied for each in self.streams.values()), "all replies")

    def write(self, data: bytes) -> None:
        """Write to stdin."""
        self.streams["stdin"].write(data)

    def close_stdin(self) -> None:
        """End stdin; output goes on."""
        self.streams["stdin"].close()

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size."""
        size = json.dumps({"Width": width, "Height": height})
        self.streams["resize"].write(size.encode() + b"\n")

    def read_until(self, end: bytes, name: str = "stdout") -> bytes:
        """Read an output until `end` has come; what follows stays."""
        return self.streams[name].read_until(end)

    def received(self, name: str = "stdout") -> int:
        """Return how many bytes have come and been read from the connection so far."""
        return self.streams[name].received

    def finish(self) -> Outcome:
        """Read everything to the end."""
        text = self.streams["error"].read_all()
        outputs = [
            self.streams[name].read_all() if name in self.streams else b""
            for name in ("stdout", "stderr")
        ]
        self.close()
        return Outcome(outputs[0], outputs[1], _parse_status(text, self.protocol))

    def close(self) -> None:
        """Hang up."""
        self.spdy.close()


class WebSocketCommand:
    """A session over WebSocket; every message begins with the number of its channel."""

    def __init__(
        self,
        url: str,
        protocols: Sequence[str] = ("v5.channel.k8s.io",),
        *,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = connect_websocket(url, protocols, context=context)
        self.protocol = self.socket.protocol
        self.data = {name: bytearray() for name in NAMES}
        self.ended = False
        self._received = dict.fromkeys(NAMES, 0)

    def write(self, data: bytes) -> None:
        """Write to stdin."""
        for start in range(0, len(data), _MESSAGE):
            self._send(0, data[start : start + _MESSAGE])

    def close_stdin(self) -> None:
        """End stdin; output goes on. Only version 5 can say that."""
        assert self.protocol == "v5.channel.k8s.io"
        self.socket.send(BINARY, bytes([_CLOSE_CHANNEL, 0]))

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size."""
        self._send(4, json.dumps({"Width": width, "Height": height}).encode())

    def read_until(self, end: bytes, name: str = "stdout") -> bytes:
        """Read an output until `end` has come; what follows stays."""
        data = self.data[name]
        wait_for(self.pump, lambda: end in data, f"{end!r} in {bytes(data)!r}")
        length = data.index(end) + len(end)
        taken = bytes(data[:length])
        del data[:length]
        return taken

    def received(self, name: str = "stdout") -> int:
        """Return how many bytes have come and been read from the connection so far."""
        return self._received[name]

    def finish(self) -> Outcome:
        """Read everything to the end."""
        wait_for(self.pump, lambda: self.ended, "the end")
        self.close()
        assert self.socket.closed is not None, "the connection was cut"
        assert self.socket.closed[0] == 1000, self.socket.closed
        status = _parse_status(bytes(self.data["error"]), self.protocol)
        return Outcome(bytes(self.data["stdout"]), bytes(self.data["stderr"]), status)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def pump(self, timeout_s: float = DEADLINE_S) -> bool:
        """Take the next message. Returns False at the end."""
        message = self.socket.receive(timeout_s)
        if message is None:
            self.ended = True
            return False
        kind, payload = message
        if "base64" in self.protocol:
            assert kind == TEXT
            number, payload = int(payload[:1]), base64.b64decode(payload[1:], validate=True)
        else:
            assert kind == BINARY
            number, payload = payload[0], payload[1:]
        self.data[NAMES[number]] += payload
        self._received[NAMES[number]] += len(payload)
        return True

    def _send(self, number: int, data: bytes) -> None:
        if "base64" in self.protocol:
            self.socket.send(TEXT, b"%d" % number + base64.b64encode(data))
        else:
            self.socket.send(BINARY, bytes([number]) + data)


def _parse_status(text: bytes, protocol: str) -> Any:
    if protocol.startswith(("v4.", "v5.")):
        return json.loads(text)
    return text.decode()


class Forwarded:
    """One connection to a port, over SPDY: a pair of streams."""

    def __init__(self, data: Stream, error: Stream) -> None:
        self.data = data
        self.error = error


class SpdyPorts:
    """Port-forward over SPDY, or over SPDY in a WebSocket."""

    def __init__(
        self, url: str, *, tunnelled: bool = False, context: ssl.SSLContext | None = None
    ) -> None:
        if tunnelled:
            protocol = "SPDY/3.1+portforward.k8s.io"
            self.spdy = Spdy(Tunnel(connect_websocket(url, [protocol], context=context)))
        else:
            self.spdy, chosen = connect_spdy(url, ["portforward.k8s.io"], context=context)
            assert chosen == "portforward.k8s.io"
        self._next_request = 0

    def wait_readable(self, others: Iterable[socket.socket]) -> set[socket.socket]:
        """Wait for the connection, which is pumped then, or others. Returns which of these."""
        wire = self.spdy.wire
        tunnel = wire.inner if isinstance(wire, Tunnel) else None
        connection = tunnel.wire if tunnel else wire
        assert isinstance(connection, Connection)
        if connection.pending or (tunnel and tunnel.pending):
            self.spdy.pump()
            return set()
        ready = set(select.select([connection.sock, *others], [], [])[0])
        if connection.sock in ready:
            self.spdy.pump()
        return ready - {connection.sock}

    def connect(self, port: int) -> Forwarded:
        """Open a pair of streams."""
        headers = {"port": str(port), "requestID": str(self._next_request)}
        self._next_request += 1
        error = self.spdy.open({"streamType": "error", **headers})
        error.close()
        data = self.spdy.open({"streamType": "data", **headers})
        self.spdy.wait(lambda: error.replied and data.replied, "both replies")
        return Forwarded(data, error)

    def close(self) -> None:
        """Hang up."""
        self.spdy.close()


class WebSocketPorts:
    """Port-forward over WebSocket: of each port a data and an error channel, from 0 on.

    ports: in the order of the request's; the server begins each channel with its port.
    """

    def __init__(self, url: str, ports: Sequence[int], *, encoding: str = "") -> None:
        self.socket: WebSocket = connect_websocket(url, [f"v4.{encoding}channel.k8s.io"])
        self._is_text = bool(encoding)
        self.data = [bytearray() for _ in range(2 * len(ports))]
        self.ended = False
        wait_for(self.pump, lambda: all(len(each) >= 2 for each in self.data), "all ports")
        for index, channel in enumerate(self.data):
            assert struct.unpack_from("<H", channel)[0] == ports[index // 2]
            del channel[:2]

    def write(self, index: int, data: bytes) -> None:
        """Write to the port of this index."""
        for start in range(0, len(data), _MESSAGE):
            piece = data[start : start + _MESSAGE]
            if self._is_text:
                self.socket.send(TEXT, b"%d" % (2 * index) + base64.b64encode(piece))
            else:
                self.socket.send(BINARY, bytes([2 * index]) + piece)

    def pump(self, timeout_s: float = DEADLINE_S) -> bool:
        """Take the next message. Returns False at the end."""
        message = self.socket.receive(timeout_s)
        if message is None:
            self.ended = True
            return False
        payload = message[1]
        if self._is_text:
            self.data[int(payload[:1])] += base64.b64decode(payload[1:])
        else:
            self.data[payload[0]] += payload[1:]
        return True

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
