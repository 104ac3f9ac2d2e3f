# SPDX-License-Identifier: Apache-2.0
"""How containers end: asked to stop, or on their own; why they ended; what is cleaned up then.

exit record ──▶ OOM kills read from the group ──▶ the rest of the group killed ──▶ poststop hooks
            ──▶ finished_ns, exit_code, reason recorded ──▶ those who wait are told, group removed
"""

import asyncio
import signal
import time
from typing import Any

from pycri.errors import Unavailable
from pycri.logs import Log
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.ids import ContainerId, TaskId
from pycri.pods.catalogue import with_facts
from pycri.pods.foundation import Foundation
from pycri.pods.hooks import run_poststop
from pycri.wire.messages import ExitRecord

_log = Log("endings")

KILL_DEADLINE_S = 30.0
"""How long a killed process may take to end; one in uninterruptible sleep takes longer."""

UNKNOWN_SHOWN_AS = 255
"""The exit code of a container whose own was lost; the reason says so."""


class _Stopping:
    """A stop under way: when patience ends, on the monotonic clock; may only come nearer."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.changed = asyncio.Event()

    def shorten(self, deadline_s: float) -> None:
        if deadline_s < self.deadline_s:
            self.deadline_s = deadline_s
            self.changed.set()


class Endings:
    """Ends containers and records how they ended. Owns the containers' locks."""

    def __init__(self, foundation: Foundation) -> None:
        self._catalogue = foundation.catalogue
        self._spawner = foundation.spawner
        self._exits = foundation.exits
        self._groups = foundation.groups
        self._layout = foundation.layout
        self._locks: dict[ContainerId, asyncio.Lock] = {}
        self._stopping: dict[ContainerId, _Stopping] = {}
        # OOM kills before the first StopContainer: those did not end the container, we do.
        self._kills_before_stop: dict[ContainerId, int] = {}

    def lock(self, container_id: ContainerId) -> asyncio.Lock:
        """Return the lock held while a container's state changes."""
        return self._locks.setdefault(container_id, asyncio.Lock())

    def forget(self, container_id: ContainerId) -> None:
        """Drop the lock of a removed container."""
        self._locks.pop(container_id, None)
        self._kills_before_stop.pop(container_id, None)

    async def finish(self, record: ExitRecord) -> None:
        """A container's process has ended: end the rest, record how, tell those who wait."""
        container_id = ContainerId(record.id)
        async with self.lock(container_id):
            container = self._catalogue.container(container_id)
            if container.state is not ContainerState.EXITED:
                if self._groups.processes(container.cgroup):
                    await asyncio.to_thread(self._end_processes, container.cgroup)
                kills = self._groups.oom_kills(container.cgroup)
                kills -= self._kills_before_stop.pop(container_id, 0)
                await run_poststop(container, self._layout)
                await self._record_end(container, record, oom_killed=kills > 0)
            self._exits.tell(record)
            await asyncio.to_thread(self._remove_group, container.cgroup)

    async def clean_up(self, container: ContainerRecord) -> None:
        """Kill what is in the group of a container that never ran, and remove it."""
        await asyncio.to_thread(self._end_processes, container.cgroup)
        await run_poststop(container, self._layout)
        await asyncio.to_thread(self._remove_group, container.cgroup)

    async def stop(self, container: ContainerRecord, timeout_s: int) -> None:
        """End a running container: its stop signal, patience, then SIGKILL.

        Raises: Unavailable when even that does not end it in KILL_DEADLINE_S.
        """
        deadline_s = time.monotonic() + timeout_s
        stopping = self._stopping.get(container.id)
        if stopping is not None:
            stopping.shorten(deadline_s)
        ended = self._exits.expect(TaskId(container.id))
        # Asked again now that the end cannot be missed: it may have come before `expect`.
        if self._catalogue.container(container.id).state is ContainerState.EXITED:
            ended.cancel()
            return
        if stopping is None:
            stopping = self._stopping[container.id] = _Stopping(deadline_s)
            try:
                await self._terminate(container, stopping, ended, patient=timeout_s > 0)
            finally:
                del self._stopping[container.id]
        await self._await_end(container, stopping, ended)

    async def _terminate(
        self,
        container: ContainerRecord,
        stopping: _Stopping,
        ended: asyncio.Future[ExitRecord],
        *,
        patient: bool,
    ) -> None:
        task = TaskId(container.id)
        if container.id not in self._kills_before_stop:
            # Here and in `finish`: a group's counter and list of processes are read from memory,
            # which takes less than to ask a thread to.
            kills = self._groups.oom_kills(container.cgroup)
            self._kills_before_stop[container.id] = kills
        if patient:
            await self._spawner.signal(task, container.stop_signal)
            await _wait_until(stopping, ended)
        if not ended.done():
            await self._spawner.signal(task, signal.SIGKILL)

    async def _await_end(
        self,
        container: ContainerRecord,
        stopping: _Stopping,
        ended: asyncio.Future[ExitRecord],
    ) -> None:
        patience_s = max(0.0, stopping.deadline_s - time.monotonic())
        done, _ = await asyncio.wait({ended}, timeout=patience_s + KILL_DEADLINE_S)
        if not done:
            ended.cancel()
            raise Unavailable(
                f"container {container.id} was killed and has not ended in {KILL_DEADLINE_S:.0f} s:"
                f" process {container.pid} {await asyncio.to_thread(_describe, container.pid)}"
            )

    async def _record_end(
        self, container: ContainerRecord, record: ExitRecord, *, oom_killed: bool
    ) -> None:
        code = record.exit_code if record.exit_code >= 0 else UNKNOWN_SHOWN_AS
        reason, message = _reason(record.exit_code, oom_killed=oom_killed)
        await self._catalogue.change_container(
            container.id,
            lambda old: with_facts(
                old,
                started_ns=old.started_ns or record.finished_ns,
                finished_ns=record.finished_ns,
                exit_code=code,
                reason=reason,
                message=message,
                pid=0,
                pid_start_time=0,
            ),
        )
        _log.info("container ended", container=container.id, exit_code=code, reason=reason)

    def _end_processes(self, cgroup: str) -> None:
        if not self._groups.kill(cgroup):
            _log.warning("processes do not die", cgroup=cgroup)

    def _remove_group(self, cgroup: str) -> None:
        if not self._groups.remove(cgroup):
            _log.warning("cgroup still in use", cgroup=cgroup)


