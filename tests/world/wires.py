# SPDX-License-Identifier: Apache-2.0
"""The lowest layer of the streaming clients: HTTP/1.1 upgrades, and bytes both ways at once.

Everything is in one thread: a client reads what comes while it waits to be able to write, as it
must, or both sides of an echo would wait for each other.
"""

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Protocol
from urllib.parse import urlsplit

from tests.world import session

DEADLINE_S = 30.0 * session.TIME_FACTOR
CHUNK = 256 << 10


class Refused(Exception):
    """The server has not switched protocols. status: of HTTP; body: its text."""

    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.headers = headers
        self.body = body


class Wire(Protocol):
    """Bytes both ways."""

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it; what comes meanwhile is kept."""

    def receive(self, timeout_s: float = DEADLINE_S) -> bytes:
        """Return what comes next, b"" at the end. Raises TimeoutError."""

    def close(self) -> None:
        """Close the connection."""


class Connection:
    """A TCP or TLS connection as a Wire. Takes the socket."""

    def __init__(self, sock: socket.socket, inbox: bytes = b"") -> None:
        sock.setblocking(False)
        self.sock = sock
        self._inbox = [inbox] if inbox else []
        self._ended = False

    @property
    def pending(self) -> bool:
        """True when `receive` would not wait."""
        return bool(self._inbox) or self._ended

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it; what comes meanwhile is kept."""
        view = memoryview(data)
        while view:
            readers = [] if self._ended else [self.sock]
            readable, writable, _ = select.select(readers, [self.sock], [], DEADLINE_S)
            if not readable and not writable:
                raise TimeoutError("the server does not read")
            if readable:
                self._collect()
            if writable:
                try:
                    view = view[self.sock.send(view[:CHUNK]) :]
                except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    continue

    def receive(self, timeout_s: float = DEADLINE_S) -> bytes:
        """Return what comes next, b"" at the end. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not self._inbox and not self._ended:
            pending = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()
            left_s = max(0.0, deadline - time.monotonic())
            if not pending and not select.select([self.sock], [], [], left_s)[0]:
                raise TimeoutError("nothing comes")
            self._collect()
        return self._inbox.pop(0) if self._inbox else b""

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def _collect(self) -> None:
        try:
            data = self.sock.recv(CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ConnectionError:
            data = b""
        if data:
            self._inbox.append(data)
        else:
            self._ended = True


def connect(url: str, context: ssl.SSLContext | None = None) -> socket.socket:
    """Connect to the host of a URL."""
    parts = urlsplit(url)
    assert parts.hostname, f"not absolute: {url}"
    sock = socket.create_connection((parts.hostname, parts.port or 80), DEADLINE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme in ("https", "wss"):
        assert context is not None, "TLS needs a context"
        return context.wrap_socket(sock, server_hostname=parts.hostname)
    return sock


def upgrade(
    url: str,
    method: str,
    headers: Iterable[tuple[str, str]],
    context: ssl.SSLContext | None = None,
) -> tuple[Connection, dict[str, str]]:
    """Ask to switch protocols (RFC 9110, 7.8). Returns the connection and the answer's headers.

    Names of headers are lower case. Raises Refused for any other answer than 101.
    """
    parts = urlsplit(url)
    sock = connect(url, context)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        return _read_answer(sock)
    except BaseException:
        sock.close()
        raise


def _read_answer(sock: socket.socket) -> tuple[Connection, dict[str, str]]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock, "in the middle of the answer's head")
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    status = int(status_line.split()[1])
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    if status == 101:
        return Connection(sock, rest), headers
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        rest += _receive(sock, "in the middle of the answer's body")
    raise Refused(status, headers, rest.decode())


def _receive(sock: socket.socket, where: str) -> bytes:
    data = sock.recv(CHUNK)
    if not data:
        raise ConnectionError(f"the server hung up {where}")
    return data


def wait_for(pump: Callable[[float], bool], done: Callable[[], bool], what: str) -> None:
    """Pump until `done`. pump: takes what comes within some seconds, returns False at the end."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"never: {what}"
        if not pump(left_s) and not done():
            raise ConnectionError(f"the server hung up before {what}")
