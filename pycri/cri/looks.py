# SPDX-License-Identifier: Apache-2.0
"""Answering who only looks, and what surrounds every call: an id, its time, a line in the log.

A method that is a plain function only looks at what is in memory: it is answered at once, in the
thread that takes the call.
"""

import contextvars
import itertools
import re
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from pycri.cri.call import Call
from pycri.cri.rpc import Code
from pycri.cri.status import code_of, message_of
from pycri.logs import Field, Log, request_id

_READING = re.compile(
    r"Version|Status|RuntimeConfig|(PodSandbox|Container|Image)(Status|Stats)|ImageFsInfo"
    r"|(List|Stream)\w+|Exec|Attach|PortForward"
)
"""Calls that change nothing. The last three return a URL; what comes of it is logged by itself."""
_CANCELLED_WITH_CLIENT = ("PullImage", "ExecSync")

_log = Log("cri")

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


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One method of a service. parse: the request, from its bytes.

    behaviour: called with the request; returns a message or its bytes, or yields such. None, from a
    stream: it has begun.
    """

    name: str
    parse: Callable[[bytes], Any]
    behaviour: Callable[[Any], Any]
    streams: bool

    @property
    def ends_with_client(self) -> bool:
        """Whether nothing is left to do if the client is gone."""
        return self.streams or is_reading(self.name) or self.name in _CANCELLED_WITH_CLIENT


class Looks:
    """Methods that only look, by their path "/package.Service/Method"."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches
        self._methods: dict[str, Method] = {}
        # From anywhere, so that two processes' do not meet in a log. Not chance for each: to ask
        # the kernel for that lets go of the interpreter's lock.
        self._numbers = itertools.count(secrets.randbits(32))

    def add(self, descriptor: ServiceDescriptor, service: object) -> None:
        """Serve what `service` has of the methods of a service."""
        for method in descriptor.methods:
            if behaviour := self._behaviour(service, method.name):
                self._methods[f"/{descriptor.full_name}/{method.name}"] = Method(
                    name=method.name,
                    parse=message_factory.GetMessageClass(method.input_type).FromString,
                    behaviour=behaviour,
                    streams=method.server_streaming,
                )

    def _behaviour(self, service: object, name: str) -> Callable[[Any], Any] | None:
        """Return what answers calls of a method; None where nothing is to be said to them."""
        behaviour: Callable[[Any], Any] | None = getattr(service, name, None)
        return behaviour

    def serves(self, path: str) -> bool:
        """Tell whether calls with this path are answered here."""
        return path in self._methods

    def take(self, call: Call) -> None:
        """Answer a call, or refuse it."""
        method = self._methods.get(call.path)
        if method is None:
            call.end(Code.UNIMPLEMENTED, f"unknown method {call.path}")
            return
        try:
            request = method.parse(call.message)
        except DecodeError:
            call.end(Code.INTERNAL, "the request cannot be read")
            return
        self._perform(method, request, call)

    def _perform(self, method: Method, request: Any, call: Call) -> None:
        if method.streams:
            # A context of its own: others are answered before it is over.
            context = contextvars.copy_context()
            context.run(self._stream_here, method, request, call, context)
        else:
            self._answer_here(method, request, call)

    def _account(self, method: Method, request: Any, call: Call) -> "Account":
        request_id.set(f"{next(self._numbers) & 0xFFFFFFFF:08x}")
        return Account(method.name, request, call, self._watches)

    def _answer_here(self, method: Method, request: Any, call: Call) -> None:
        account = self._account(method, request, call)
        try:
            response = method.behaviour(request)
            account.done(response, serialize(response))
        except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
            account.failed(error)

    def _stream_here(
        self, method: Method, request: Any, call: Call, context: contextvars.Context
    ) -> None:
        account = self._account(method, request, call)
        messages: Generator[Any, None, None] = method.behaviour(request)

        def send() -> None:
            """Send as much as the client takes; called again when it has taken that."""
            try:
                for message in messages:
                    call.write(serialize(message))
                    if call.must_wait(lambda: context.run(send)):
                        return
                    if call.gone:
                        messages.close()
                        account.cancelled()
                        return
            except Exception as error:  # noqa: BLE001  the RPC edge, as above
                account.failed(error)
            else:
                account.done()

        send()


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


def serialize(response: Any) -> bytes:
    """Return the bytes of an answer, which may be that already."""
    return response if isinstance(response, bytes) else response.SerializeToString()


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
