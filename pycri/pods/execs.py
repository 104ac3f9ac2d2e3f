# SPDX-License-Identifier: Apache-2.0
"""Commands in running containers; of them ExecSync, which returns what one printed.

The output ends with the command: what its children print afterwards is not waited for, so one
that keeps the pipe open does not hang a probe. At a time-out the exec's own group is killed, and
with it everything the command started.

An exec's group is there for as long as the exec. What a command leaves behind when it ends by
itself is the container's from then on, and moves to its group; so a group that a new daemon finds
is that of an exec whose caller is gone.
"""

import asyncio
import contextlib
import secrets

from pycri.errors import PycriError, TimedOut, WrongState
from pycri.kernel.fds import close_all
from pycri.model.container import ContainerRecord, ContainerState, ExecResult
from pycri.model.ids import ContainerId, TaskId
from pycri.model.streams import ExecRequest
from pycri.plan.cgroups import EXEC_GROUP_PREFIX, exec_cgroup_path
from pycri.plan.container import plan_exec
from pycri.pods.capture import Capture
from pycri.pods.foundation import Foundation
from pycri.pods.groups import Groups
from pycri.pods.planning import Planner
from pycri.runtimes.client import ExecProcess

OUTPUT_LIMIT = 16 << 20
"""Bytes of stdout and of stderr that are returned; the rest is read and dropped (CRI)."""


class RunningExec:
    """A command that was started. Its descriptors in `process.streams` are the receiver's."""

    def __init__(self, exec_id: TaskId, process: ExecProcess, group: str, groups: Groups) -> None:
        self.id = exec_id
        self.process = process
        self._group = group
        self._groups = groups

    async def kill(self) -> None:
        """Kill all that is in the exec's group."""
        await asyncio.shield(asyncio.to_thread(self._groups.kill, self._group))

    async def leave(self) -> None:
        """Part from an exec that has ended: its group goes, what is in it is the container's."""
        if not self._groups.remove_if_empty(self._group):
            await asyncio.to_thread(self._groups.dissolve, self._group)


class Execs:
    """Runs commands in running containers."""

    def __init__(self, foundation: Foundation, planner: Planner) -> None:
        self._host = foundation.host
        self._catalogue = foundation.catalogue
        self._spawner = foundation.spawner
        self._groups = foundation.groups
        self._planner = planner

    async def exec_sync(
        self, container_id: str, command: tuple[str, ...], timeout_s: int
    ) -> ExecResult:
        """Run a command to its end. timeout_s: 0 waits for ever.

        Raises: NotFound, WrongState, TimedOut, SetupFailed (the command does not exist).
        """
        request = ExecRequest(
            container_id=ContainerId(container_id), cmd=command, stdout=True, stderr=True
        )
        running = await self.start(request)
        try:
            return await self._collect(running, timeout_s)
        finally:
            await running.leave()

    async def start(self, request: ExecRequest) -> RunningExec:
        """Start a command. Raises: NotFound, WrongState, InvalidRequest, SetupFailed.

        A caller that hangs up meanwhile leaves nothing behind.
        """
        record = self.running_container(request.container_id)
        process = self._planner.process(record)
        exec_id = TaskId(secrets.token_hex(32))
        plan = plan_exec(exec_id, record, process, request, self._host)
        group = exec_cgroup_path(record.cgroup, exec_id)
        starting = asyncio.create_task(self._spawner.exec(plan))
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(PycriError):
                close_all((await starting).streams.values())
            await asyncio.to_thread(self._groups.kill, group)
            self._groups.remove_if_empty(group)
            raise
        except BaseException:
            self._groups.remove_if_empty(group)
            raise
        return RunningExec(exec_id, started, group, self._groups)

    def running_container(self, container_id: str) -> ContainerRecord:
        """Return a container that runs. Raises: NotFound, WrongState."""
        record = self._catalogue.container(container_id)
        if record.state is not ContainerState.RUNNING:
            raise WrongState(f"container {record.id} is not running")
        return record

    async def _collect(self, running: RunningExec, timeout_s: int) -> ExecResult:
        streams = running.process.streams
        stdout = Capture(streams["stdout"], OUTPUT_LIMIT)
        stderr = Capture(streams["stderr"], OUTPUT_LIMIT)
        try:
            async with asyncio.timeout(timeout_s or None):
                record = await running.process.exited
        except BaseException as error:
            # A time-out, a caller that hung up, or the loss of the spawner: nothing of it stays.
            await running.kill()
            if isinstance(error, TimeoutError):
                raise TimedOut(f"the command has not ended in {timeout_s} s") from error
            raise
        finally:
            outputs = stdout.finish(), stderr.finish()
            close_all(streams.values())
        return ExecResult(stdout=outputs[0], stderr=outputs[1], exit_code=record.exit_code)


def leftover_groups(groups: Groups, record: ContainerRecord) -> list[str]:
    """Return the groups of execs that a former daemon left in a container.

    Others below it are the container's own doing: a systemd or a runtime in it.
    """
    names = (name for name in groups.below(record.cgroup) if name.startswith(EXEC_GROUP_PREFIX))
    return [f"{record.cgroup}/{name}" for name in names]
