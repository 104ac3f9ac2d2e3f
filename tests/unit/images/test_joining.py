# SPDX-License-Identifier: Apache-2.0
import asyncio

import pytest

from pycri.images.joining import JoinedTasks, finish


def test_calls_with_one_key_share_one_task() -> None:
    async def main() -> None:
        jobs: JoinedTasks[str, int] = JoinedTasks()
        started = 0

        async def work() -> int:
            nonlocal started
            started += 1
            await asyncio.sleep(0)
            return started

        assert await asyncio.gather(*(jobs.run("a", work) for _ in range(3))) == [1, 1, 1]
        assert await jobs.run("a", work) == 2
        assert not jobs.is_running("a")

    asyncio.run(main())


def test_a_failure_reaches_every_waiter() -> None:
    async def main() -> None:
        jobs: JoinedTasks[str, int] = JoinedTasks()

        async def work() -> int:
            await asyncio.sleep(0)
            raise LookupError("gone")

        results = await asyncio.gather(
            jobs.run("a", work), jobs.run("a", work), return_exceptions=True
        )
        assert [type(result) for result in results] == [LookupError, LookupError]

    asyncio.run(main())


def test_only_the_last_waiter_to_leave_cancels_the_task_and_sees_its_end() -> None:
    async def main() -> list[str]:
        jobs: JoinedTasks[str, None] = JoinedTasks()
        events: list[str] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                events.append("cleaned")

        waiters = [asyncio.create_task(jobs.run("a", work)) for _ in range(2)]
        for waiter in waiters:
            await asyncio.sleep(0.001)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            events.append("left")
        return events

    assert asyncio.run(main()) == ["left", "cleaned", "left"]


def test_work_to_be_finished_outlives_the_cancelling_of_its_caller() -> None:
    async def main() -> None:
        begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await go_on.wait()
            done.set()

        caller = asyncio.create_task(finish(work()))
        await begun.wait()
        caller.cancel()
        await asyncio.sleep(0)
        caller.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert done.is_set()

    asyncio.run(main())


def test_closing_cancels_what_runs() -> None:
    async def main() -> None:
        jobs: JoinedTasks[str, bool] = JoinedTasks()
        waiter = asyncio.create_task(jobs.run("a", asyncio.Event().wait))
        await asyncio.sleep(0)
        await jobs.close()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(main())
