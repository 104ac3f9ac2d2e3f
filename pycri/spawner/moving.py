# SPDX-License-Identifier: Apache-2.0
"""How a child gets into its pid namespace: late, as another process.

    fork, in the spawner's own ──▶ all that needs the host ──▶ in the container's ──▶ execve
                                                                 └ Moved; the first one ends

Who lives in a pid namespace sees whoever comes in. With CAP_SYS_PTRACE, which a debugging container
has, he may look through /proc/PID/root at once, and that must not be the host's: what ptrace(2)
asks for keeps out all others, not him.

The second process borrows the first one's memory (`kernel/branching.py`), which so is neither
copied nor freed on the way, and is the spawner's child as the first one is.
"""

import os
from collections.abc import Callable
from typing import NoReturn

from pycri.kernel import branching, process
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

    def child(pid: int) -> None:
        try:
            report.moved(pid)
            work()
        except Exception as error:  # noqa: BLE001 - the child's last resort: tell, then end
            report.broken(error)

    if branching.CAN_SHARE:
        branching.go_on_in_child(child, report.fileno())
    _fork(report, child)


def _fork(report: Report, child: Callable[[int], object]) -> NoReturn:
    # An orphan at once, so the spawner's child too, who is a subreaper. It cannot know the pid
    # that it has outside.
    told, known = os.pipe2(os.O_CLOEXEC)
    pid = process.fork(lambda: child(int(os.read(told, 32))))
    os.write(known, b"%d" % pid)
    os._exit(0)
