# SPDX-License-Identifier: Apache-2.0
"""What surrounds every call: an id, the time it takes, one line in the log, a status for an error.

A method that is a plain function only looks at what is in memory: it is answered in the front's
thread, at once. A coroutine function is performed as a task of the event loop (decision 0043).

Calls that change something run as tasks of the server, not of the connection: a client that hangs
up, or whose deadline passes, does not leave half a pod; its retry joins or finds the result. Two
change nothing that outlives them and are cancelled with their client: PullImage, whose caller has
no other way to stop it, and ExecSync, whose process ends with its caller.
"""

import asyncio
import contextvars
import inspect
import itertools
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from pycri.cri.front import Call
from pycri.cri.rpc import Code
from pycri.cri.status import code_of, message_of
from pycri.errors import Unsupported
from pycri.logs import Field, Log, request_id

_READING = re.compile(
    r"Version|Status|RuntimeConfig|(PodSandbox|Container|Image)(Status|Stats)|ImageFsInfo"
    r"|(List|Stream)\w+|Exec|Attach|PortForward"
)
"""Calls that change nothing. The last three return a URL; what comes of it is logged by itself."""
_CANCELLED_WITH_CLIENT = ("PullImage", "ExecSync")

_log = Log("cri")
# From anywhere, so that two daemons' do not meet in a log. Not chance for each: to ask the kernel
# for that lets go of the interpreter's lock.
_numbers = itertools.count(secrets.randbits(32))

Ending = Callable[[str], None]
"""Is told, at the end of a call, the name of its gRPC status."""


class Watch(Protocol):
    """Takes note of calls, in whatever thread each is performed."""

    def begin(self, method: str, request: Any, headers: Mapping[str, str]) -> Ending:
        """Take note of a call, in its own context, and return what is to be told of its end."""


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


class Calls:
    """Every method that is served, by its path "/package.Service/Method"."""

    def __init__(self, tasks: asyncio.TaskGroup, watches: Sequence[Watch]) -> None:
        """tasks: the group that owns the calls of the event loop."""
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._watches = watches
        self._running: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Method] = {}

    def add(self, descriptor: ServiceDescriptor, service: object) -> None:
        """Serve what `service` has of the methods of a service; others answer UNIMPLEMENTED."""
        for method in descriptor.methods:
            self._methods[f"/{descriptor.full_name}/{method.name}"] = Method(
                name=method.name,
                parse=message_factory.GetMessageClass(method.input_type).FromString,
                behaviour=getattr(service, method.name, None) or _unserved(method.name),
                streams=method.server_streaming,
            )

    def take(self, call: Call) -> None:
        """Answer a call, or have the loop do it; for the front's thread."""
        method = self._methods.get(call.path)
        if method is None:
            call.end(Code.UNIMPLEMENTED, f"unknown method {call.path}")
            return
        try:
            request = method.parse(call.message)
        except DecodeError:
            call.end(Code.INTERNAL, "the request cannot be read")
            return
        behaviour = method.behaviour
        if inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour):
            self._loop.call_soon_threadsafe(self._begin, method, request, call)
        elif method.streams:
            # A context of its own: others are answered before it is over.
            context = contextvars.copy_context()
            context.run(self._stream_here, method, request, call, context)
        else:
            self._answer_here(method, request, call)

    async def finish(self, deadline: float) -> None:
        """Wait for the calls of the loop until `deadline`, then cancel them.

        deadline: on the event loop's clock. What is cut short is undone by the next start.
        """
        if self._running:
            left = max(0.0, deadline - self._loop.time())
            _, late = await asyncio.wait(self._running, timeout=left)
            for task in late:
                task.cancel()

    # in the front's thread

    def _answer_here(self, method: Method, request: Any, call: Call) -> None:
        account = _Account(method.name, request, call, self._watches)
        try:
            response = method.behaviour(request)
            account.done(response, _serialize(response))
        except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
            account.failed(error)

    def _stream_here(
        self, method: Method, request: Any, call: Call, context: contextvars.Context
    ) -> None:
        account = _Account(method.name, request, call, self._watches)
        messages: Generator[Any, None, None] = method.behaviour(request)

        def send() -> None:
            """Send as much as the client takes; called again when it has taken that."""
            try:
                for message in messages:
                    call.write(_serialize(message))
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

    # in the event loop

    def _begin(self, method: Method, request: Any, call: Call) -> None:
        if call.gone and method.ends_with_client:
            return
        work = self._stream if method.streams else self._perform
        task = self._own(work(method, request, call), method.name)
        if call.timeout_s is not None:
            timer = self._loop.call_later(call.timeout_s, _expire, method, call, task)
            task.add_done_callback(lambda _: timer.cancel())
        if method.ends_with_client:
            call.tell_gone(partial(self._soon, task.cancel))

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _perform(self, method: Method, request: Any, call: Call) -> None:
        account = _Account(method.name, request, call, self._watches)
        try:
            response = await method.behaviour(request)
            account.done(response, _serialize(response))
        except asyncio.CancelledError:
            account.cancelled()
            raise
        except Exception as error:  # noqa: BLE001  the RPC edge, as above
            account.failed(error)

    async def _stream(self, method: Method, request: Any, call: Call) -> None:
        account = _Account(method.name, request, call, self._watches)
        messages: AsyncGenerator[Any, None] = method.behaviour(request)
        try:
            async with aclosing(messages):
                async for message in messages:
                    if message is None:
                        call.begin()
                    else:
                        call.write(_serialize(message))
                        await self._drained(call)
            account.done()
        except asyncio.CancelledError:
            account.cancelled()
            raise
        except Exception as error:  # noqa: BLE001  the RPC edge, as above
            account.failed(error)

    def _soon(self, action: Callable[[], object]) -> None:
        """Have the loop do something; from the front's thread."""
        self._loop.call_soon_threadsafe(action)

    async def _drained(self, call: Call) -> None:
        """Wait until the client has taken what was sent."""
        drained = asyncio.Event()
        if call.must_wait(partial(self._soon, drained.set)):
            await drained.wait()


class _Account:
    """What is noted of a call: one line in the log, at debug if it changed nothing; its watches."""

    def __init__(self, method: str, request: Any, call: Call, watches: Sequence[Watch]) -> None:
        request_id.set(f"{next(_numbers) & 0xFFFFFFFF:08x}")
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


def _expire(method: Method, call: Call, task: asyncio.Task[None]) -> None:
    """The caller does not wait any longer."""
    call.end(Code.DEADLINE_EXCEEDED, "the caller's deadline has passed")
    if method.ends_with_client:
        task.cancel()


def _unserved(name: str) -> Callable[[Any], Any]:
    """Stand in for a method that a service has not."""

    def call(request: Any) -> Any:
        raise Unsupported(f"{name} is not implemented yet")

    return call


def _serialize(response: Any) -> bytes:
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
