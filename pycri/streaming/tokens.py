# SPDX-License-Identifier: Apache-2.0
"""One-time tokens: what an URL was made for, until it is used or too old."""

import secrets
import threading
import time
from collections.abc import Callable

from pycri.errors import OutOfResources
from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest

Request = ExecRequest | AttachRequest | PortForwardRequest

LIFETIME_S = 60.0
MOST_WAITING = 1000
_TOKEN_BYTES = 16


class Tokens:
    """Requests by token. Used by the daemon's thread and the server's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[float, Request]] = {}  # oldest first

    def issue(self, request: Request) -> str:
        """Return a token for the request. Raises OutOfResources while too many wait."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._lock:
            self._drop_expired()
            if len(self._waiting) >= MOST_WAITING:
                raise OutOfResources(f"{MOST_WAITING} streaming URLs wait to be used")
            self._waiting[token] = (self._clock() + LIFETIME_S, request)
        return token

    def redeem(self, token: str) -> Request | None:
        """Return the request once; None for what is unknown, used or too old."""
        with self._lock:
            self._drop_expired()
            _, request = self._waiting.pop(token, (0.0, None))
        return request

    def _drop_expired(self) -> None:
        now = self._clock()
        for token, (deadline, _) in list(self._waiting.items()):
            if deadline > now:
                break
            del self._waiting[token]
