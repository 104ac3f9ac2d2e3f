# SPDX-License-Identifier: Apache-2.0
"""A local port whose connections go through a port-forward session, as `kubectl port-forward`."""

import socket
import threading
from contextlib import suppress
from typing import Self

from tests.world.commands import Forwarded, SpdyPorts
from tests.world.wires import CHUNK


class Forwarder:
    """Listens on 127.0.0.1, `port`, for as long as the context lasts. Takes the session."""

    def __init__(self, ports: SpdyPorts, target: int) -> None:
        self._ports = ports
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: dict[socket.socket, Forwarded] = {}
        self._sending: set[socket.socket] = set()
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        self._wake.close()
        self._server.close()
        for sock in self._open:
            sock.close()
        self._ports.close()

    def _serve(self) -> None:
        while True:
            ready = self._ports.wait_readable([self._server, self._wake, *self._sending])
            if self._wake in ready:
                return
            if self._server in ready:
                sock, _ = self._server.accept()
                self._open[sock] = self._ports.connect(self._target)
                self._sending.add(sock)
            for sock in self._sending & ready:
                self._pass_on(sock)
            self._deliver()

    def _pass_on(self, sock: socket.socket) -> None:
        data = sock.recv(CHUNK)
        if data:
            self._open[sock].data.write(data)
        else:
            self._sending.remove(sock)
            self._open[sock].data.close()

    def _deliver(self) -> None:
        for sock, forwarded in list(self._open.items()):
            data = forwarded.data.take()
            # Our clients always read, so this waits for nobody.
            with suppress(ConnectionError):
                sock.sendall(data)
            if forwarded.data.ended:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                if sock not in self._sending:
                    del self._open[sock]
                    sock.close()
