# SPDX-License-Identifier: Apache-2.0
"""What all sessions of the server share."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pycri.errors import PycriError
from pycri.streaming.interface import Sessions
from pycri.streaming.wire import Buffers, HangupWatch, Wire

T = TypeVar("T")

CLIENT_LEFT = "the client has left"
"""How most sessions that are cut short end, as they are logged."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """daemon: the event loop in which `sessions` and its processes are called."""

    sessions: Sessions
    daemon: asyncio.AbstractEventLoop
    buffers: Buffers
    hangups: HangupWatch
    stopping: asyncio.Event
    creation_timeout_s: float
    idle_timeout_s: float

    async def ask(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the daemon's loop; cancelled with its caller."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self.daemon))

    async def obtain(
        self, call: Coroutine[Any, Any, T], dispose: Callable[[T], Awaitable[None]]
    ) -> T:
        """Run a coroutine in the daemon's loop to its end.

        What it returns is disposed of if the caller is cancelled meanwhile.
        """
        answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self.daemon))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            with contextlib.suppress(PycriError):
                await dispose(await answer)
            raise

    async def wait_idle(self, wire: Wire) -> None:
        """Return when nothing has gone either way for the idle time-out."""
        loop = asyncio.get_running_loop()
        while True:
            left = wire.active_s + self.idle_timeout_s - loop.time()
            if left <= 0:
                return
            await asyncio.sleep(left)


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they do."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(BaseException):
            await task
