# SPDX-License-Identifier: Apache-2.0
"""bpf(2): programs for the kernel, and maps that they share with us.

Programs are few instructions, put together by `instruction`; no compiler is needed.
"""

import ctypes  # noqa: TID251 - one of its homes
import os
import struct

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


class _BpfMapCreate(ctypes.Structure):
    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("unused", ctypes.c_uint8 * 108),
    )


class _BpfMapElement(ctypes.Structure):
    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),  # which the compiler aligns to eight bytes, as C does
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("unused", ctypes.c_uint8 * 96),
    )


_BPF_MAP_CREATE = 0
_BPF_MAP_UPDATE_ELEM = 2
_BPF_MAP_DELETE_ELEM = 3
_BPF_MAP_TYPE_HASH = 1
_BPF_F_NO_PREALLOC = 1
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


def bpf_hash_create(key_bytes: int, value_bytes: int, entries: int) -> int:
    """bpf(2) BPF_MAP_CREATE of a hash whose elements take memory when they come.

    entries: the most. Returns the map's descriptor, caller closes.
    """
    attributes = _BpfMapCreate(
        _BPF_MAP_TYPE_HASH, key_bytes, value_bytes, entries, _BPF_F_NO_PREALLOC
    )
    return check(_bpf(_SYS_BPF, _BPF_MAP_CREATE, ctypes.byref(attributes), 128))


def bpf_map_update(map_fd: int, key: bytes, value: bytes) -> None:
    """bpf(2) BPF_MAP_UPDATE_ELEM: add the element, or change it. Borrows `map_fd`."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    attributes = _BpfMapElement(
        map_fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
    )
    check(_bpf(_SYS_BPF, _BPF_MAP_UPDATE_ELEM, ctypes.byref(attributes), 128))


def bpf_map_delete(map_fd: int, key: bytes) -> None:
    """bpf(2) BPF_MAP_DELETE_ELEM. Borrows `map_fd`. Raises: OSError with ENOENT."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    attributes = _BpfMapElement(map_fd, ctypes.addressof(key_buffer))
    check(_bpf(_SYS_BPF, _BPF_MAP_DELETE_ELEM, ctypes.byref(attributes), 128))


def instruction(
    code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0
) -> bytes:
    """Return a struct bpf_insn: code, target and source registers in a byte, offset, immediate."""
    return struct.pack("=BBhi", code, source << 4 | target, offset, immediate)
