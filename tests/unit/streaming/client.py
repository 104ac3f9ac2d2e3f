# SPDX-License-Identifier: Apache-2.0
"""A client of the streaming server on a raw socket, for sessions that go wrong as well."""

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

from tests.unit.streaming import frames
from tests.unit.streaming.frames import SpdyClient

CHUNK = 1 << 16


class Client:
    """One connection. `frames` of the server that were read but not asked for are kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.spdy = SpdyClient()
        self.outputs: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.replied: set[int] = set()
        self.pongs: list[int] = []
        self.gone = False

    @classmethod
    async def connect(cls, url: str, *, tls: ssl.SSLContext | None = None) -> "Client":
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, ssl=tls))

    async def ask(self, url: str, *headers: str, method: str = "POST") -> tuple[int, str]:
        """Send a request; return the status and the whole head of the answer."""
        lines = [f"{method} {urlsplit(url).path} HTTP/1.1", "Host: test", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        return int(head.split()[1]), head

    async def upgrade_spdy(self, url: str, *protocols: str) -> None:
        names = [f"X-Stream-Protocol-Version: {protocol}" for protocol in protocols]
        status, head = await self.ask(url, "Connection: Upgrade", "Upgrade: SPDY/3.1", *names)
        assert status == 101, head

    async def upgrade_websocket(self, url: str, protocol: str) -> None:
        status, head = await self.ask(
            url,
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Sec-WebSocket-Protocol: {protocol}",
            method="GET",
        )
        assert status == 101, head

    async def send(self, *sent: bytes) -> None:
        self.writer.write(b"".join(sent))
        await self.writer.drain()

    async def open(self, *names: str) -> dict[str, int]:
        """Open streams by their type; return their numbers."""
        numbers = {name: 2 * i + 1 for i, name in enumerate(names)}
        await self.send(*(self.spdy.open(n, {"streamtype": t}) for t, n in numbers.items()))
        return numbers

    async def read(self) -> bool:
        """Take the next frames of SPDY. Returns False at the end of the connection."""
        got = await self.reader.read(CHUNK)
        for kind, stream, payload in self.spdy.read(got):
            match kind:
                case "data":
                    assert isinstance(payload, bytes)
                    self.outputs[stream] = self.outputs.get(stream, b"") + payload
                case "end":
                    self.ended.add(stream)
                case "reset":
                    assert isinstance(payload, int)
                    self.resets[stream] = payload
                case "reply":
                    self.replied.add(stream)
                case "ping":
                    self.pongs.append(stream)
                case "goaway":
                    self.gone = True
        return bool(got)

    async def read_until(self, stream: int, wanted: bytes) -> None:
        while wanted not in self.outputs.get(stream, b""):
            assert await self.read(), f"the server left: {self.outputs}"

    async def read_to_end(self) -> None:
        while await self.read():
            continue

    async def messages(self) -> list[tuple[int, bytes]]:
        """Return the WebSocket messages up to the server's close."""
        answer = b""
        while not answer.endswith(b"\x88\x02\x03\xe8"):
            got = await self.reader.read(CHUNK)
            assert got, f"the server left: {answer!r}"
            answer += got
        return frames.read_messages(answer)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return

    def vanish(self) -> None:
        """Cut the connection off, with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()
