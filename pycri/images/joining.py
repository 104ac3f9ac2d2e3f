# SPDX-License-Identifier: Apache-2.0
"""Work that is done once however many ask for it at the same time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


async def finish(work: Coroutine[Any, Any, V]) -> V:
    """Run `work` to its end, also when the caller is cancelled meanwhile; then it is cancelled."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settle(task)
        raise


async def _settle(task: asyncio.Task[Any]) -> None:
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # it counts as seen


class _Job(Generic[V]):
    def __init__(self, task: asyncio.Task[V]) -> None:
        self.task = task
        self.waiting = 0


class JoinedTasks(Generic[K, V]):
    """Tasks by key. One whose waiters have all been cancelled is cancelled, and has ended when
    the last of them goes on."""

    def __init__(self) -> None:
        self._jobs: dict[K, _Job[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()

    def is_running(self, key: K) -> bool:
        """Tell whether a call of `run` with this key would join another."""
        return key in self._jobs

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """Return the result of the task for `key`, started with `work` if there is none."""
        job = self._jobs.get(key) or self._start(key, work)
        job.waiting += 1
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiting -= 1
            if not job.waiting and not job.task.done():
                job.task.cancel()
                self._forget(key, job)
                await _settle(job.task)

    async def close(self) -> None:
        """Cancel what runs, and wait until all has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, key: K, work: Callable[[], Awaitable[V]]) -> _Job[V]:
        async def run() -> V:
            return await work()

        task = asyncio.create_task(run())
        job = _Job(task)
        self._jobs[key] = job
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._end(key, job))
        return job

    def _end(self, key: K, job: _Job[V]) -> None:
        self._tasks.discard(job.task)
        self._forget(key, job)
        if not job.task.cancelled():
            job.task.exception()  # seen by the waiters, if there are any left

    def _forget(self, key: K, job: _Job[V]) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
