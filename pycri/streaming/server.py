# SPDX-License-Identifier: Apache-2.0
"""The streaming server as the daemon has it: URLs for the CRI's callers, and a thread.

    SCHEME://ADDRESS:PORT/{exec,attach,portforward}/TOKEN

It runs in a thread with an event loop of its own, so that a gigabyte that flows does not hold up
the daemon's calls; what it asks of the daemon (`Sessions`, `Process`) runs in the daemon's loop.
"""

import asyncio
import ipaddress
import socket
import ssl
import threading

from pycri.config import StreamingSettings
from pycri.errors import InvalidSettings, Unavailable
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest
from pycri.streaming.context import Context
from pycri.streaming.interface import Sessions
from pycri.streaming.reception import KINDS, Reception
from pycri.streaming.tokens import Tokens
from pycri.streaming.wire import Buffers, HangupWatch

_BACKLOG = 512


class StreamingServer:
    """Start, use and close it in the daemon's event loop."""

    def __init__(self, settings: StreamingSettings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._tokens = Tokens()
        self._base = ""
        self._thread: threading.Thread | None = None
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def url(self, request: ExecRequest | AttachRequest | PortForwardRequest) -> str:
        """Return the one-time URL of a session. Raises what Sessions.admit does, OutOfResources."""
        match request:  # `admit` returns the type it is given, which a union hides
            case ExecRequest():
                token = self._tokens.issue(self._sessions.admit(request))
            case AttachRequest():
                token = self._tokens.issue(self._sessions.admit(request))
            case PortForwardRequest():
                token = self._tokens.issue(self._sessions.admit(request))
        kind = next(name for name, struct in KINDS.items() if isinstance(request, struct))
        return f"{self._base}/{kind}/{token}"

    async def start(self) -> None:
        """Listen and serve. Raises InvalidSettings (certificate), Unavailable (address)."""
        tls = _tls_context(self._settings)
        listener = _listen(self._settings)
        self._base = f"{'https' if tls else 'http'}://{_address(listener)}"
        daemon = asyncio.get_running_loop()
        started = asyncio.Event()
        work = self._serve(listener, tls, daemon, started)
        self._thread = threading.Thread(target=asyncio.run, args=(work,), name="streaming")
        self._thread.start()
        await started.wait()

    async def close(self) -> None:
        """End every session with an error, and the thread. New URLs must not be asked for."""
        if self._thread is not None and self._running is not None:
            loop, stopping = self._running
            loop.call_soon_threadsafe(stopping.set)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def _serve(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        daemon: asyncio.AbstractEventLoop,
        started: asyncio.Event,
    ) -> None:
        """Run in the thread until `close`."""
        context = Context(
            sessions=self._sessions,
            daemon=daemon,
            buffers=Buffers(),
            hangups=HangupWatch(),
            stopping=asyncio.Event(),
            creation_timeout_s=self._settings.creation_timeout_s,
            idle_timeout_s=self._settings.idle_timeout_s,
        )
        self._running = asyncio.get_running_loop(), context.stopping
        daemon.call_soon_threadsafe(started.set)
        with listener:
            await Reception(self._tokens, tls, context).serve(listener)
        context.hangups.close()


def _listen(settings: StreamingSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    address = (settings.address, settings.port)
    try:
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        text = f"the streaming server cannot listen on {address[0]} port {address[1]}"
        raise Unavailable(f"{text}: {error.strerror}") from error
    listener.settimeout(0)
    return listener


def _address(listener: socket.socket) -> str:
    """Return where callers on this node reach the listener, as in a URL."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _tls_context(settings: StreamingSettings) -> ssl.SSLContext | None:
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:
        raise InvalidSettings(f"streaming.tls_cert, streaming.tls_key: {error}") from error
    return context
