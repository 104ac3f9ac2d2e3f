# SPDX-License-Identifier: Apache-2.0
"""The init child of a container: applies a finished ContainerPlan and executes.

In order: session, cgroups, namespaces, mounts (host's sources first, then the container's own
empty mount namespace), root, identity, execve. Any failure is one message; the process then ends
and the kernel takes its namespaces and mounts with it.
"""

import os
from functools import partial
from typing import NoReturn

from pycri.kernel import mounts, namespaces, process, terminal
from pycri.kernel.paths import make_file_beneath
from pycri.kernel.syscalls import Clone, setns, unshare
from pycri.model.plan import ContainerPlan
from pycri.spawner.confinement import Confinement
from pycri.spawner.execute import execute, set_limits
from pycri.spawner.hooks import HookRunner, run_in_container
from pycri.spawner.joining import Groups
from pycri.spawner.mapped import MappedSources, enter, give_to_root
from pycri.spawner.moving import choose_pid_namespace, go_on
from pycri.spawner.report import Report
from pycri.spawner.steps import apply_steps, open_sources, sources_of
from pycri.spawner.surroundings import Surroundings

ROOT = "/root"
"""Where the root is mounted in the empty mount namespace (`mounts.enter_empty_root`)."""


def start_container(
    plan: ContainerPlan,
    target: int,
    stdio: tuple[int, int, int],
    around: Surroundings,
    report: Report,
) -> NoReturn:
    """Run in the forked child. stdio: the child's ends; with a terminal they are replaced.

    target: pidfd of whose pid namespace to join, if the plan joins one.
    """
    process.hide_from_tracing()
    groups = Groups.make(plan.cgroup, report, around)
    if plan.new_namespaces:
        # A new cgroup namespace shows as its root the group that its maker is in.
        groups.join(report)
    report.doing(f"oom_score_adj {plan.process.oom_score_adj}")
    process.write_oom_score_adj(plan.process.oom_score_adj)
    report.reached("cgroup")
    confinement = Confinement.prepare(plan.process, plan.id, report)
    runner = HookRunner.start(plan.hooks, plan.id, report) if plan.hooks else None
    _enter_namespaces(plan, report)
    if plan.log_path:
        report.doing(f"log {plan.log_path}")
        _make_log(plan.log_path)
    mapped = MappedSources(plan.user_namespace)
    trees, root = _open_all(plan, mapped, around, report)

    def finish() -> NoReturn:
        root_fd = apply_steps(plan.steps, trees, root, report)
        groups.join(report)
        if runner is not None:
            runner.run(root_fd, report)
        ends = _open_terminal(root_fd, report) if plan.process.terminal else stdio
        _enter_root(plan, root_fd, mapped, ends, report)
        execute(plan.process, ends, report, around, confinement, partial(_run_hooks, plan, report))

    set_limits(plan.process, around, report)
    if plan.pid_namespace == "join":
        choose_pid_namespace(target, report)
    elif plan.pid_namespace == "new":
        namespaces.make_namespaces(("pid",))
    go_on(report, finish)


def _enter_namespaces(plan: ContainerPlan, report: Report) -> None:
    for namespace in plan.namespaces:
        report.doing(namespace)
        namespaces.join(namespace.kind, namespace.path)
    report.doing(f"new namespaces {' '.join(plan.new_namespaces)}")
    namespaces.make_namespaces(plan.new_namespaces)


def _run_hooks(plan: ContainerPlan, report: Report) -> None:
    if plan.hooks is not None:
        report.doing("hooks")
        run_in_container(plan.hooks, plan.id)


def _enter_root(
    plan: ContainerPlan,
    root_fd: int,
    mapped: MappedSources,
    stdio: tuple[int, int, int],
    report: Report,
) -> None:
    report.doing("pivot_root")
    mounts.pivot_into(root_fd)
    report.reached("mounts")
    if plan.user_namespace is not None:
        report.doing(plan.user_namespace)
        if not plan.process.terminal:
            give_to_root(stdio, plan.user_namespace.ids)
        enter(mapped.namespace(plan.user_namespace.ids))


def _open_all(
    plan: ContainerPlan, mapped: MappedSources, around: Surroundings, report: Report
) -> tuple[list[int], str]:
    """Leave the host's mounts with all that is needed of them, for a mount namespace of our own.

    Returns the sources' trees, and the folder where to attach the root.
    """
    trees = open_sources(plan.steps, report, mapped, append=around.overlay_append)
    report.reached("sources")
    report.doing("mount namespace")
    setns(around.empty_mounts_fd, Clone.NEWNS)
    unshare(Clone.NEWNS)
    root = mapped.make_overlays(
        sources_of(plan.steps), trees, ROOT, report, append=around.overlay_append
    )
    return trees, root


def _make_log(path: str) -> None:
    """Make the log file: the kubelet links to it as soon as the start has returned."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    os.close(os.open(path, flags, 0o640))


def _open_terminal(root_fd: int, report: Report) -> tuple[int, int, int]:
    """Open the container's pty, put it on /dev/console, send the master to the spawner."""
    report.doing("terminal")
    master, slave = terminal.open_terminal(root_fd)
    console = mounts.clone_fd(slave)
    target = make_file_beneath(root_fd, "/dev/console", 0o600)
    mounts.attach(console, target)
    report.reached("terminal", (master,))
    for fd in (master, console, target):
        os.close(fd)
    return slave, slave, slave
