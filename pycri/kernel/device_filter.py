# SPDX-License-Identifier: Apache-2.0
"""The device allow list of a version 2 group: a small BPF program attached to it.

Version 2 has no file for devices; a program of type BPF_PROG_TYPE_CGROUP_DEVICE is asked at every
open and mknod (Documentation/admin-guide/cgroup-v2.rst, "Device controller"). Its context:

    struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }
    access_type: low half the kind (1 block, 2 char),
                 high half the access (1 mknod, 2 read, 4 write)

The program tries the rules in order; the first that fits allows; none denies.
"""

import os

from pycri.kernel.bpf import bpf_prog_attach, bpf_prog_load, instruction
from pycri.model.plan import DeviceRule

_PROG_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6
_F_ALLOW_MULTI = 2

_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_ALL_ACCESS = 7

# Opcodes of linux/bpf.h as class | operation | source.
_LOAD_WORD = 0x61
_AND_IMMEDIATE = 0x54
_SHIFT_RIGHT = 0x74
_MOVE_IMMEDIATE = 0xB7
_MOVE_REGISTER = 0xBC
_JUMP_UNLESS_EQUAL_IMMEDIATE = 0x55
_JUMP_UNLESS_EQUAL_REGISTER = 0x5D
_EXIT = 0x95

_RESULT, _CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR = range(6)


def assemble(rules: tuple[DeviceRule, ...]) -> bytes:
    """Return the program for an allow list: eight bytes an instruction."""
    program = [
        instruction(_LOAD_WORD, _KIND, _CONTEXT, 0),
        instruction(_AND_IMMEDIATE, _KIND, immediate=0xFFFF),
        instruction(_LOAD_WORD, _WANTED, _CONTEXT, 0),
        instruction(_SHIFT_RIGHT, _WANTED, immediate=16),
        instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in rules:
        allow = _assemble_rule(rule)
        program += allow
        if allow == _return(1):
            # It fits always, and the verifier refuses instructions that cannot be reached.
            return b"".join(program)
    return b"".join(program + _return(0))


def attach(directory: str, rules: tuple[DeviceRule, ...]) -> None:
    """Let processes of the version 2 group use no devices but those of `rules`."""
    program_fd = bpf_prog_load(_PROG_TYPE_CGROUP_DEVICE, assemble(rules))
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf_prog_attach(directory_fd, program_fd, _CGROUP_DEVICE, _F_ALLOW_MULTI)
        finally:
            os.close(directory_fd)
    finally:
        os.close(program_fd)


def _assemble_rule(rule: DeviceRule) -> list[bytes]:
    """Return tests that each jump behind the rule, then "allow"."""
    tests: list[tuple[int, int, int, int]] = []
    before: list[bytes] = []
    if rule.kind != "a":
        tests.append((_JUMP_UNLESS_EQUAL_IMMEDIATE, _KIND, 0, _KINDS[rule.kind]))
    for register, number in ((_MAJOR, rule.major), (_MINOR, rule.minor)):
        if number is not None:
            tests.append((_JUMP_UNLESS_EQUAL_IMMEDIATE, register, 0, number))
    access = sum(_ACCESS[letter] for letter in set(rule.access))
    if access != _ALL_ACCESS:
        # All that is wanted must be among what is allowed: wanted & allowed == wanted.
        before = [
            instruction(_MOVE_REGISTER, _CONTEXT, _WANTED),
            instruction(_AND_IMMEDIATE, _CONTEXT, immediate=access),
        ]
        tests.append((_JUMP_UNLESS_EQUAL_REGISTER, _CONTEXT, _WANTED, 0))
    allow = _return(1)
    jumps = [
        instruction(code, target, source, len(tests) - index - 1 + len(allow), immediate)
        for index, (code, target, source, immediate) in enumerate(tests)
    ]
    return [*before, *jumps, *allow]


def _return(value: int) -> list[bytes]:
    return [instruction(_MOVE_IMMEDIATE, _RESULT, immediate=value), instruction(_EXIT)]
