# SPDX-License-Identifier: Apache-2.0
"""What surrounds every call: an id, the time it takes, one line in the log, a status for an error.

Calls that change something run as tasks of the server, not of the connection: a client that hangs
up, or whose deadline passes, does not leave half a pod; its retry joins or finds the result. Two
change nothing that outlives them and are cancelled with their client: PullImage, whose caller has
no other way to stop it, and ExecSync, whose process ends with its caller.

Handlers are wrapped once, when they are registered, instead of by an interceptor at each call, and
may answer with bytes that are encoded already (decision 0035).
"""

import asyncio
import inspect
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast

import grpc  # noqa: TID251  the edge is its home

from pycri.cri.status import code_of, message_of
from pycri.errors import Unsupported
from pycri.logs import Field, Log, request_id

_READING = re.compile(
    r"Version|Status|RuntimeConfig|(PodSandbox|Container|Image)(Status|Stats)|ImageFsInfo"
    r"|(List|Stream)\w+"
)
"""Calls that change nothing."""
_CANCELLED_WITH_CLIENT = ("PullImage", "ExecSync")

_log = Log("cri")

Handler = Any
"""A grpc.RpcMethodHandler, which is generic for type checkers only."""
Behaviour = Callable[[Any, Any], Awaitable[Any]]
StreamBehaviour = Callable[[Any, Any], AsyncIterator[Any]]


Ending = Callable[[str], None]
"""Is told, at the end of a call, the name of its gRPC status."""


class Watch(Protocol):
    """Takes note of calls."""

    def begin(self, method: str, request: Any, context: Any) -> Ending:
        """Take note of a call, in its own task, and return what is to be told of its end."""


class Failure:
    """An error on its way from the call's task to its client."""

    def __init__(self, error: Exception) -> None:
        self.code = code_of(error)
        self.message = message_of(error)


class Calls(grpc.GenericRpcHandler):  # type: ignore[type-arg] # not generic at run time
    """Every method that was registered, by its path "/package.Service/Method".

    tasks: the group that owns the changing calls. An instance stands in for a server where the
    generated code registers handlers.
    """

    def __init__(self, tasks: asyncio.TaskGroup, watches: Sequence[Watch]) -> None:
        self._tasks = tasks
        self._watches = watches
        self._running: set[asyncio.Task[Any]] = set()
        self._handlers: dict[str, Handler] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Take a service's handlers, as the generated code gives them, and wrap each."""
        for method, handler in handlers.items():
            self._handlers[f"/{service}/{method}"] = self._wrapped(method, handler)

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Take no notice: these are the same handlers again."""

    def service(self, handler_call_details: Any) -> Handler | None:
        """Return the handler of a call; None for a method nobody has."""
        return self._handlers.get(handler_call_details.method)

    async def finish(self, deadline: float) -> None:
        """Wait for changing calls whose clients are gone until `deadline`, then cancel them.

        deadline: on the event loop's clock. What is cut short is undone by the next start.
        """
        if self._running:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            _, late = await asyncio.wait(self._running, timeout=left)
            for task in late:
                task.cancel()

    def _wrapped(self, method: str, handler: Handler) -> Handler:
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(method, cast(StreamBehaviour, handler.unary_stream)),
                request_deserializer=handler.request_deserializer,
                response_serializer=_serialize,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._wrap(method, cast(Behaviour, handler.unary_unary)),
            request_deserializer=handler.request_deserializer,
            response_serializer=_serialize,
        )

    def _wrap(self, method: str, behaviour: Behaviour) -> Behaviour:
        """Return the call with everything around it."""
        served = behaviour if inspect.iscoroutinefunction(behaviour) else _unserved(method)
        owned = not is_reading(method) and method not in _CANCELLED_WITH_CLIENT

        async def call(request: Any, context: Any) -> Any:
            request_id.set(secrets.token_hex(4))
            work = self._perform(method, served, request, context)
            outcome = await (asyncio.shield(self._own(work, method)) if owned else work)
            if isinstance(outcome, Failure):
                await context.abort(outcome.code, outcome.message)
            return outcome

        return call

    def _own(self, work: Coroutine[Any, Any, Any], method: str) -> asyncio.Task[Any]:
        task = self._tasks.create_task(work, name=method)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _perform(self, method: str, behaviour: Behaviour, request: Any, context: Any) -> Any:
        """Return the response or the Failure, having logged the one line."""
        line = _Line(method, request)
        endings = [watch.begin(method, request, context) for watch in self._watches]
        code = "CANCELLED"
        try:
            response = await behaviour(request, context)
        except asyncio.CancelledError:
            line.cancelled("call cancelled")
            raise
        except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
            failure = line.failed(error)
            code = failure.code.name
            return failure
        else:
            code = "OK"
            line.done("call", response)
            return response
        finally:
            for end in endings:
                end(code)

    def _wrap_stream(self, method: str, behaviour: StreamBehaviour) -> StreamBehaviour:
        """Return the stream with everything around it; it ends with its client."""
        served = behaviour if inspect.isasyncgenfunction(behaviour) else _unserved_stream(method)

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            request_id.set(secrets.token_hex(4))
            line = _Line(method, request)
            endings = [watch.begin(method, request, context) for watch in self._watches]
            code = "CANCELLED"
            try:
                async with aclosing(served(request, context)) as items:  # type: ignore[type-var]
                    async for item in items:
                        yield item
                code = "OK"
                line.done("stream", None)
            except (asyncio.CancelledError, GeneratorExit):
                line.cancelled("stream cancelled")
                raise
            except Exception as error:  # noqa: BLE001  the RPC edge, as above
                failure = line.failed(error)
                code = failure.code.name
                await context.abort(failure.code, failure.message)
            finally:
                for end in endings:
                    end(code)

        return call


class _Line:
    """The one line of a call in the log: at debug if it changed nothing."""

    def __init__(self, method: str, request: Any) -> None:
        self._method = method
        self._request = request
        self._start = time.monotonic()

    def done(self, event: str, response: Any) -> None:
        if is_reading(self._method):
            if _log.shows_debug():
                _log.debug(event, **(self._fields() | subject(response)))
        else:
            _log.info(event, **(self._fields() | subject(response)))

    def cancelled(self, event: str) -> None:
        _log.info(event, **self._fields())

    def failed(self, error: Exception) -> Failure:
        failure = Failure(error)
        if failure.code is grpc.StatusCode.INTERNAL:
            _log.exception("call failed", error, **self._fields())
            return failure
        write = _log.debug if is_reading(self._method) else _log.info
        write("call refused", **self._fields(), code=failure.code.name, error=failure.message)
        return failure

    def _fields(self) -> dict[str, Field]:
        ms = (time.monotonic() - self._start) * 1000
        return {"method": self._method, "ms": ms, **subject(self._request)}


def is_reading(method: str) -> bool:
    """Tell whether the method changes nothing; such calls are logged at debug."""
    return _READING.fullmatch(method) is not None


def _unserved(method: str) -> Behaviour:
    """Stand in for a method the generated servicer only names."""

    async def call(request: Any, context: Any) -> Any:
        raise Unsupported(f"{method} is not implemented yet")

    return call


def _unserved_stream(method: str) -> StreamBehaviour:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        raise Unsupported(f"{method} is not implemented yet")
        yield

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
