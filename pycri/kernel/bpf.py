# SPDX-License-Identifier: Apache-2.0
"""bpf(2): programs for the kernel, as far as device filters need them."""

import ctypes  # noqa: TID251 - one of its homes
import os

from pycri.kernel.foreign import check, syscall

_bpf = syscall(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]


class _BpfProgLoad(ctypes.Structure):
    # the first members of union bpf_attr for BPF_PROG_LOAD; the rest is zero
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("unused", ctypes.c_uint8 * 104),
    )


class _BpfProgAttach(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("unused", ctypes.c_uint8 * 112),
    )


_BPF_PROG_LOAD = 5
_BPF_PROG_ATTACH = 8


def bpf_prog_load(prog_type: int, instructions: bytes) -> int:
    """bpf(2) BPF_PROG_LOAD, close-on-exec. Returns the program's descriptor, caller closes."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = _BpfProgLoad(
        prog_type, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence)
    )
    return check(_bpf(_SYS_BPF, _BPF_PROG_LOAD, ctypes.byref(attributes), 128))


def bpf_prog_attach(target_fd: int, program_fd: int, attach_type: int, flags: int) -> None:
    """bpf(2) BPF_PROG_ATTACH: to a group's folder; borrows both descriptors."""
    attributes = _BpfProgAttach(target_fd, program_fd, attach_type, flags)
    check(_bpf(_SYS_BPF, _BPF_PROG_ATTACH, ctypes.byref(attributes), 128))
