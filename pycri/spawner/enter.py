# SPDX-License-Identifier: Apache-2.0
"""The child of an exec: joins a running container and executes.

All namespaces are joined by the container's pidfd in one call, so none is looked up by a path and
a container that ends meanwhile is noticed (setns(2)).
"""

import os
from typing import NoReturn

from pycri.kernel import process, terminal
from pycri.kernel.idmaps import become_root
from pycri.kernel.syscalls import Clone, setns
from pycri.model.plan import ExecPlan
from pycri.spawner.confinement import Confinement
from pycri.spawner.execute import execute, set_limits
from pycri.spawner.joining import Groups
from pycri.spawner.mapped import give_to_root
from pycri.spawner.moving import choose_pid_namespace, go_on
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings

_JOINED = Clone.NEWNS | Clone.NEWCGROUP | Clone.NEWUTS | Clone.NEWIPC | Clone.NEWNET


def start_exec(
    plan: ExecPlan,
    pidfd: int,
    stdio: tuple[int, int, int],
    around: Surroundings,
    report: Report,
) -> NoReturn:
    """Run in the forked child."""
    process.hide_from_tracing()
    groups = Groups.make(plan.cgroup, report, around)
    report.doing(f"oom_score_adj {plan.process.oom_score_adj}")
    process.write_oom_score_adj(plan.process.oom_score_adj)
    confinement = Confinement.prepare(plan.process, plan.container, report, pidfd)
    set_limits(plan.process, around, report)
    choose_pid_namespace(pidfd, report)
    _join(plan, pidfd, stdio, report)

    def finish() -> NoReturn:
        groups.join(report)
        ends = _open_terminal(report) if plan.process.terminal else stdio
        execute(plan.process, ends, report, around, confinement)

    go_on(report, finish)


def _open_terminal(report: Report) -> tuple[int, int, int]:
    report.doing("terminal")
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    master, slave = terminal.open_terminal(root_fd)
    report.reached("terminal", (master,))
    return slave, slave, slave


def _join(plan: ExecPlan, pidfd: int, stdio: tuple[int, int, int], report: Report) -> None:
    report.doing("join namespaces")
    if plan.user_namespace is None:
        setns(pidfd, _JOINED)
        return
    give_to_root(stdio, plan.user_namespace)
    setns(pidfd, _JOINED | Clone.NEWUSER)
    become_root()
