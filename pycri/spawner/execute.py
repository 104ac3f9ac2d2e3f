# SPDX-License-Identifier: Apache-2.0
"""The last stretch of every child: stdio, identity, working directory, execve.

By now the root is the container's: nothing may be imported, looked up or opened by a host path.
"""

import os
from typing import NoReturn

from pycri.errors import SetupFailed
from pycri.kernel import capabilities, process, terminal
from pycri.model.plan import ProcessPlan
from pycri.spawner.report import Report
from pycri.spawner.surroundings import Surroundings


def execute(
    plan: ProcessPlan, stdio: tuple[int, int, int], report: Report, around: Surroundings
) -> NoReturn:
    """Become the planned process. stdio: descriptors for 0, 1, 2.

    Raises: SetupFailed or OSError; the caller reports them.
    """
    report.doing("stdio")
    _set_stdio(plan, stdio)
    report.doing("limits")
    process.set_limit("RLIMIT_NOFILE", *around.files_limit)
    for name, soft, hard in plan.rlimits:
        process.set_limit(name, soft, hard)
    report.doing(f"working directory {plan.cwd}")
    _enter_directory(plan.cwd)
    report.doing("identity")
    _set_identity(plan, around.last_capability)
    process.reset_signals()
    os.umask(0o022)
    report.ready()
    _execve(plan)


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
    sets = plan.capabilities
    capabilities.limit_bounding(sets.bounding, last)
    capabilities.switch_user(plan.user.uid, plan.user.gid, plan.user.groups)
    capabilities.set_capabilities(
        effective=sets.effective,
        permitted=sets.permitted,
        inheritable=sets.inheritable,
        ambient=sets.ambient,
    )
    if plan.no_new_privs:
        capabilities.set_no_new_privileges()


def _execve(plan: ProcessPlan) -> NoReturn:
    env = dict(entry.partition(b"=")[::2] for entry in plan.env)
    path = os.fsdecode(env.get(b"PATH", b""))
    name = plan.args[0]
    failure: OSError = FileNotFoundError(2, "executable file not found in $PATH", name)
    for program in process.find_program(name, path):
        try:
            os.execve(program, plan.args, env)  # noqa: S606 - a shell would be the bug
        except (FileNotFoundError, NotADirectoryError) as error:
            if "/" in name:
                failure = error
        except PermissionError as error:
            failure = error
        except OSError as error:
            failure = error
            break
    raise SetupFailed(f"exec {name}", failure.errno or 0, failure.strerror or "failed")
