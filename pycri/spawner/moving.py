# SPDX-License-Identifier: Apache-2.0
"""How a child gets into a pid namespace in which others live already.

    fork, in the spawner's own ──▶ all that needs the host ──▶ fork, in the container's ──▶ execve
                                                                  └ Moved; the first one ends

Who is in that namespace sees whoever comes in. With CAP_SYS_PTRACE, which a debugging container
has, he may look through /proc/PID/root at once, and that must not be the host's: what ptrace(2)
asks for keeps out all others, not him. The second process is an orphan, so the spawner's, which is
a subreaper.
"""

import os
from collections.abc import Callable
from typing import NoReturn

from pycri.kernel import process
from pycri.kernel.syscalls import Clone, setns
from pycri.spawner.report import Report


def choose_pid_namespace(pidfd: int, report: Report) -> None:
    """Let `go_on` lead to the pid namespace of the process that is `pidfd`.

    Before a user namespace is joined: pid namespaces are all the host's.
    """
    report.doing("pid namespace")
    setns(pidfd, Clone.NEWPID)


def go_on(report: Report, work: Callable[[], object]) -> NoReturn:
    """Do `work` in a new process, in the chosen pid namespace; the caller ends.

    The caller's mounts must not be the host's any more.
    """
    report.doing("fork")

    def child() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the child's last resort: tell, then end
            report.broken(error)

    pid = process.fork(child)
    report.moved(pid)
    os._exit(0)
