# SPDX-License-Identifier: Apache-2.0
"""Compare what is recorded with what is there, and make both agree.

    1  another boot than the recorded one: no pod of it lives, its namespaces are gone
    2  containers half made when the daemon died: dropped
    3  containers against the spawner's tasks: ends that were missed, starts that were not recorded
    4  pods half made or half stopped when the daemon died: undone or finished
    5  folders, pins, groups right below our own parent, addresses, links without a record: removed

All of it at start, 3 when the spawner was replaced, 3 and 5 on a timer.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter

from pycri.errors import NotFound, Unavailable
from pycri.kernel.process import read_boot_id
from pycri.logs import Log
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.ids import ContainerId, PodId, TaskId, is_id
from pycri.network.interface import PodNetwork
from pycri.pods.catalogue import with_facts
from pycri.pods.endings import Endings
from pycri.pods.execs import leftover_groups
from pycri.pods.foundation import Foundation
from pycri.pods.ready_networks import ReadyNetworks
from pycri.pods.sandboxes import Sandboxes
from pycri.state.database import Database
from pycri.state.records import load_meta, save_meta
from pycri.wire.messages import ExitRecord, TaskInfo

_log = Log("recovery")
_BOOT_ID = "boot_id"
INTERVAL_S = 60.0


class Recovery:
    """Makes records and reality agree."""

    def __init__(
        self,
        foundation: Foundation,
        sandboxes: Sandboxes,
        endings: Endings,
        network: PodNetwork,
        ready_networks: ReadyNetworks,
    ) -> None:
        self._catalogue = foundation.catalogue
        self._spawner = foundation.spawner
        self._layout = foundation.layout
        self._groups = foundation.groups
        self._cgroup_parent = foundation.settings.cgroup_parent
        self._sandboxes = sandboxes
        self._exits = foundation.exits
        self._running: set[asyncio.Task[None]] = set()
        self._endings = endings
        self.findings: Counter[str] = Counter()
        """How often what was found not to agree, since the daemon's start."""
        self._network = network
        self._ready_networks = ready_networks

    async def recover(self, database: Database) -> None:
        """Do all of it, before the first call is served."""
        await self._note_boot(database)
        await self._forget_unmade()
        await self.compare_tasks()
        await asyncio.to_thread(self._end_leftover_execs)
        await self._finish_pods()
        await self.sweep()

    async def watch(self) -> None:
        """Compare and sweep on a timer, for as long as the daemon runs."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                if self._network.problem() is not None:
                    with contextlib.suppress(Unavailable):  # Status says so, and why
                        await self._network.start()
                await self.compare_tasks()
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - the next round is another chance
                _log.exception("round failed", error)

    def task_ended(self, record: ExitRecord) -> None:
        """Take an exit record from the spawner: a container's, or that of a pod's init."""
        self._running.add(task := asyncio.create_task(self._end(record)))
        task.add_done_callback(self._running.discard)

    async def compare_tasks(self) -> None:
        """Compare containers with the spawner's tasks."""
        # Looked at before the listing: whatever runs then was in the spawner's keep already.
        containers = list(self._catalogue.containers())
        pods = list(self._catalogue.pods())
        tasks = await self._spawner.list_tasks()
        for container in containers:
            # One that was removed meanwhile is no reason to leave out the others.
            with contextlib.suppress(NotFound):
                await self._compare(container, tasks.get(TaskId(container.id)))
        known = {TaskId(container.id) for container in self._catalogue.containers()}
        known |= {TaskId(pod.id) for pod in self._catalogue.pods()}
        for task_id, task in tasks.items():
            if task_id not in known:
                self._find("task without a record", task=task_id)
                if task.exit_code is None:
                    await self._spawner.signal(task_id, signal.SIGKILL)
                await self._spawner.forget(task_id)
        for pod in pods:
            if self._sandboxes.lost_init(pod, tasks):
                await self._sandboxes.stop(pod.id)

    async def sweep(self) -> None:
        """Remove what nobody owns."""
        names = await asyncio.to_thread(self._layout.names)
        groups = await asyncio.to_thread(self._groups.below, self._cgroup_parent)
        # Looked up after the listing: whatever is being made has its record before its folder.
        pods = frozenset(pod.id for pod in self._catalogue.pods())
        known = {*pods, *(container.id for container in self._catalogue.containers())}
        known |= self._ready_networks.ids
        for name in names:
            if name not in known:
                self._find("folder without a record", id=name)
                await asyncio.to_thread(self._remove_folders, name)
        for name in groups:
            # Another name is none of ours: an operator's, or a parent of pods from the kubelet.
            if is_id(name) and name not in known:
                self._find("cgroup without a record", id=name)
                await asyncio.to_thread(self._remove_group, f"{self._cgroup_parent}/{name}")
        await self._network.reconcile(pods)

    def _find(self, finding: str, **fields: str) -> None:
        _log.warning(finding, **fields)
        self.findings[finding] += 1

    async def _end(self, record: ExitRecord) -> None:
        try:
            if self._catalogue.has_container(record.id):
                await self._endings.finish(record)
                return
            self._exits.tell(record)
            if self._catalogue.has_pod(record.id):
                # Without its first process the pod's pid namespace takes no more.
                await self._sandboxes.stop(record.id)
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            _log.exception("cannot record an end", error, task=record.id)

    async def _note_boot(self, database: Database) -> None:
        boot_id = read_boot_id()
        known = await database.transact(lambda connection: load_meta(connection, _BOOT_ID))
        if known is not None and known != boot_id:
            _log.info("first start after a reboot")
            now_ns = time.time_ns()
            for pod in list(self._catalogue.pods()):
                await self._network.detach(pod.id)
                await self._catalogue.change_pod(
                    pod.id, lambda old: with_facts(old, stopped_ns=old.stopped_ns or now_ns)
                )
        await database.transact(lambda connection: save_meta(connection, _BOOT_ID, boot_id))

    async def _forget_unmade(self) -> None:
        """Drop containers whose creation was cut short between the record and the folders."""
        for container in list(self._catalogue.containers()):
            unmade = container.state is ContainerState.CREATED
            if unmade and not self._layout.has_container(container.id):
                self._find("container was never made", container=container.id)
                await self._catalogue.remove_container(container.id)

    def _end_leftover_execs(self) -> None:
        for container in list(self._catalogue.containers()):
            if container.state is ContainerState.RUNNING:
                for group in leftover_groups(self._groups, container):
                    self._groups.kill(group)
                    self._groups.remove(group)

    async def _compare(self, container: ContainerRecord, task: TaskInfo | None) -> None:
        if container.state is ContainerState.CREATED and task is not None:
            await self._record_start(container, task)
        elif container.state is not ContainerState.RUNNING:
            return
        if task is None:
            self._find("container is gone", container=container.id)
            await self._endings.finish(_ended(container.id, -1, time.time_ns()))
        elif task.exit_code is not None:
            finished_ns = task.finished_ns or time.time_ns()
            await self._endings.finish(_ended(container.id, task.exit_code, finished_ns))

    async def _record_start(self, container: ContainerRecord, task: TaskInfo) -> None:
        async with self._endings.lock(container.id):
            # The start may just have been recorded by the call that made it.
            if self._catalogue.container(container.id).state is not ContainerState.CREATED:
                return
            self._find("start was not recorded", container=container.id)
            await self._catalogue.change_container(
                container.id,
                lambda old: with_facts(
                    old,
                    started_ns=old.started_ns or time.time_ns(),
                    pid=task.pid,
                    pid_start_time=task.start_time,
                ),
            )

    async def _finish_pods(self) -> None:
        for pod in list(self._catalogue.pods()):
            if pod.ready_ns is None:
                self._find("pod was never ready", pod=pod.id)
                await self._sandboxes.remove(pod.id)
            elif pod.stopped_ns is not None:
                await self._sandboxes.stop(pod.id)

    def _remove_folders(self, name: str) -> None:
        self._layout.remove_pins(PodId(name))
        self._layout.remove_pod(PodId(name))
        self._layout.remove_container(ContainerId(name))

    def _remove_group(self, path: str) -> None:
        self._groups.kill(path)
        self._groups.remove(path)


def _ended(container_id: ContainerId, exit_code: int, finished_ns: int) -> ExitRecord:
    return ExitRecord(id=TaskId(container_id), exit_code=exit_code, finished_ns=finished_ns)
