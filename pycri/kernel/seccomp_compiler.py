# SPDX-License-Identifier: Apache-2.0
"""Seccomp filters to BPF, by libseccomp. The only user of pyseccomp; never in the spawner.

libseccomp knows the system calls up to its own release. Newer ones would get the default action,
which is EPERM in most profiles, and a program that tries a new call first would give up instead of
falling back. So a program begins with a check of its own, as in runc: a number above the highest
that the profile names fails with ENOSYS, as on the kernel the profile was written for.
"""

import os
import struct

import pyseccomp  # noqa: TID251 - this is its one home

from pycri.model.seccomp import (
    SeccompAction,
    SeccompArchitecture,
    SeccompFilter,
    SeccompFlag,
    SeccompOperator,
    SeccompProgram,
    SeccompRule,
)

FLAGS = {
    SeccompFlag.LOG: 1 << 1,
    SeccompFlag.SPEC_ALLOW: 1 << 2,
    SeccompFlag.WAIT_KILLABLE_RECV: 1 << 5,
}
"""Of seccomp(2). TSYNC is for other threads, and the child that loads the filter has none."""

_ARCHITECTURES = {
    SeccompArchitecture.X86_64: pyseccomp.Arch.X86_64,
    SeccompArchitecture.X86: pyseccomp.Arch.X86,
    SeccompArchitecture.X32: pyseccomp.Arch.X32,
    SeccompArchitecture.AARCH64: pyseccomp.Arch.AARCH64,
    SeccompArchitecture.ARM: pyseccomp.Arch.ARM,
}
_OPERATORS = {
    SeccompOperator.NE: pyseccomp.NE,
    SeccompOperator.LT: pyseccomp.LT,
    SeccompOperator.LE: pyseccomp.LE,
    SeccompOperator.EQ: pyseccomp.EQ,
    SeccompOperator.GE: pyseccomp.GE,
    SeccompOperator.GT: pyseccomp.GT,
    SeccompOperator.MASKED_EQ: pyseccomp.MASKED_EQ,
}
_ACTIONS = {
    SeccompAction.ALLOW: pyseccomp.ALLOW,
    SeccompAction.KILL: pyseccomp.KILL_THREAD,
    SeccompAction.KILL_THREAD: pyseccomp.KILL_THREAD,
    SeccompAction.KILL_PROCESS: pyseccomp.KILL_PROCESS,
    SeccompAction.LOG: pyseccomp.LOG,
    SeccompAction.NOTIFY: pyseccomp.NOTIFY,
    SeccompAction.TRAP: pyseccomp.TRAP,
}
_UNKNOWN = -1
"""What libseccomp resolves a name to that it does not know; other negative numbers are calls of
other architectures."""
_BINARY_TREE = 2
"""SCMP_FLTATR_CTL_OPTIMIZE: numbers are searched, not compared one by one."""

# struct sock_filter, linux/filter.h; offsets in struct seccomp_data, linux/seccomp.h
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_NOT_LESS, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
_X32_BIT = 0x40000000
_ENOSYS = 38


def compile_filter(wanted: SeccompFilter) -> SeccompProgram:
    """Return the program for this host. A call that libseccomp does not know is left out.

    Raises: ValueError when rules contradict each other or there are too many.
    """
    try:
        compiled = pyseccomp.SyscallFilter(_action(wanted.default_action, wanted.default_errno))
        compiled.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
        for architecture in dict.fromkeys(wanted.architectures):
            compiled.add_arch(_ARCHITECTURES[architecture])
        for rule in wanted.rules:
            _add_rule(compiled, rule)
        instructions = _newer_calls(wanted) + _export(compiled)
    except OSError as error:
        raise ValueError(f"cannot be compiled: {error.strerror}") from error
    if len(instructions) > _INSTRUCTION.size * 4096:  # BPF_MAXINSNS
        raise ValueError("is longer than the kernel takes")
    flags = sum({FLAGS[flag] for flag in wanted.flags if flag in FLAGS})
    notifies = any(rule.action is SeccompAction.NOTIFY for rule in wanted.rules)
    if not notifies:
        # The kernel refuses it without a listener.
        flags &= ~FLAGS[SeccompFlag.WAIT_KILLABLE_RECV]
    return SeccompProgram(
        instructions=instructions,
        flags=flags,
        listener_path=wanted.listener_path if notifies else "",
        listener_metadata=wanted.listener_metadata if notifies else "",
    )


