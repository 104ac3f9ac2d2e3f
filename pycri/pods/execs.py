# SPDX-License-Identifier: Apache-2.0
"""ExecSync: run a command in a container, return what it printed and how it ended.

The output ends with the command: what its children print afterwards is not waited for, so one
that keeps the pipe open does not hang a probe. At a time-out the exec's own group is killed, and
with it everything the command started.
"""

import asyncio
import contextlib
import secrets

from pycri.errors import PycriError, TimedOut, WrongState
from pycri.kernel.fds import close_all
from pycri.model.container import ContainerRecord, ContainerState, ExecResult
from pycri.model.ids import TaskId
from pycri.model.plan import ExecPlan
from pycri.plan.cgroups import EXEC_GROUP_PREFIX, exec_cgroup_path
from pycri.plan.container import plan_exec
from pycri.pods.capture import Capture
from pycri.pods.foundation import Foundation
from pycri.pods.groups import Groups
from pycri.pods.planning import Planner
from pycri.runtimes.client import ExecProcess

OUTPUT_LIMIT = 16 << 20
"""Bytes of stdout and of stderr that are returned; the rest is read and dropped (CRI)."""


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
        record = self._catalogue.container(container_id)
        if record.state is not ContainerState.RUNNING:
            raise WrongState(f"container {record.id} is not running")
        process = self._planner.process(record)
        exec_id = TaskId(secrets.token_hex(32))
        plan = plan_exec(exec_id, record, process, command, self._host)
        group = exec_cgroup_path(record.cgroup, exec_id)
        try:
            running = await self._begin(plan, group)
            return await self._collect(running, group, timeout_s)
        finally:
            # Children that were left behind stay in it, until the container ends.
            self._groups.remove_if_empty(group)

    async def _begin(self, plan: ExecPlan, group: str) -> ExecProcess:
        """Start the process. If the caller hangs up meanwhile, it is waited for and killed."""
        starting = asyncio.create_task(self._spawner.exec(plan))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(PycriError):
                close_all((await starting).streams.values())
            await asyncio.to_thread(self._groups.kill, group)
            raise

    async def _collect(self, running: ExecProcess, group: str, timeout_s: int) -> ExecResult:
        stdout = Capture(running.streams["stdout"], OUTPUT_LIMIT)
        stderr = Capture(running.streams["stderr"], OUTPUT_LIMIT)
        try:
            async with asyncio.timeout(timeout_s or None):
                record = await running.exited
        except BaseException as error:
            # A time-out, a caller that hung up, or the loss of the spawner: nothing of it stays.
            await asyncio.shield(asyncio.to_thread(self._groups.kill, group))
            if isinstance(error, TimeoutError):
                raise TimedOut(f"the command has not ended in {timeout_s} s") from error
            raise
        finally:
            outputs = stdout.finish(), stderr.finish()
            close_all(running.streams.values())
        return ExecResult(stdout=outputs[0], stderr=outputs[1], exit_code=record.exit_code)


def leftover_groups(groups: Groups, record: ContainerRecord) -> list[str]:
    """Return the groups of execs that a former daemon left in a container.

    Others below it are the container's own doing: a systemd or a runtime in it.
    """
    names = (name for name in groups.below(record.cgroup) if name.startswith(EXEC_GROUP_PREFIX))
    return [f"{record.cgroup}/{name}" for name in names]
