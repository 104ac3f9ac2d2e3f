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

from pycri.kernel import capabilities, idmaps, mounts, namespaces, process
from pycri.kernel.syscalls import Clone, sethostname, setns, unshare
from pycri.model.plan import PinNamespace, SandboxPlan
from pycri.model.security import IdMappings
from pycri.spawner.joining import Groups
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings

NOBODY = 65534
"""The user and group that own nothing."""


def start_sandbox(plan: SandboxPlan, around: Surroundings, report: Report) -> None:
    """Run in the forked child; returns when all is made, for a pod's init never."""
    process.hide_from_tracing()
    os.setsid()
    if plan.init:
        Groups.make(plan.cgroup, report, around).join(report)
    if plan.user_namespace is None:
        _make(plan, report)
        _pin(plan, report)
    elif not _make_inside(plan, plan.user_namespace, around, report):
        return
    if plan.init:
        _become_init(plan, around, report)
    report.ready()


def _become_init(plan: SandboxPlan, around: Surroundings, report: Report) -> NoReturn:
    """Turn into the pod's init: a tiny program that owns nothing and sees nothing of the host.

    When it ends, the kernel kills all others in the namespace (pid_namespaces(7)).
    """
    report.doing("pod init")
    for fd in (0, 1, 2):
        os.close(fd)
    capabilities.limit_bounding((), around.last_capability)
    capabilities.set_no_new_privileges()
    ids = plan.user_namespace
    if ids is None:
        _enter_nothing(around)
    # A user namespace too small for that user has been entered as its root, who is nobody outside.
    if ids is None or (ids.host_uid(NOBODY) is not None and ids.host_gid(NOBODY) is not None):
        os.setgroups(())
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    process.reset_signals()
    # Kept over the execve: the kernel then reaps the namespace's orphans by itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    report.ready()
    os.execve(around.pod_init_fd, ["pycri-pod-init"], {})  # noqa: S606 - our own program


def _make(plan: SandboxPlan, report: Report) -> None:
    """Make the namespaces and prepare them; the caller is in them afterwards."""
    kinds = tuple(pin.kind for pin in plan.pins if pin.kind != "user")
    report.doing(f"new namespaces {' '.join(kinds)}")
    namespaces.make_namespaces(kinds)
    if plan.network:
        report.doing(f"join the network namespace {plan.network}")
        namespaces.join("net", plan.network)
    report.reached("namespaces")
    if plan.hostname and "uts" in kinds:
        report.doing(f"hostname {plan.hostname}")
        sethostname(plan.hostname)
    for name, value in plan.sysctls:
        report.doing(f"sysctl {name} = {value}")
        _write_sysctl(name, value)
    if "net" in kinds:
        _send_network(report)


def _make_inside(plan: SandboxPlan, ids: IdMappings, around: Surroundings, report: Report) -> bool:
    """Make the namespaces in a new user namespace, which owns them so, and pin them all.

    A child makes them: pins and maps take the host's rights, which it has no more. For a pod with
    an init the caller joins them too. Returns False if the child failed and has said so.
    """

    def make() -> None:
        try:
            idmaps.become_root()
            _make(plan, report)
        except Exception as error:
            report.broken(error)
            raise

    report.doing("new user namespace")
    try:
        with idmaps.child_inside(ids, make) as (pid, process_fd):
            for pin in plan.pins:
                report.doing(pin)
                _pin_of(process_fd, pin)
            _mount_shm(plan, report)
            report.reached("pins")
            if plan.init:
                report.doing("join the user namespace")
                _become_init_of(pid, plan, around)
    except ChildProcessError:
        return False
    return True


def _pin_of(process_fd: int, pin: PinNamespace) -> None:
    fd = idmaps.open_namespace(process_fd, pin.kind)
    try:
        namespaces.pin_fd(fd, pin.path)
    finally:
        os.close(fd)


def _become_init_of(pid: int, plan: SandboxPlan, around: Surroundings) -> None:
    flags = Clone(0)
    for pin in plan.pins:
        flags |= namespaces.CLONE_FLAGS[pin.kind]
    pidfd = os.pidfd_open(pid)
    try:
        _enter_nothing(around)
        setns(pidfd, flags)
    finally:
        os.close(pidfd)
    idmaps.become_root()


def _enter_nothing(around: Surroundings) -> None:
    """Enter a copy of the empty mount namespace."""
    setns(around.empty_mounts_fd, Clone.NEWNS)
    unshare(Clone.NEWNS)


def _write_sysctl(name: str, value: str) -> None:
    # /proc/sys shows the namespaces of the process that opens it: the new ones.
    with open(f"/proc/sys/{name}", "w") as file:
        file.write(value)


def _pin(plan: SandboxPlan, report: Report) -> None:
    for pin in plan.pins:
        report.doing(pin)
        namespaces.pin(pin.kind, pin.path)
    _mount_shm(plan, report)
    report.reached("pins")


def _mount_shm(plan: SandboxPlan, report: Report) -> None:
    if plan.shm:
        path, size_bytes = plan.shm
        report.doing(f"shm {path}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        ids = plan.user_namespace
        owner = (f"uid={ids.host_uid(0)}", f"gid={ids.host_gid(0)}") if ids else ()
        options = (f"size={size_bytes}", "mode=1777", *owner)
        tree = mounts.new_filesystem("tmpfs", options, ("nosuid", "nodev", "noexec"))
        mounts.attach_at(tree, path)


def _send_network(report: Report) -> None:
    report.doing("netlink socket")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        report.reached("network", (netlink.fileno(),))
