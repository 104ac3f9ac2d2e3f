# SPDX-License-Identifier: Apache-2.0
"""Receive clients: TLS, the HTTP request, its token, its protocol; then its session.

A request is answered 404 if its token is unknown, used or too old, 405 if the method is neither
GET nor POST, 400 if it asks for no upgrade we know, 403 if the sub-protocols do not meet. A token
is used up by the first request that names it, good or bad. Nothing that a client does ends the
server.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine
from typing import Any

from pycri.errors import ProtocolViolation
from pycri.logs import Field, Log
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest
from pycri.streaming import channels, ports
from pycri.streaming.channels import SpdyChannels, WebSocketChannels
from pycri.streaming.commands import CommandSession
from pycri.streaming.context import Context, cancel
from pycri.streaming.forwards import ForwardSession
from pycri.streaming.ports import PortChannels, SpdyPorts, TunnelledPorts, WebSocketPorts
from pycri.streaming.tokens import Request, Tokens
from pycri.streaming.upgrade import Refusal, Transport, UpgradeReader, UpgradeRequest
from pycri.streaming.wire import Wire, wait_readable

KINDS: dict[str, type[ExecRequest] | type[AttachRequest] | type[PortForwardRequest]] = {
    "exec": ExecRequest,
    "attach": AttachRequest,
    "portforward": PortForwardRequest,
}
MOST_CONNECTIONS = 2000
"""Clients at once; others are cut off."""
_LINGER_S = 5.0
_HURRY_S = 0.5
"""How long a client may take to close its end after us, and while the server stops."""
_STOP_S = 8.0
_ACCEPT_PAUSE_S = 0.2

_log = Log("streaming")

Session = CommandSession | ForwardSession


class Reception:
    """tls: None for plain connections."""

    def __init__(self, tokens: Tokens, tls: ssl.SSLContext | None, context: Context) -> None:
        self._tokens = tokens
        self._tls = tls
        self._context = context
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Serve until the context says to stop; then let sessions say good-bye."""
        accepting = asyncio.create_task(self._accept(listener))
        await self._context.stopping.wait()
        await cancel(accepting)
        if self._clients:
            _, late = await asyncio.wait(self._clients, timeout=_STOP_S)
            await cancel(*late)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await wait_readable(listener.fileno())
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # no descriptors; the client waits in the backlog
                _log.error("cannot accept a client", error=str(error))
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if len(self._clients) >= MOST_CONNECTIONS:
                sock.close()
                continue
            task = asyncio.create_task(self._receive(sock))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _receive(self, sock: socket.socket) -> None:
        """Serve one client to the end of its connection."""
        wire: Wire | None = None
        try:
            wire = Wire(sock, self._context.hangups)
            await self._converse(wire)
            stopping = self._context.stopping.is_set()
            await wire.finish(self._context.buffers, _HURRY_S if stopping else _LINGER_S)
        except OSError as error:
            _log.debug("client lost", error=str(error))
        except Exception as error:  # noqa: BLE001  the edge: one client must not end the server
            _log.exception("session failed", error)
        finally:
            if wire is not None:
                wire.close()
            sock.close()

    async def _converse(self, wire: Wire) -> None:
        reader = UpgradeReader()
        try:
            async with asyncio.timeout(self._context.creation_timeout_s):
                if self._tls is not None:
                    await wire.secure(self._tls)
                http = await self._read_request(wire, reader)
            asked, protocol = self._redeem(http)
            session = self._session(wire, http.transport(), protocol, asked)
            answer = reader.switch(http.acceptance(protocol))
        except Refusal as refusal:
            _log.info("request refused", status=refusal.status, reason=str(refusal))
            await wire.send(reader.refuse(refusal))
            return
        await _account(session.run(answer, reader.behind()), asked, protocol)

    async def _read_request(self, wire: Wire, reader: UpgradeReader) -> UpgradeRequest:
        with self._context.buffers.borrowed() as buffer:
            while size := await wire.receive(buffer):
                try:
                    if http := reader.receive(bytes(buffer[:size])):
                        return http
                except ProtocolViolation as error:
                    raise Refusal(400, str(error)) from error
        raise ConnectionResetError("the client left in its request")

    def _redeem(self, http: UpgradeRequest) -> tuple[Request, str]:
        """Return what the request's token stands for, and the sub-protocol. Raises Refusal."""
        kind, _, token = http.path.lstrip("/").partition("/")
        if http.method not in ("GET", "POST"):
            raise Refusal(405, f"{http.method} is not allowed", [("Allow", "GET, POST")])
        asked = self._tokens.redeem(token)
        if asked is None or not isinstance(asked, KINDS.get(kind, ())):
            raise Refusal(404, "there is no such session, or its URL was used or is too old")
        return asked, http.choose(_protocols(asked, http.transport()))

    def _session(self, wire: Wire, transport: Transport, protocol: str, asked: Request) -> Session:
        text = "base64" in protocol
        if isinstance(asked, PortForwardRequest):
            return ForwardSession(
                wire, _port_channels(asked, transport, protocol), asked, self._context
            )
        if transport is Transport.SPDY:
            spdy = SpdyChannels(asked, channels.SPDY_PROTOCOLS[protocol])
            return CommandSession(wire, spdy, asked, self._context)
        version = channels.WEBSOCKET_PROTOCOLS[protocol]
        return CommandSession(
            wire, WebSocketChannels(asked, version, text=text), asked, self._context
        )


def _protocols(asked: Request, transport: Transport) -> tuple[str, ...]:
    if isinstance(asked, PortForwardRequest):
        return (ports.SPDY_PROTOCOL,) if transport is Transport.SPDY else ports.WEBSOCKET_PROTOCOLS
    spdy = transport is Transport.SPDY
    return tuple(channels.SPDY_PROTOCOLS if spdy else channels.WEBSOCKET_PROTOCOLS)


def _port_channels(asked: PortForwardRequest, transport: Transport, protocol: str) -> PortChannels:
    if transport is Transport.SPDY:
        return SpdyPorts()
    if protocol == ports.TUNNEL_PROTOCOL:
        return TunnelledPorts()
    text = "base64" in protocol
    most = ports.most_ports(text=text)
    if not 1 <= len(asked.port) <= most:
        reason = f"{len(asked.port)} ports were asked for, this protocol carries 1 to {most}"
        raise Refusal(400, reason)
    return WebSocketPorts(asked.port, text=text)


async def _account(session: Coroutine[Any, Any, str], asked: Request, protocol: str) -> None:
    """Serve a session, and log how it ended."""
    start = time.monotonic()
    fields: dict[str, Field] = {"protocol": protocol}
    if isinstance(asked, PortForwardRequest):
        fields["pod"] = asked.pod_id
    else:
        fields["container"] = asked.container_id
    try:
        end = await session
    except OSError as error:
        end = f"the client was lost: {error}"
    ms = (time.monotonic() - start) * 1000
    _log.info("session ended", kind=type(asked).__name__, end=end, ms=ms, **fields)
