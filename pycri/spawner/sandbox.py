# SPDX-License-Identifier: Apache-2.0
"""The child that makes a pod's namespaces, and the pod's init.

The child makes all namespaces, pins them, sets hostname and sysctls, hands a netlink socket of
the network namespace to the spawner, and ends. For a pod with a shared pid namespace it was
forked into that namespace as its first process, and stays as the program of `podinit.py`.
"""

import os
import signal
import socket
from typing import NoReturn

from pycri.kernel import capabilities, mounts, namespaces, process
from pycri.kernel.syscalls import Clone, sethostname, setns, unshare
from pycri.model.plan import SandboxPlan
from pycri.spawner.init import enter_cgroups
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings

NOBODY = 65534
"""The user and group that own nothing."""


def start_sandbox(plan: SandboxPlan, around: Surroundings, report: Report) -> None:
    """Run in the forked child; returns when all is made, for a pod's init never."""
    process.hide_from_tracing()
    os.setsid()
    if plan.init:
        enter_cgroups(plan.cgroup, report, around)
    kinds = tuple(pin.kind for pin in plan.pins)
    report.doing(f"new namespaces {' '.join(kinds)}")
    namespaces.make_namespaces(kinds)
    report.reached("namespaces")
    if plan.hostname and "uts" in kinds:
        report.doing(f"hostname {plan.hostname}")
        sethostname(plan.hostname)
    for name, value in plan.sysctls:
        report.doing(f"sysctl {name} = {value}")
        _write_sysctl(name, value)
    _pin(plan, report)
    report.reached("pins")
    if "net" in kinds:
        _send_network(report)
    if plan.init:
        _become_init(around, report)
    report.ready()


def _become_init(around: Surroundings, report: Report) -> NoReturn:
    """Turn into the pod's init: a tiny program that owns nothing and sees nothing of the host.

    When it ends, the kernel kills all others in the namespace (pid_namespaces(7)).
    """
    report.doing("pod init")
    setns(around.empty_mounts_fd, Clone.NEWNS)
    unshare(Clone.NEWNS)
    for fd in (0, 1, 2):
        os.close(fd)
    capabilities.limit_bounding((), around.last_capability)
    capabilities.set_no_new_privileges()
    os.setgroups(())
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    process.reset_signals()
    # Kept over the execve: the kernel then reaps the namespace's orphans by itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    report.ready()
    os.execve(around.pod_init_fd, ["pycri-pod-init"], {})  # noqa: S606 - our own program


def _write_sysctl(name: str, value: str) -> None:
    # /proc/sys shows the namespaces of the process that opens it: the new ones.
    with open(f"/proc/sys/{name}", "w") as file:
        file.write(value)


def _pin(plan: SandboxPlan, report: Report) -> None:
    for pin in plan.pins:
        report.doing(pin)
        namespaces.pin(pin.kind, pin.path)
    if plan.shm:
        path, size_bytes = plan.shm
        report.doing(f"shm {path}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        options = (f"size={size_bytes}", "mode=1777")
        tree = mounts.new_filesystem("tmpfs", options, ("nosuid", "nodev", "noexec"))
        mounts.attach_at(tree, path)


def _send_network(report: Report) -> None:
    report.doing("netlink socket")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        report.reached("network", (netlink.fileno(),))
