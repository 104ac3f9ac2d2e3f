# SPDX-License-Identifier: Apache-2.0
"""The last stretch of every child: stdio, identity, working directory, confinement, execve.

By now the root is the container's: nothing may be imported, looked up or opened by a host path.
"""

import os
from collections.abc import Callable
from typing import NoReturn

from pycri.errors import SetupFailed
from pycri.kernel import capabilities, process, terminal
from pycri.model.plan import ProcessPlan
from pycri.spawner.confinement import Confinement
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings

_CAP_SYS_ADMIN = 21
_NOT_IN_PATH = "executable file not found in $PATH"


def execute(
    plan: ProcessPlan,
    stdio: tuple[int, int, int],
    report: Report,
    around: Surroundings,
    confinement: Confinement,
    hooks: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Become the planned process. stdio: descriptors for 0, 1, 2. hooks: run as its user.

    Raises: SetupFailed or OSError; the caller reports them.
    """
    report.doing("stdio")
    os.setsid()
    _set_stdio(plan, stdio)
    report.doing(f"working directory {plan.cwd}")
    _enter_directory(plan.cwd)
    report.doing("session keyring")
    process.leave_keyring()
    report.doing("identity")
    _set_identity(plan, around.last_capability)
    os.umask(0o022)
    hooks()
    process.reset_signals()
    env = dict(entry.partition(b"=")[::2] for entry in plan.env)
    programs = process.find_program(plan.args[0], os.fsdecode(env.get(b"PATH", b"")))
    if plan.seccomp is not None:
        # A filter may forbid even to report: what can be known before is said before.
        _check_exists(plan.args[0], programs)
    report.ready()
    # The filter comes last, so a profile need not allow what it took to get here.
    confinement.apply(report)
    _execve(plan.args, env, programs)


def set_limits(plan: ProcessPlan, around: Surroundings, report: Report) -> None:
    """Set the limits; before a user namespace is entered, for raising one takes the host's
    CAP_SYS_RESOURCE."""
    report.doing("limits")
    process.set_limit("RLIMIT_NOFILE", *around.files_limit)
    for name, soft, hard in plan.rlimits:
        process.set_limit(name, soft, hard)


def _set_stdio(plan: ProcessPlan, stdio: tuple[int, int, int]) -> None:
    if plan.terminal:
        terminal.make_controlling(stdio[0])
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
        # A process that is not root may reopen /dev/stdout; the pipe must be its own then.
        if fd != 0 and not _is_null_device(number):
            os.fchown(number, plan.user.uid, -1 if plan.terminal else plan.user.gid)


def _is_null_device(fd: int) -> bool:
    return os.fstat(fd).st_rdev == os.makedev(1, 3)


def _enter_directory(path: str) -> None:
    try:
        os.chdir(path)
    except FileNotFoundError:
        os.makedirs(path, mode=0o755, exist_ok=True)
        os.chdir(path)
    # CVE-2024-21626: getcwd fails, or is not absolute, for a directory outside of our root.
    if not os.getcwd().startswith("/"):
        raise OSError(2, "lies outside of the container", path)


def _set_identity(plan: ProcessPlan, last: int) -> None:
    """Become the user. CAP_SYS_ADMIN, which loading a filter takes without no_new_privs, is kept
    until execve: that computes the permitted set anew, and counts only the bounding, inheritable
    and ambient ones (capabilities(7))."""
    sets = plan.capabilities
    kept = (_CAP_SYS_ADMIN,) if plan.seccomp is not None and not plan.no_new_privs else ()
    capabilities.limit_bounding(sets.bounding, last)
    capabilities.switch_user(plan.user.uid, plan.user.gid, plan.user.groups)
    capabilities.set_capabilities(
        effective=(*sets.effective, *kept),
        permitted=(*sets.permitted, *kept),
        inheritable=sets.inheritable,
        ambient=sets.ambient,
    )
    if plan.no_new_privs:
        capabilities.set_no_new_privileges()


def _check_exists(name: str, programs: list[str]) -> None:
    for program in programs:
        try:
            os.stat(program)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return
        return
    raise SetupFailed(f"exec {name}", 2, os.strerror(2) if "/" in name else _NOT_IN_PATH)


def _execve(args: tuple[str, ...], env: dict[bytes, bytes], programs: list[str]) -> NoReturn:
    name = args[0]
    failure: OSError = FileNotFoundError(2, _NOT_IN_PATH, name)
    for program in programs:
        try:
            os.execve(program, args, env)  # noqa: S606 - a shell would be the bug
        except (FileNotFoundError, NotADirectoryError) as error:
            if "/" in name:
                failure = error
        except PermissionError as error:
            failure = error
        except OSError as error:
            failure = error
            break
    raise SetupFailed(f"exec {name}", failure.errno or 0, failure.strerror or "failed")
