# SPDX-License-Identifier: Apache-2.0
"""The gRPC server on its unix socket, and the one interceptor every call passes.

The interceptor gives each call an id, times it, logs one line, and turns an exception into a
status. Calls that change something run as tasks of the server, not of the connection: a client
that hangs up, or whose deadline passes, does not leave half a pod; its retry joins or finds the
result. Two change nothing that outlives them and are cancelled with their client: PullImage, whose
caller has no other way to stop it, and ExecSync, whose process ends with its caller.
"""

import asyncio
import inspect
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc  # noqa: TID251  the edge is its home

from pycri.cri.api import node_v1_pb2_grpc, runtime_v1_pb2_grpc
from pycri.cri.image_service import ImageService
from pycri.cri.node_service import NodeService
from pycri.cri.runtime_service import RuntimeService
from pycri.cri.status import code_of, message_of
from pycri.errors import Unsupported, WrongState
from pycri.logs import Field, Log, request_id

MAX_MESSAGE_BYTES = 16 << 20
"""What the kubelet takes, too (cri-client, maxMsgSize)."""
SOCKET_MODE = 0o660

_READING = re.compile(
    r"Version|Status|RuntimeConfig|(PodSandbox|Container|Image)(Status|Stats)|ImageFsInfo"
    r"|(List|Stream)\w+"
)
"""Calls that change nothing."""
_CANCELLED_WITH_CLIENT = ("PullImage", "ExecSync")

_log = Log("cri")

Behaviour = Callable[[Any, Any], Awaitable[Any]]
StreamBehaviour = Callable[[Any, Any], AsyncIterator[Any]]


class Failure:
    """An error on its way from the call's task to its client."""

    def __init__(self, error: Exception) -> None:
        self.code = code_of(error)
        self.message = message_of(error)


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # not generic at run time
    """Passes every call; `tasks` is the group that owns the changing ones."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self, deadline: float) -> None:
        """Wait for changing calls whose clients are gone until `deadline`, then cancel them.

        deadline: on the event loop's clock. What is cut short is undone by the next start.
        """
        if self._running:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            _, late = await asyncio.wait(self._running, timeout=left)
            for task in late:
                task.cancel()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the handler wrapped; None, for a method nobody has, stays None."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method.rpartition("/")[2]
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _wrap_stream(method, handler.unary_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._wrap(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrap(self, method: str, behaviour: Behaviour) -> Behaviour:
        """Return the call with everything around it."""
        served = behaviour if inspect.iscoroutinefunction(behaviour) else _unserved(method)
        owned = not is_reading(method) and method not in _CANCELLED_WITH_CLIENT

        async def call(request: Any, context: Any) -> Any:
            request_id.set(secrets.token_hex(4))
            work = _perform(method, served, request, context)
            if owned:
                outcome = await asyncio.shield(self._own(work, method))
            else:
                outcome = await work
            if isinstance(outcome, Failure):
                await context.abort(outcome.code, outcome.message)
            return outcome

        return call

    def _own(self, work: Coroutine[Any, Any, Any], method: str) -> asyncio.Task[Any]:
        task = self._tasks.create_task(work, name=method)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def is_reading(method: str) -> bool:
    """Tell whether the method changes nothing; such calls are logged at debug."""
    return _READING.fullmatch(method) is not None


def _unserved(method: str) -> Behaviour:
    """Stand in for a method the generated servicer only names."""

    async def call(request: Any, context: Any) -> Any:
        raise Unsupported(f"{method} is not implemented yet")

    return call


def _wrap_stream(method: str, behaviour: StreamBehaviour) -> StreamBehaviour:
    """Return the stream with everything around it; it ends with its client."""
    served = behaviour if inspect.isasyncgenfunction(behaviour) else _unserved_stream(method)

    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        request_id.set(secrets.token_hex(4))
        start, fields = time.monotonic(), _subject(request)
        try:
            async with aclosing(served(request, context)) as items:  # type: ignore[type-var]
                async for item in items:
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            _log.info("stream cancelled", method=method, ms=_since(start), **fields)
            raise
        except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
            failure = _refused(error, method, start, fields)
            await context.abort(failure.code, failure.message)
        _write(method, "stream", {"ms": _since(start), **fields})

    return call


def _unserved_stream(method: str) -> StreamBehaviour:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        raise Unsupported(f"{method} is not implemented yet")
        yield

    return call


async def _perform(method: str, behaviour: Behaviour, request: Any, context: Any) -> Any:
    """Return the response or the Failure, having logged the one line."""
    start = time.monotonic()
    fields = _subject(request)
    try:
        response = await behaviour(request, context)
    except asyncio.CancelledError:
        _log.info("call cancelled", method=method, ms=_since(start), **fields)
        raise
    except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
        return _refused(error, method, start, fields)
    _write(method, "call", {"ms": _since(start), **fields, **_subject(response)})
    return response


def _refused(error: Exception, method: str, start: float, fields: dict[str, Field]) -> Failure:
    """Log the one line of a call that failed."""
    failure = Failure(error)
    outcome = {"code": failure.code.name, "error": failure.message}
    if failure.code is grpc.StatusCode.INTERNAL:
        _log.exception("call failed", error, method=method, ms=_since(start), **fields)
    else:
        _write(method, "call refused", {"ms": _since(start), **fields, **outcome})
    return failure


def _write(method: str, event: str, fields: dict[str, Field]) -> None:
    write = _log.debug if is_reading(method) else _log.info
    write(event, method=method, **fields)


def _since(start: float) -> float:
    return (time.monotonic() - start) * 1000


def _subject(message: Any) -> dict[str, Field]:
    """Return whom a request or response is about, as far as it says so by name."""
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


@asynccontextmanager
async def serving(
    path: str,
    runtime: RuntimeService,
    images: ImageService,
    node: NodeService,
    *,
    grace_s: float = 10.0,
) -> AsyncIterator[None]:
    """Serve on `path` until the block ends; then refuse new calls and let running ones finish.

    After `grace_s` what still runs is cancelled. Raises WrongState if something else listens there.
    """
    _refuse_to_displace(path)
    async with asyncio.TaskGroup() as tasks:
        interceptor = Interceptor(tasks)
        server = grpc.aio.server(
            interceptors=[interceptor],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
            ],
        )
        runtime_v1_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
        runtime_v1_pb2_grpc.add_ImageServiceServicer_to_server(images, server)
        node_v1_pb2_grpc.add_NodeServicer_to_server(node, server)
        inode = _bind(server, path)
        try:
            await server.start()
            yield
        finally:
            _unlink_own(path, inode)
            deadline = asyncio.get_running_loop().time() + grace_s
            await server.stop(grace_s)
            await interceptor.finish(deadline)


def _refuse_to_displace(path: str) -> None:
    """Let a path pass that is free or holds the socket of a process that is gone."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise WrongState(f"{path} is in the way: it is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise WrongState(f"another process listens on {path}")


def _bind(server: grpc.aio.Server, path: str) -> int:
    """Bind in a private folder, then rename: nobody can connect before the mode is right.

    Returns the socket's inode.
    """
    parent = os.path.dirname(path)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    private = tempfile.mkdtemp(prefix=".", dir=parent)
    temporary = f"{private}/s"
    try:
        server.add_insecure_port(f"unix:{temporary}")
        os.chown(temporary, os.geteuid(), os.getegid())
        os.chmod(temporary, SOCKET_MODE)
        os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.rmdir(private)
    return os.lstat(path).st_ino


def _unlink_own(path: str, inode: int) -> None:
    """Remove the socket unless another server has already put its own in the place."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
