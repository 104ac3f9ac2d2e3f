# SPDX-License-Identifier: Apache-2.0
"""The comparison of records with the spawner's tasks, while other calls go on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec

from pycri.config import Settings
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.ids import ContainerId, TaskId
from pycri.network.bridge import BridgeNetwork
from pycri.pods.catalogue import Catalogue
from pycri.pods.endings import Endings
from pycri.pods.events import Events
from pycri.pods.foundation import Foundation
from pycri.pods.groups import Groups
from pycri.pods.layout import Layout
from pycri.pods.ready_networks import ReadyNetworks
from pycri.pods.recovery import Recovery
from pycri.pods.sandboxes import Sandboxes
from pycri.pods.watch import ExitWatch
from pycri.runtimes.client import SpawnerClient
from pycri.state.database import Database
from pycri.wire.messages import TaskInfo
from tests.unit.plan.samples import host_v2
from tests.unit.pods.test_catalogue import CONTAINER, POD


class KeptTasks:
    """A spawner's answers. `meanwhile` is awaited in each listing, before it is answered."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self.tasks: dict[TaskId, TaskInfo] = {}
        self._meanwhile = meanwhile
        self.killed: list[TaskId] = []

    async def list_tasks(self) -> dict[TaskId, TaskInfo]:
        await self._meanwhile()
        return dict(self.tasks)

    async def signal(self, task: TaskId, number: int) -> None:
        assert number == 9
        self.killed.append(task)

    async def forget(self, task: TaskId) -> None:
        self.tasks.pop(task, None)


def running(number: int) -> ContainerRecord:
    metadata = msgspec.structs.replace(CONTAINER.spec.metadata, attempt=number)
    return msgspec.structs.replace(
        CONTAINER,
        id=ContainerId(f"{number:064x}"),
        spec=msgspec.structs.replace(CONTAINER.spec, metadata=metadata),
        started_ns=2,
    )


def compare(
    folder: Path,
    containers: list[ContainerRecord],
    meanwhile: Callable[[Catalogue], Awaitable[object]],
    tasks: tuple[TaskInfo, ...] = (),
) -> tuple[Catalogue, KeptTasks]:
    """Compare the records of running containers with the spawner's tasks."""

    async def run() -> tuple[Catalogue, KeptTasks]:
        database = await Database.open(folder / "pycri.db")
        try:
            catalogue = Catalogue(database)
            await catalogue.add_pod(POD)
            for container in containers:
                await catalogue.add_container(container)
            spawner = KeptTasks(lambda: meanwhile(catalogue))
            spawner.tasks = {task.id: task for task in tasks}
            settings = Settings(state_dir=str(folder), run_dir=str(folder))
            host = host_v2(cgroup_root=str(folder / "cgroup"))
            foundation = Foundation(
                settings=settings,
                host=host,
                catalogue=catalogue,
                events=Events(),
                spawner=cast(SpawnerClient, spawner),
                exits=ExitWatch(),
                layout=Layout(settings),
                groups=Groups(host),
            )
            # Neither has a part in it: no pod has an init, and links are the sweep's.
            pods, network = cast(Sandboxes, _NoInits()), cast(BridgeNetwork, None)
            ready = ReadyNetworks(foundation, network)
            recovery = Recovery(foundation, pods, Endings(foundation), network, ready)
            await recovery.compare_tasks()
            return catalogue, spawner
        finally:
            await database.close()

    return asyncio.run(run())


class _NoInits:
    def lost_init(self, *_: object) -> bool:
        return False


async def nothing(_: Catalogue) -> None:
    return


def test_a_running_container_without_a_task_has_ended_with_an_unknown_code(tmp_path: Path) -> None:
    catalogue, _ = compare(tmp_path, [running(1)], nothing)
    (container,) = catalogue.containers()
    assert container.state is ContainerState.EXITED
    assert (container.exit_code, container.reason) == (255, "ContainerStatusUnknown")


def test_a_container_removed_meanwhile_does_not_hide_the_others(tmp_path: Path) -> None:
    async def remove_first(catalogue: Catalogue) -> None:
        await catalogue.remove_container(running(1).id)

    catalogue, _ = compare(tmp_path, [running(1), running(2)], remove_first)
    (container,) = catalogue.containers()
    assert container.id == running(2).id
    assert container.state is ContainerState.EXITED


def test_a_container_started_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """The listing was taken before its task was there."""

    async def start(catalogue: Catalogue) -> None:
        await catalogue.add_container(running(1))

    catalogue, _ = compare(tmp_path, [], start)
    (container,) = catalogue.containers()
    assert container.state is ContainerState.RUNNING


def test_a_task_without_a_record_is_killed_and_forgotten(tmp_path: Path) -> None:
    stray = TaskInfo(id=TaskId("f" * 64), kind="container", pid=7, start_time=1)
    known = TaskInfo(id=TaskId(running(1).id), kind="container", pid=8, start_time=1)
    catalogue, spawner = compare(tmp_path, [running(1)], nothing, (stray, known))
    assert spawner.killed == [stray.id]
    assert set(spawner.tasks) == {known.id}
    (container,) = catalogue.containers()
    assert container.state is ContainerState.RUNNING