def _reason(exit_code: int, *, oom_killed: bool) -> tuple[str, str]:
    """Return the CRI's reason and message for how a process ended.

    oom_killed: a process of the container was, the first or another. If only another was, and the
    first then failed, lack of memory still is what a person must be told (as containerd and CRI-O
    do); if the first succeeded all the same, nothing went wrong.
    """
    if exit_code < 0:
        return "ContainerStatusUnknown", "its exit code was lost with the process that knew it"
    if oom_killed and exit_code:
        return "OOMKilled", ""
    return ("Error" if exit_code else "Completed"), ""


async def _wait_until(stopping: _Stopping, ended: asyncio.Future[ExitRecord]) -> None:
    """Wait for the end or the deadline, which others may bring nearer."""
    while not ended.done():
        left_s = stopping.deadline_s - time.monotonic()
        if left_s <= 0:
            return
        stopping.changed.clear()
        changed = asyncio.create_task(stopping.changed.wait())
        waited: set[asyncio.Future[Any]] = {ended, changed}
        await asyncio.wait(waited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()


def _describe(pid: int) -> str:
    """Return what the kernel says a process is waiting for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{pid}/wchan") as file:
            return f"is in state {state}, waiting in {file.read() or 'user mode'}"
    except OSError:
        return "is gone"
