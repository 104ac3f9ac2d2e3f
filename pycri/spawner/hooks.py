# SPDX-License-Identifier: Apache-2.0
"""Hooks of a container: programs, most of them the host's, that are run before its own.

Nothing of the host is in a container's mount namespace, and hooks are files of the host that look
at the container's root. So another process runs them, with the host's mounts, which shows them the
root where `config.json` says it is:

    first process                          runner
    fork ────────────────────────────────▶ a copy of the host's mounts
    sources, namespaces, second process
    steps
    Moved, clone of the root's tree ─────▶ attached at BUNDLE/rootfs
      │                                    create_runtime, in the host's namespaces
      │                                    create_container, in those of the container
    root, execve ◀───────── Ready, Broken

While they run, the root is shared with its clone: what a hook mounts there is the container's too.
The runner stays in the host's pid namespace: whoever lives in that of a pod, and may trace, would
find the host behind /proc/PID/root (`moving.py`).

Source: OCI runtime-spec 1.1, config.md "POSIX-platform Hooks".
"""

import errno
import os
import select
import signal
import socket
from functools import partial
from typing import NoReturn

import msgspec

from pycri.errors import SetupFailed
from pycri.kernel import lsm, mounts, process
from pycri.kernel.memfiles import make_file
from pycri.kernel.syscalls import Clone, MountFlag, mount, setns, unshare
from pycri.model.hooks import ContainerState, Hook
from pycri.model.ids import TaskId
from pycri.model.plan import HookPlan
from pycri.spawner.report import Report
from pycri.wire.channel import Channel
from pycri.wire.messages import FROM_CHILD, Broken, Moved

_SHARED = Clone.NEWNET | Clone.NEWIPC | Clone.NEWUTS | Clone.NEWCGROUP
_OUTPUT_SHOWN = 1024


class HookRunner:
    """The process that runs what needs the host, as seen by the one that becomes the container."""

    def __init__(self, channel: Channel, proc_fd: int) -> None:
        self._channel = channel
        self._proc_fd = proc_fd

    @classmethod
    def start(cls, plan: HookPlan, container: TaskId, report: Report) -> "HookRunner":
        """Fork the runner; before the caller leaves the host's mounts and namespaces."""
        report.doing("fork for hooks")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve() -> None:
            # Its end means that the container executes, and must not wait for this process.
            report.close()
            ours.close()
            answer = Report(Channel(theirs))
            try:
                _serve(plan, container, Channel(theirs), answer)
            except Exception as error:  # noqa: BLE001 - the process's last resort: tell, then end
                answer.broken(error)

        process.fork(serve)
        theirs.close()
        return cls(Channel(ours), lsm.open_proc())

    def run(self, root_fd: int, report: Report) -> None:
        """Let all hooks up to createContainer be run; borrows the root's descriptor.

        Raises: SetupFailed naming the first that fails.
        """
        report.doing("hooks")
        mounts.set_propagation(root_fd, "shared", recursive=False)
        tree = mounts.clone_fd(root_fd, recursive=True)
        self._channel.send(Moved(pid=lsm.own_pid(self._proc_fd)), (tree,))
        os.close(tree)
        received = self._channel.receive(FROM_CHILD)
        if received is None:
            raise SetupFailed("hooks", 0, "the process that runs them was killed")
        if isinstance(broken := received[0], Broken):
            raise SetupFailed(broken.step, broken.errno, broken.reason)
        mounts.set_propagation(root_fd, "private", recursive=False)
        report.reached("hooks")


def run_in_container(plan: HookPlan, container: TaskId) -> None:
    """Run the startContainer hooks as the calling process's user, in its root."""
    state = _state(plan, container, "created", os.getpid())
    for hook in plan.hooks.start_container:
        run_hook("startContainer", hook, state, "/")


def run_hook(name: str, hook: Hook, state: bytes, folder: str, waiting_fd: int = -1) -> None:
    """Run one hook to its end, with `state` to read and `folder` to be in.

    waiting_fd: a socket to who waits for it; without him the hook is killed.
    Raises: SetupFailed, with the last of what it printed, unless it ends with 0 and in time.
    """
    step = f"{name} hook {hook.path}"
    stdin, output = make_file("state", state), make_file("output", b"")
    try:
        pid = process.fork(partial(_become, hook, folder, stdin, output))
        code = _await(pid, hook.timeout_s, waiting_fd)
        said = os.pread(output, _OUTPUT_SHOWN, max(0, os.fstat(output).st_size - _OUTPUT_SHOWN))
    finally:
        os.close(stdin)
        os.close(output)
    if code is None:
        raise SetupFailed(step, errno.ETIMEDOUT, f"has not ended in {hook.timeout_s} s")
    if code:
        text = said.decode(errors="replace").strip()
        raise SetupFailed(step, 0, f"ended with {code}: {text}" if text else f"ended with {code}")


def _serve(plan: HookPlan, container: TaskId, channel: Channel, answer: Report) -> None:
    answer.doing("copy the host's mounts for hooks")
    unshare(Clone.NEWNS)
    mount("", "/", "", MountFlag.REC | MountFlag.SLAVE)
    received = channel.receive(FROM_CHILD)
    if received is None:
        return
    message, (tree,) = received
    assert isinstance(message, Moved)
    answer.doing(f"attach the root at {plan.bundle}/rootfs")
    mounts.attach_at(tree, f"{plan.bundle}/rootfs")
    mounts.set_attributes(tree, ("rw",))
    state = _state(plan, container, "creating", message.pid)
    for hook in plan.hooks.create_runtime:
        run_hook("createRuntime", hook, state, plan.bundle, channel.fileno())
    answer.doing("join the container's namespaces for hooks")
    pidfd = os.pidfd_open(message.pid)
    setns(pidfd, _SHARED)
    os.close(pidfd)
    for hook in plan.hooks.create_container:
        run_hook("createContainer", hook, state, plan.bundle, channel.fileno())
    answer.ready()


def _state(plan: HookPlan, container: TaskId, status: str, pid: int) -> bytes:
    return msgspec.json.encode(
        ContainerState(
            id=container,
            status=status,
            pid=pid,
            bundle=plan.bundle,
            annotations=plan.annotations,
        )
    )


def _become(hook: Hook, folder: str, stdin: int, output: int) -> NoReturn:
    for number, fd in enumerate((stdin, output, output)):
        os.dup2(fd, number)
    os.chdir(folder)
    process.reset_signals()
    env = dict(entry.partition("=")[::2] for entry in hook.env)
    try:
        os.execve(hook.path, hook.args, env)  # noqa: S606 - a shell would be the bug
    except OSError as error:
        os.write(2, f"{error.strerror}".encode())
        os._exit(process.FORKED_CHILD_FAILED)


def _await(pid: int, timeout_s: int | None, waiting_fd: int) -> int | None:
    """Return how a child ended, as a shell would; None if it was killed for its time."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if waiting_fd >= 0:
            poll.register(waiting_fd, 0)
        happened = poll.poll(None if timeout_s is None else timeout_s * 1000)
        ended = any(fd == pidfd for fd, _ in happened)
    finally:
        os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = process.exit_code(os.waitpid(pid, 0)[1])
    return code if ended else None
