# SPDX-License-Identifier: Apache-2.0
"""One call: what is asked, and the way its answer takes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from pycri.cri.rpc import Code, parse_timeout


class End(NamedTuple):
    """How a call ended: a gRPC status."""

    code: Code = Code.OK
    text: str = ""


class Answerer(Protocol):
    """Brings answers to the client of a call, from any thread."""

    def send(self, call: "Call", messages: list[bytes], end: End | None) -> None:
        """Send a part of a call's answer."""

    def watch_gone(self, call: "Call", callback: Callable[[], None]) -> bool:
        """Note whom to tell; return True if the client is gone already."""

    def watch_drained(self, call: "Call", callback: Callable[[], None]) -> bool:
        """Note whom to tell once nothing waits; return False if nothing does."""


class Call:
    """For any thread. An answer to a client that is gone goes nowhere.

    path: "/package.Service/Method". headers: of the request, names in lower case.
    timeout_s: how long the caller waits, if it says so. number: its answerer's.
    """

    def __init__(
        self,
        answerer: Answerer,
        number: int,
        headers: Mapping[str, str],
        message: bytes,
    ) -> None:
        self.path = headers.get(":path", "")
        self.headers = headers
        self.message = message
        self.timeout_s = parse_timeout(headers)
        self.gone = False
        self.number = number
        self.begun = self.ended = False
        self.when_gone: Callable[[], None] | None = None
        self.when_drained: Callable[[], None] | None = None
        self._answerer = answerer

    def begin(self) -> None:
        """Let the client know that it is served."""
        self._answerer.send(self, [], None)

    def write(self, message: bytes) -> None:
        """Send a message of the answer."""
        self._answerer.send(self, [message], None)

    def answer(self, message: bytes) -> None:
        """Send the only message, and the good end."""
        self._answerer.send(self, [message], End())

    def end(self, code: Code = Code.OK, text: str = "") -> None:
        """End the answer; only the first end counts."""
        self._answerer.send(self, [], End(code, text))

    def send(self, messages: list[bytes], end: End | None) -> None:
        """Pass on a part of the answer."""
        self._answerer.send(self, messages, end)

    def tell_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once the client is gone, unless the answer ended before."""
        if self._answerer.watch_gone(self, callback):
            callback()

    def must_wait(self, callback: Callable[[], None]) -> bool:
        """Tell whether the client is behind; then `callback` is called when it is not, or gone."""
        return self._answerer.watch_drained(self, callback)
