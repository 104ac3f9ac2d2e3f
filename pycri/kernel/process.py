# SPDX-License-Identifier: Apache-2.0
"""Processes: fork, identity, exit codes, limits. The only user of os.fork."""

import errno
import gc
import os
import resource
import signal
from collections.abc import Callable

import prctl

from pycri.kernel.syscalls import join_session_keyring

FORKED_CHILD_FAILED = 127


def fork(child: Callable[[], object]) -> int:
    """Fork; the child runs `child` and ends, whatever happens in it. Returns the child's pid.

    The caller must have one thread. The child reports its failures itself: an exception that
    comes out of `child` ends it with status 127 and is not printed.
    """
    pid = os.fork()  # noqa: TID251 - this is its one home
    if pid:
        return pid
    status = FORKED_CHILD_FAILED
    try:
        gc.disable()
        child()
        status = 0
    finally:
        os._exit(status)


def kill_and_reap(pid: int) -> None:
    """End a child that may have ended already, and take leave of it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def start_time(pid: int) -> int:
    """Return when a process was started: field 22 of /proc/PID/stat, in clock ticks since boot.

    Raises: ProcessLookupError or FileNotFoundError when there is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The command in parentheses may hold anything, also spaces and parentheses.
        return int(file.read().rpartition(b")")[2].split()[19])


def pid_of(pidfd: int) -> int:
    """Return the pid behind a pidfd, in the pid namespace of /proc; -1 once it is reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def read_boot_id() -> str:
    """Return the id the kernel chose for this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def exit_code(wait_status: int) -> int:
    """Return a wait status as a shell would: the code, or 128 plus the signal."""
    if os.WIFSIGNALED(wait_status):
        return 128 + os.WTERMSIG(wait_status)
    return os.WEXITSTATUS(wait_status)


def reset_signals() -> None:
    """Give each signal we or Python changed its default action, unblock all: as programs expect.

    Python ignores SIGPIPE and SIGXFSZ and handles SIGINT; ignored signals survive an exec.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def heed_signals() -> None:
    """Give each signal that our starter had ignored its default action.

    With nohup, or "&" of a shell, that is inherited by all we start: no hang-up would end them.
    What Python itself ignores stays so.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def become_subreaper() -> None:
    """Adopt orphaned descendants (prctl(2) PR_SET_CHILD_SUBREAPER)."""
    prctl.set_child_subreaper(1)


def hide_from_tracing() -> None:
    """Clear the dumpable flag: nobody in a namespace we join may ptrace us or read our memory."""
    prctl.set_dumpable(0)


def set_name(name: str) -> None:
    """Set the name that ps shows beside the command line, until execve; at most 15 bytes."""
    prctl.set_name(name)


def leave_keyring() -> None:
    """Leave the session keyring, which is our parent's and may hold keys of the host's, for an
    empty one (session-keyring(7)). A kernel without keys is fine."""
    try:
        join_session_keyring()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def set_limit(name: str, soft: int, hard: int) -> None:
    """Set one limit of setrlimit(2); name as there ("RLIMIT_NOFILE"), -1 is unlimited."""
    resource.setrlimit(getattr(resource, name), (soft, hard))


def read_oom_score_adj(pid: int) -> int:
    """Return a process's oom_score_adj. Raises: FileNotFoundError, ProcessLookupError."""
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())


def write_oom_score_adj(value: int, pid: int | None = None) -> None:
    """Set the oom_score_adj of a process, or the caller's; -1000 to 1000 (proc(5)).

    Raises: FileNotFoundError, ProcessLookupError; PermissionError for a value below what the
    process ever had, without CAP_SYS_RESOURCE.
    """
    who = "self" if pid is None else str(pid)
    fd = os.open(f"/proc/{who}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % value)
    finally:
        os.close(fd)


def find_program(name: str, path: str) -> list[str]:
    """Return the paths execvp(3) would try for `name` with the PATH `path`."""
    if "/" in name:
        return [name]
    return [f"{folder or '.'}/{name}" for folder in path.split(":")]
