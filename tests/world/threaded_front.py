# SPDX-License-Identifier: Apache-2.0
"""The front in a thread of this process: the server's tests need no process of their own."""

import socket
import threading
from typing import Self

from pycri.cri.calls import Calls
from pycri.cri.front import Front
from pycri.cri.front_process import MAX_MESSAGE_BYTES


class ThreadedFront:
    """Who talks to clients, as `pycri.cri.server.Clients`."""

    def __init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()  # that nobody came to serve

    def start(self, calls: Calls) -> None:
        self._front = Front(calls.take, max_message_bytes=MAX_MESSAGE_BYTES)
        self._front.listen(self.listener)
        self._thread = threading.Thread(target=self._front.run, name="front", daemon=True)
        self._thread.start()

    def go_away(self) -> None:
        self._front.go_away()

    def finish(self, within_s: float) -> None:
        self._front.finish(within_s)
        self._thread.join()
