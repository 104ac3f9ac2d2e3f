# SPDX-License-Identifier: Apache-2.0
"""Calls that take time: each is performed as a task of the event loop (decision 0043).

Calls that change something run as tasks of the server, not of the connection: a client that hangs
up, or whose deadline passes, does not leave half a pod; its retry joins or finds the result. Two
change nothing that outlives them and are cancelled with their client: PullImage, whose caller has
no other way to stop it, and ExecSync, whose process ends with its caller.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from pycri.cri.account import Look, Observer, is_reading
from pycri.cri.call import Call
from pycri.cri.looks import Looks, Method, serialize
from pycri.cri.rpc import Code
from pycri.errors import Unsupported

_CANCELLED_WITH_CLIENT = ("PullImage", "ExecSync")


class Calls(Looks):
    """Every method that is served, by its path "/package.Service/Method"."""

    def __init__(self, tasks: asyncio.TaskGroup, observers: Sequence[Observer]) -> None:
        """tasks: the group that owns the calls of the event loop."""
        super().__init__(observers)
        self._observers = observers
        self._loop = asyncio.get_running_loop()
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()

    def _behaviour(self, service: object, name: str) -> Callable[[Any], Any]:
        """Return what performs calls of a method; what the service has not is UNIMPLEMENTED."""
        return super()._behaviour(service, name) or _unserved(name)

    def looked(self, look: Look) -> None:
        """Take note of a call that the front has answered."""
        for observer in self._observers:
            observer.looked(look)

    async def finish(self, deadline: float) -> None:
        """Wait for the calls of the loop until `deadline`, then cancel them.

        deadline: on the event loop's clock. What is cut short is undone by the next start.
        """
        if self._running:
            left = max(0.0, deadline - self._loop.time())
            _, late = await asyncio.wait(self._running, timeout=left)
            for task in late:
                task.cancel()

    def _perform(self, method: Method, request: Any, call: Call) -> None:
        behaviour = method.behaviour
        if inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour):
            self._soon(partial(self._begin, method, request, call))
        else:
            super()._perform(method, request, call)

    def _begin(self, method: Method, request: Any, call: Call) -> None:
        if call.gone and _ends_with_client(method):
            return
        work = self._stream if method.streams else self._run
        task = self._own(work(method, request, call), method.name)
        if call.timeout_s is not None:
            timer = self._loop.call_later(call.timeout_s, _expire, method, call, task)
            task.add_done_callback(lambda _: timer.cancel())
        if _ends_with_client(method):
            call.tell_gone(partial(self._soon, task.cancel))

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _run(self, method: Method, request: Any, call: Call) -> None:
        account = self._account(method, request, call)
        try:
            response = await method.behaviour(request)
            account.done(response, serialize(response))
        except asyncio.CancelledError:
            account.cancelled()
            raise
        except Exception as error:  # noqa: BLE001  the RPC edge: nothing may pass it unanswered
            account.failed(error)

    async def _stream(self, method: Method, request: Any, call: Call) -> None:
        account = self._account(method, request, call)
        messages: AsyncGenerator[Any, None] = method.behaviour(request)
        try:
            async with aclosing(messages):
                async for message in messages:
                    if message is None:
                        call.begin()
                    else:
                        call.write(serialize(message))
                        await self._drained(call)
            account.done()
        except asyncio.CancelledError:
            account.cancelled()
            raise
        except Exception as error:  # noqa: BLE001  the RPC edge, as above
            account.failed(error)

    def _soon(self, action: Callable[[], object]) -> None:
        """Have the loop do something; from any thread."""
        self._loop.call_soon_threadsafe(action)

    async def _drained(self, call: Call) -> None:
        """Wait until the client has taken what was sent."""
        drained = asyncio.Event()
        if call.must_wait(partial(self._soon, drained.set)):
            await drained.wait()


def _expire(method: Method, call: Call, task: asyncio.Task[None]) -> None:
    """The caller does not wait any longer."""
    call.end(Code.DEADLINE_EXCEEDED, "the caller's deadline has passed")
    if _ends_with_client(method):
        task.cancel()


def _ends_with_client(method: Method) -> bool:
    """Tell whether nothing is left to do if the client is gone."""
    return method.streams or is_reading(method.name) or method.name in _CANCELLED_WITH_CLIENT


def _unserved(name: str) -> Callable[[Any], Any]:
    """Stand in for a method that a service has not."""

    def call(request: Any) -> Any:
        raise Unsupported(f"{name} is not implemented yet")

    return call
