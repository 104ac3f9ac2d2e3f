# SPDX-License-Identifier: Apache-2.0
"""Compiled filters, asked by a real process: each call is made, and its errno compared.

Arguments are such that an allowed call does nothing: it fails with another error than the filter's,
or succeeds.
"""

import ctypes
import errno
import os
from collections.abc import Iterable

import pytest

from pycri.kernel import lsm, seccomp
from pycri.kernel.process import fork, pid_of
from pycri.kernel.seccomp_compiler import compile_filter
from pycri.model.seccomp import SeccompAction, SeccompArchitecture, SeccompFilter, SeccompRule
from pycri.plan.seccomp import select_rules
from pycri.plan.seccomp_default import default_profile

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the numbers below are those of x86-64"
)

X32 = 0x40000000
HIGH = 1 << 32
"""In the upper half of a register, of which the kernel takes an int only."""
NEWEST = 100_000
NOWHERE = 0xFFFF_FFFF_FFFF_F000
"""No address: EFAULT."""
Call = tuple[int, ...]

ALLOWED: dict[str, Call] = {
    "getpid": (39,),
    "read": (0, HIGH - 1, 0, 0),
    "chmod": (90, NOWHERE, 0),
    "fchmodat2": (452, 0, NOWHERE, 0, 0),
    "setuid": (105, 0),
    "ptrace": (101, 2, 0, 0, 0),
    "clone for a thread": (56, 0x10000, 0, 0, 0, 0),
    "socket inet": (41, 2, 1, 0),
    "socket unix": (41, 1, 1, 0),
    "socket netlink": (41, 16, 3, 0),
    "socket inet with rubbish above": (41, HIGH | 2, 1, 0),
    "personality question": (135, 0xFFFFFFFF),
    "personality linux32": (135, 0x8),
    "memfd_create": (319, NOWHERE, 0),
    "landlock_create_ruleset": (444, 0, 0, 1),
    "seccomp question": (317, 2, 0, NOWHERE),
    "statx": (332, 0, NOWHERE, 0, 0, NOWHERE),
    "cachestat": (451, HIGH - 1, 0, 0, 0),
}
REFUSED: dict[str, Call] = {
    "mount": (165, 0, 0, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "setns": (308, HIGH - 1, 0),
    "clone into a user namespace": (56, 0x10000000, 0, 0, 0, 0),
    "sethostname": (170, NOWHERE, 1),
    "reboot": (169, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "io_uring_setup": (425, 1, NOWHERE),
    "io_uring_enter": (426, HIGH - 1, 0, 0, 0, 0),
    "open_by_handle_at": (304, 0, NOWHERE, 0),
    "chroot": (161, NOWHERE),
    "acct": (163, NOWHERE),
    "settimeofday": (164, NOWHERE, 0),
    "pivot_root": (155, NOWHERE, NOWHERE),
    "open_tree": (428, 0, NOWHERE, 0),
    "mbind": (237, 0, 0, 0, 0, 0, 0),
    "socket alg": (41, 38, 5, 0),
    "socket alg with rubbish above": (41, HIGH | 38, 5, 0),
    "socket vsock": (41, 40, 1, 0),
    "personality read-implies-exec": (135, 0x400000),
}
MISSING: dict[str, Call] = {
    "clone3": (435, 0, 0),
    "a call of tomorrow": (NEWEST,),
    "getpid of x32": (X32 | 39,),
}
ADMIN = {"mount", "unshare", "setns", "clone into a user namespace", "sethostname", "bpf",
         "perf_event_open", "open_tree"}  # fmt: skip
"""What CAP_SYS_ADMIN in the bounding set brings."""


def ask(wanted: SeccompFilter, calls: Iterable[Call]) -> list[int]:
    """Return the errno of each call, 0 for success, as made by a process under the filter."""
    program = compile_filter(wanted)
    libc = ctypes.CDLL(None, use_errno=True)
    ours, theirs = os.pipe()

    def child() -> None:
        seccomp.load(program.instructions, program.flags)
        numbers = []
        for number, *arguments in calls:
            ctypes.set_errno(0)
            before = os.getpid()
            result = libc.syscall(number, *(ctypes.c_ulong(a) for a in arguments))
            if number == 56 and result == 0:
                os._exit(0)  # clone made us
            assert os.getpid() == before
            numbers.append(ctypes.get_errno() if result == -1 else 0)
        os.write(theirs, bytes(numbers))

    pid = fork(child)
    os.close(theirs)
    with open(ours, "rb") as file:
        numbers = list(file.read())
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return numbers


def default(*capabilities: str) -> SeccompFilter:
    return select_rules(default_profile(), frozenset(capabilities), "amd64", (6, 12))


def by_name(wanted: SeccompFilter, calls: dict[str, Call]) -> dict[str, int]:
    return dict(zip(calls, ask(wanted, calls.values()), strict=True))


def test_the_default_filter_allows_what_ordinary_programs_do() -> None:
    outcomes = by_name(default(), ALLOWED)
    assert {n: e for n, e in outcomes.items() if e in (errno.EPERM, errno.ENOSYS)} == {}


def test_the_default_filter_refuses_what_reaches_beyond_a_container() -> None:
    assert by_name(default(), REFUSED) == dict.fromkeys(REFUSED, errno.EPERM)


def test_what_programs_fall_back_from_is_missing_not_refused() -> None:
    assert by_name(default(), MISSING) == dict.fromkeys(MISSING, errno.ENOSYS)


def test_a_capability_brings_its_calls_and_no_others() -> None:
    others = {name: call for name, call in REFUSED.items() if name not in ADMIN}
    assert by_name(default("CAP_SYS_ADMIN"), others) == dict.fromkeys(others, errno.EPERM)
    harmless = {name: REFUSED[name] for name in ("mount", "setns", "sethostname", "open_tree")}
    outcomes = by_name(default("CAP_SYS_ADMIN"), harmless)
    assert errno.EPERM not in outcomes.values()
    clone3 = ask(default("CAP_SYS_ADMIN"), [MISSING["clone3"]])
    assert clone3 == [errno.EINVAL]
    assert ask(default("CAP_SYS_CHROOT"), [REFUSED["chroot"]]) == [errno.EFAULT]


def rules(*names: str, **fields: object) -> SeccompFilter:
    plain = {
        "default_action": SeccompAction.ERRNO,
        "default_errno": errno.ENOTNAM,
        "architectures": (),
        "flags": (),
        "rules": (SeccompRule(names=("write", "exit_group", "getpid", *names)),),
    }
    return SeccompFilter(**(plain | fields))  # type: ignore[arg-type]


def test_both_sets_of_numbers_of_x86_64_end_where_the_profile_ends() -> None:
    both = rules("getppid", architectures=(SeccompArchitecture.X32,))
    for number, outcome in (
        (111, errno.ENOTNAM),  # getpgrp: known, not named
        (231 + 1, errno.ENOSYS),  # above exit_group, the highest named
        (X32 | 111, errno.ENOTNAM),
        (X32 | 232, errno.ENOSYS),
    ):
        assert ask(both, [(number,)]) == [outcome], number


def test_a_filter_that_allows_by_default_leaves_new_calls_to_the_kernel() -> None:
    refusing = SeccompRule(names=("getppid",), action=SeccompAction.ERRNO, errno=errno.ENOTNAM)
    wanted = rules(default_action=SeccompAction.ALLOW, rules=(refusing,))
    assert ask(wanted, [(110,), (NEWEST,)]) == [errno.ENOTNAM, errno.ENOSYS]


def test_arguments_twice_on_one_index_count_alone() -> None:
    """As in runc: libseccomp cannot ask two things of one argument."""
    parsed = default_profile().rules
    personalities = [entry.rule for entry in parsed if "personality" in entry.rule.names]
    either = SeccompRule(
        names=("personality",),
        arguments=(*personalities[1].arguments, *personalities[-1].arguments),
    )
    base = rules("personality").rules[0]
    wanted = rules(rules=(SeccompRule(names=base.names[:-1]), either))
    assert ask(wanted, [(135, 0xFFFFFFFF), (135, 0x20000)]) == [0, errno.ENOTNAM]


def test_without_privilege_a_filter_needs_no_new_privs() -> None:
    program = compile_filter(default())

    def child() -> None:
        os.setresuid(65534, 65534, 65534)
        try:
            seccomp.load(program.instructions, program.flags)
        except PermissionError:
            os._exit(42)

    _, status = os.waitpid(fork(child), 0)
    assert os.waitstatus_to_exitcode(status) == 42


def test_a_program_that_is_none_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        seccomp.load(b"\xff" * 8, 0)


def test_a_pidfd_tells_its_pid() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        assert pid_of(pidfd) == os.getpid()
    finally:
        os.close(pidfd)


@pytest.mark.skipif(
    os.path.exists("/sys/module/apparmor") or os.path.isdir("/sys/fs/selinux/class"),
    reason="asks what happens where the kernel has no such module",
)
def test_labels_are_refused_by_a_kernel_without_their_module() -> None:
    """An error, and no label that is written to nowhere."""
    assert lsm.read_apparmor_profiles() == frozenset()
    proc_fd = lsm.open_proc()
    try:
        with pytest.raises(FileNotFoundError):
            lsm.set_apparmor_exec(proc_fd, "profile")
        with pytest.raises(OSError, match="Invalid argument"):
            lsm.set_selinux_exec(proc_fd, "u:r:t:s0")
    finally:
        os.close(proc_fd)
