# SPDX-License-Identifier: Apache-2.0
"""The init of a pod whose containers share a pid namespace: a program of some 130 bytes.

All it has to do is to exist and to leave no zombies. The kernel reaps the children of a process
that ignores SIGCHLD by itself (wait(2), NOTES), and ignored signals survive an execve; so the
program is nothing but a loop around a system call that sleeps. As the first process of a pid
namespace it gets no signal it has no handler for, but a SIGKILL from outside (pid_namespaces(7)).

It replaces the forked spawner, whose memory and whose root directory processes of the pod with
CAP_SYS_PTRACE could otherwise look into, and costs two pages instead of half a megabyte.

The file is an ELF executable of one segment (elf(5)): header, program header, code:

    x86-64    mov eax, 34 (pause) ; syscall ; jmp to the begin
    arm64     mov x0..x3, 0 ; mov x8, 73 (ppoll) ; svc 0 ; b to the begin
"""

import struct

_BASE = 0x400000
_HEADER_BYTES = 64
_SEGMENT_BYTES = 56

_ARM64_LOOP = (
    *(0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003),
    *(0xD2800928, 0xD4000001, 0x17FFFFFA),
)
_CODE = {
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),
    "aarch64": (183, struct.pack("<7I", *_ARM64_LOOP)),
}
"""By machine: its number in elf.h, and the loop."""


def render_program(machine: str) -> bytes:
    """Return the executable for a machine as uname(2) names it."""
    number, code = _CODE[machine]
    start = _HEADER_BYTES + _SEGMENT_BYTES
    size = start + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(identity, 2, number, 1, _BASE + start, _HEADER_BYTES, 0, 0),
        *(_HEADER_BYTES, _SEGMENT_BYTES, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code
