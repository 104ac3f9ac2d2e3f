# SPDX-License-Identifier: Apache-2.0
"""Change the resources of what exists: UpdateContainerResources, UpdatePodSandboxResources.

All of a change or none: what each file held is read before it is written, and written back, last
first, when a later write or the record fails. A daemon killed between the writes and the record
leaves limits that the status does not show; the kubelet, which got no answer, asks again.
"""

import asyncio
from collections.abc import Callable

from pycri.errors import InvalidRequest, WrongState
from pycri.kernel import cgroups, process
from pycri.logs import Log
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.resources import Resources
from pycri.plan.resources import oom_score_adj
from pycri.plan.updates import (
    FIELD,
    check_memory,
    field_of,
    merge_resources,
    order_writes,
    plan_update,
    restored_value,
)
from pycri.pods.catalogue import with_facts
from pycri.pods.endings import Endings
from pycri.pods.foundation import Foundation
from pycri.pods.planning import Planner

_log = Log("updates")

_ROUNDS = 16
"""How often a group is looked at for processes that were forked meanwhile."""


class Updates:
    """The use cases of changed resources."""

    def __init__(self, foundation: Foundation, planner: Planner, endings: Endings) -> None:
        self._host = foundation.host
        self._catalogue = foundation.catalogue
        self._groups = foundation.groups
        self._planner = planner
        self._endings = endings

    async def update_container(self, container_id: str, asked: Resources) -> None:
        """Change the limits of a container that runs, or those it will start with.

        asked: 0 or "" leaves a limit as it is.
        Raises: NotFound, WrongState (it has exited), InvalidRequest naming the field, Unsupported.
        """
        record = self._catalogue.container(container_id)
        async with self._endings.lock(record.id):
            record = self._catalogue.container(record.id)
            if record.state is ContainerState.EXITED:
                raise WrongState(f"container {record.id} has exited")
            merged = merge_resources(record.resources, asked)
            writes = plan_update(merged, asked, record.cgroup, self._host)
            change = _Change()
            try:
                if record.state is ContainerState.RUNNING:
                    await asyncio.to_thread(self._apply, change, record, writes, asked)
                await self._catalogue.change_container(
                    record.id, lambda old: with_facts(old, updated_resources=merged)
                )
            except BaseException:
                await asyncio.to_thread(change.undo)
                raise
            # Execs begin with the container's oom_score_adj.
            self._planner.forget(record.id)

    async def update_pod(
        self, pod_id: str, overhead: Resources | None, resources: Resources | None
    ) -> None:
        """Record what the kubelet has done to the pod's group. None leaves it as it was.

        Raises: NotFound.
        """
        pod = self._catalogue.pod(pod_id)
        await self._catalogue.change_pod(
            pod.id,
            lambda old: with_facts(
                old,
                updated_overhead=overhead or old.updated_overhead,
                updated_resources=resources or old.updated_resources,
            ),
        )

    def _apply(
        self,
        change: "_Change",
        record: ContainerRecord,
        writes: tuple[tuple[str, str], ...],
        asked: Resources,
    ) -> None:
        try:
            if asked.memory_limit_bytes:
                check_memory(writes, self._groups.held_memory(record.cgroup))
            old = {path: cgroups.read(path) for path, _ in writes}
            for path, value in order_writes(writes, old):
                change.write(path, value, old[path])
        except FileNotFoundError as error:
            if self._groups.processes(record.cgroup):
                field = f"{FIELD}.{field_of(str(error.filename))}"
                raise InvalidRequest(field, "the kernel has no such limit") from error
            raise WrongState(f"container {record.id} is ending") from error
        if asked.oom_score_adj:
            score = oom_score_adj(asked, self._host)
            change.adjust(lambda: self._groups.processes(record.cgroup), score)


class _Change:
    """What has been written so far, and what was there before. All calls may block."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def write(self, path: str, value: str, old: str) -> None:
        """Write one control file that holds `old`."""

        def restore() -> None:
            for line in restored_value(old):
                cgroups.write(path, line)

        try:
            cgroups.write(path, value)
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = f"the kernel refuses {value!r}: {error.strerror} ({path})"
            raise InvalidRequest(f"{FIELD}.{field_of(path)}", reason) from error
        self._undo.append(restore)

    def adjust(self, list_pids: Callable[[], list[int]], value: int) -> None:
        """Set the oom_score_adj of every process, also of those forked meanwhile by others."""
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            new = set(list_pids()) - seen
            if not new:
                return
            seen |= new
            for pid in new:
                self._adjust(pid, value)

    def undo(self) -> None:
        """Bring back what was there, last first; all of it is tried."""
        for restore in reversed(self._undo):
            try:
                restore()
            except (FileNotFoundError, ProcessLookupError):
                # It has ended meanwhile and needs nothing.
                continue
            except OSError as error:
                _log.warning("cannot bring back a limit", error=str(error))
        self._undo.clear()

    def _adjust(self, pid: int, value: int) -> None:
        try:
            old = process.read_oom_score_adj(pid)
            process.write_oom_score_adj(value, pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        except OSError as error:
            reason = f"{value} is refused: {error.strerror}"
            raise InvalidRequest(f"{FIELD}.oom_score_adj", reason) from error
        self._undo.append(lambda: process.write_oom_score_adj(old, pid))
