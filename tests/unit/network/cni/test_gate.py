# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pycri.model.ids import PodId
from pycri.network.cni.gate import Gate

ONE, OTHER = PodId("one"), PodId("other")


class Scene:
    """Operations that begin when they may and end when they are told."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.inside: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, name: str, pod_id: PodId | None) -> None:
        """Begin an operation of a pod, or one that wants to be alone."""
        end = self._ends[name] = asyncio.Event()

        async def work() -> None:
            async with self.gate.pod(pod_id) if pod_id else self.gate.alone():
                self.inside.append(name)
                await end.wait()
                self.inside.remove(name)

        self._tasks.append(asyncio.create_task(work()))
        await settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()

    async def leave(self) -> None:
        for end in self._ends.values():
            end.set()
        await asyncio.gather(*self._tasks)


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def played(body: Callable[[Scene], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    async def play() -> None:
        scene = Scene()
        await body(scene)
        await scene.leave()

    def test() -> None:
        asyncio.run(play())

    test.__name__ = body.__name__
    return test


@played
async def test_one_pod_s_operations_follow_each_other(scene: Scene) -> None:
    await scene.begin("add", ONE)
    await scene.begin("delete", ONE)
    assert scene.inside == ["add"]
    await scene.end("add")
    assert scene.inside == ["delete"]


@played
async def test_operations_of_different_pods_run_at_once(scene: Scene) -> None:
    await scene.begin("add", ONE)
    await scene.begin("delete", OTHER)
    assert scene.inside == ["add", "delete"]


@played
async def test_one_that_wants_to_be_alone_waits_and_is_waited_for(scene: Scene) -> None:
    await scene.begin("add", ONE)
    await scene.begin("collect", None)
    await scene.begin("late", OTHER)
    assert scene.inside == ["add"]
    await scene.end("add")
    assert scene.inside == ["collect"]
    await scene.end("collect")
    assert scene.inside == ["late"]


@played
async def test_an_operation_that_fails_lets_go(scene: Scene) -> None:
    try:
        async with scene.gate.pod(ONE):
            raise ValueError
    except ValueError:
        await scene.begin("collect", None)
    assert scene.inside == ["collect"]
