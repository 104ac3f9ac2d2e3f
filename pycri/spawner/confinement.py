# SPDX-License-Identifier: Apache-2.0
"""What a child lays upon itself last: labels of security modules, the seccomp filter.

Both are asked for when the child is inside its container, and need something of the host: its own
folder in /proc, the socket of a seccomp agent. `prepare` opens these before the child leaves.
"""

import array
import socket
from collections.abc import Callable
from functools import partial

import msgspec

from pycri.kernel import lsm, process, seccomp
from pycri.model.hooks import OCI_VERSION, ContainerState
from pycri.model.ids import TaskId
from pycri.model.plan import ProcessPlan
from pycri.model.seccomp import SeccompProgram
from pycri.spawner.report import Report

_FD_NAME = "seccompFd"


class Confinement:
    """Of one child; applied once."""

    def __init__(self, plan: ProcessPlan, proc_fd: int, agent: socket.socket | None) -> None:
        self._plan = plan
        self._proc_fd = proc_fd
        self._agent = agent
        self._state: Callable[[int], bytes] = lambda _: b""

    @classmethod
    def prepare(
        cls, plan: ProcessPlan, container: TaskId, report: Report, pidfd: int | None = None
    ) -> "Confinement":
        """Open what is the host's. pidfd: of the container's first process, for an exec in it."""
        proc_fd, agent, program = -1, None, plan.seccomp
        if plan.apparmor_profile or plan.selinux_label or (program and program.listener_path):
            report.doing("open /proc")
            proc_fd = lsm.open_proc()
        if program is not None and program.listener_path:
            report.doing(f"connect to the seccomp agent at {program.listener_path}")
            agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            agent.connect(program.listener_path)
        confinement = cls(plan, proc_fd, agent)
        if program is not None and agent is not None:
            first = None if pidfd is None else process.pid_of(pidfd)
            confinement._state = partial(_state, program, container, first)
        return confinement

    def apply(self, report: Report) -> None:
        """Apply all. The filter is the last: from then on nothing can be counted on."""
        plan = self._plan
        if plan.apparmor_profile:
            report.doing(f"apparmor profile {plan.apparmor_profile}")
            lsm.set_apparmor_exec(self._proc_fd, plan.apparmor_profile)
        if plan.selinux_label:
            report.doing(f"selinux label {plan.selinux_label}")
            lsm.set_selinux_exec(self._proc_fd, plan.selinux_label)
        if plan.seccomp is not None:
            report.doing("seccomp filter")
            self._load(plan.seccomp)

    def _load(self, program: SeccompProgram) -> None:
        if self._agent is None:
            seccomp.load(program.instructions, program.flags)
            return
        # Made before the filter is there, which may stop what it takes, or report it to nobody yet.
        message = self._state(lsm.own_pid(self._proc_fd))
        listener = seccomp.load_with_listener(program.instructions, program.flags)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))]
        self._agent.sendmsg([message], rights)
        # Both are close-on-exec.


def _state(program: SeccompProgram, container: TaskId, first: int | None, pid: int) -> bytes:
    """Return the message that goes with the descriptor.

    Source: OCI runtime-spec, config-linux.md "The Container Process State". There is no bundle.
    """
    return msgspec.json.encode(
        {
            "ociVersion": OCI_VERSION,
            "fds": [_FD_NAME],
            "pid": pid,
            "metadata": program.listener_metadata,
            "state": ContainerState(
                id=container,
                status="creating" if first is None else "running",
                pid=pid if first is None else first,
                bundle="",
            ),
        }
    )