def _action(action: SeccompAction, errno: int) -> int:
    if action is SeccompAction.ERRNO:
        return int(pyseccomp.ERRNO(errno))
    if action is SeccompAction.TRACE:
        return int(pyseccomp.TRACE(errno))
    return int(_ACTIONS[action])


def _add_rule(compiled: pyseccomp.SyscallFilter, rule: SeccompRule) -> None:
    """Add a rule for each name.

    Conditions on one argument twice cannot be both asked for: as in runc each then counts alone.
    """
    arguments = [
        pyseccomp.Arg(a.index, _OPERATORS[a.operator], a.value, a.value_two) for a in rule.arguments
    ]
    twice = len({argument.index for argument in rule.arguments}) < len(arguments)
    alternatives = [[argument] for argument in arguments] if twice else [arguments]
    action = _action(rule.action, rule.errno)
    for name in rule.names:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
        for conditions in alternatives if number != _UNKNOWN else ():
            compiled.add_rule(action, number, *conditions)


def _export(compiled: pyseccomp.SyscallFilter) -> bytes:
    with open(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        compiled.export_bpf(file)
        file.seek(0)
        return file.read()


def _newer_calls(wanted: SeccompFilter) -> bytes:
    """Return instructions that answer ENOSYS to calls above the highest one named.

    Where all is allowed that is not named, or ENOSYS is the default, there is nothing to do.
    """
    passing = (SeccompAction.ALLOW, SeccompAction.LOG, SeccompAction.TRACE, SeccompAction.NOTIFY)
    if wanted.default_action in passing or not wanted.rules:
        return b""
    native = pyseccomp.system_arch()
    arches = dict.fromkeys((native, *(_ARCHITECTURES[a] for a in wanted.architectures)))
    names = {name for rule in wanted.rules for name in rule.names}
    last = {arch: _highest(names, arch) for arch in arches if arch != pyseccomp.Arch.X32}
    x32 = _highest(names, pyseccomp.Arch.X32) if pyseccomp.Arch.X32 in arches else None
    blocks = [
        _refuse_x86_64(number, x32)
        if arch == pyseccomp.Arch.X86_64 and x32
        else _refuse_above(arch, number)
        for arch, number in last.items()
        if number >= 0
    ]
    return _instruction(_LOAD, _ARCHITECTURE) + b"".join(blocks) if blocks else b""


def _highest(names: set[str], architecture: int) -> int:
    return max((pyseccomp.resolve_syscall(architecture, name) for name in names), default=-1)


def _refuse_above(architecture: int, last: int) -> bytes:
    """Return a block that is entered, and left, with the architecture in the accumulator."""
    return b"".join(
        (
            _instruction(_JUMP_EQUAL, architecture, 0, 4),
            _instruction(_LOAD, _NUMBER),
            _instruction(_JUMP_GREATER, last, 0, 1),
            _instruction(_RETURN, pyseccomp.ERRNO(_ENOSYS)),
            _instruction(_LOAD, _ARCHITECTURE),
        )
    )


def _refuse_x86_64(last: int, last_x32: int) -> bytes:
    """Return a block for both sets of numbers that x86-64 has."""
    return b"".join(
        (
            _instruction(_JUMP_EQUAL, pyseccomp.Arch.X86_64, 0, 6),
            _instruction(_LOAD, _NUMBER),
            _instruction(_JUMP_NOT_LESS, _X32_BIT, 1, 0),
            _instruction(_JUMP_GREATER, last, 1, 2),
            _instruction(_JUMP_GREATER, _X32_BIT | last_x32, 0, 1),
            _instruction(_RETURN, pyseccomp.ERRNO(_ENOSYS)),
            _instruction(_LOAD, _ARCHITECTURE),
        )
    )


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)
