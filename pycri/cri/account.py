# SPDX-License-Identifier: Apache-2.0
"""What surrounds every call: its time, a line in the log, a status for an error, its watches."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from pycri.cri.call import Call
from pycri.cri.rpc import Code
from pycri.cri.status import code_of, message_of
from pycri.logs import Field, Log

_log = Log("cri")

_READING = re.compile(
    r"Version|Status|RuntimeConfig|(PodSandbox|Container|Image)(Status|Stats)|ImageFsInfo"
    r"|(List|Stream)\w+|Exec|Attach|PortForward"
)
"""Calls that change nothing. The last three return a URL; what comes of it is logged by itself."""

Ending = Callable[[str], None]
"""Is told, at the end of a call, the name of its gRPC status."""


class Look(msgspec.Struct, frozen=True, array_like=True, tag="look"):
    """A call that another process has answered. start_ns: since the epoch.

    code: the name of its gRPC status. subject: whom it was about. request: its id in the log.
    """

    method: str
    code: str
    start_ns: int
    duration_ns: int
    headers: dict[str, str]
    subject: dict[str, str]
    request: str


class Watch(Protocol):
    """Takes note of calls, in whatever thread each is performed."""

    def begin(self, method: str, request: Any, headers: Mapping[str, str]) -> Ending:
        """Take note of a call, in its own context, and return what is to be told of its end."""


class Observer(Watch, Protocol):
    """Takes note also of what the front answers."""

    def looked(self, look: Look) -> None:
        """Take note of a call that is over."""


class Account:
    """What is noted of a call: one line in the log, at debug if it changed nothing; its watches."""

    def __init__(self, method: str, request: Any, call: Call, watches: Sequence[Watch]) -> None:
        self._method = method
        self._request = request
        self._call = call
        self._start = time.monotonic()
        self._endings = [watch.begin(method, request, call.headers) for watch in watches]

    def done(self, response: Any = None, data: bytes | None = None) -> None:
        """Send the answer, or the end of a stream; the line is written when that has been done."""
        self._end(Code.OK)
        if data is None:
            self._call.end()
        else:
            self._call.answer(data)
        if not is_reading(self._method):
            _log.info("call", **(self._fields() | subject(response)))
        elif _log.shows_debug():
            _log.debug("call", **(self._fields() | subject(response)))

    def cancelled(self) -> None:
        """The client is gone, or the server stops."""
        self._end(Code.CANCELLED)
        self._call.end(Code.CANCELLED, "the call was cancelled")
        _log.info("call cancelled", **self._fields())

    def failed(self, error: Exception) -> None:
        """Answer with the error."""
        code, text = code_of(error), message_of(error)
        self._end(code)
        self._call.end(code, text)
        if code is Code.INTERNAL:
            _log.exception("call failed", error, **self._fields())
            return
        write = _log.debug if is_reading(self._method) else _log.info
        write("call refused", **self._fields(), code=code.name, error=text)

    def _end(self, code: Code) -> None:
        for end in self._endings:
            end(code.name)

    def _fields(self) -> dict[str, Field]:
        ms = (time.monotonic() - self._start) * 1000
        return {"method": self._method, "ms": ms, **subject(self._request)}


def is_reading(method: str) -> bool:
    """Tell whether the method changes nothing; such calls are logged at debug."""
    return _READING.fullmatch(method) is not None


def subject(message: Any) -> dict[str, Field]:
    """Return whom a request or response is about, as far as it says so by name."""
    if message is None or isinstance(message, bytes):
        return {}
    names = message.DESCRIPTOR.fields_by_name
    found: dict[str, Field] = {}
    for name, field in (("pod_sandbox_id", "pod"), ("container_id", "container")):
        if name in names and (value := getattr(message, name)):
            found[field] = value
    if "image" in names and message.DESCRIPTOR.name.endswith("Request"):
        found["image"] = message.image.image
    if "config" in names and message.config.HasField("metadata"):
        found["name"] = message.config.metadata.name
    return found
