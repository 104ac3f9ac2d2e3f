# SPDX-License-Identifier: Apache-2.0
"""The pod's init as a file: what readelf(1) would say of it, for each machine."""

import os
import platform
import signal
import struct

import pytest

from pycri.kernel import memfiles
from pycri.spawner.podinit import render_program

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
MACHINES = {"x86_64": 62, "aarch64": 183}
EXECUTABLE, CURRENT, LOADED, READ_AND_EXECUTE = 2, 1, 1, 5
PAGE_BYTES = 4096


@pytest.mark.parametrize("machine", MACHINES)
def test_it_is_an_executable_of_one_segment_for_its_machine(machine: str) -> None:
    program = render_program(machine)
    (identity, kind, number, version, entry, segments_at, sections_at, flags, *sizes) = (
        FILE_HEADER.unpack_from(program)
    )
    assert identity[:7] == b"\x7fELF\x02\x01\x01", "64 bits, little-endian, version 1"
    assert (kind, number, version) == (EXECUTABLE, MACHINES[machine], CURRENT)
    assert (segments_at, sections_at, flags) == (FILE_HEADER.size, 0, 0)
    assert sizes == [FILE_HEADER.size, PROGRAM_HEADER.size, 1, 0, 0, 0]
    kind, access, offset, address, _, in_file, in_memory, alignment = PROGRAM_HEADER.unpack_from(
        program, segments_at
    )
    assert (kind, access, offset) == (LOADED, READ_AND_EXECUTE, 0)
    assert in_file == in_memory == len(program)
    assert address % alignment == 0
    assert alignment == PAGE_BYTES
    code = program[entry - address :]
    assert len(program) == FILE_HEADER.size + PROGRAM_HEADER.size + len(code)
    assert 0 < len(code) <= 32


def test_the_loop_on_x86_64_sleeps_in_pause_and_goes_back_to_its_begin() -> None:
    code = render_program("x86_64")[-9:]
    load, number, syscall, jump, distance = struct.unpack("<BIHBb", code)
    assert (load, number) == (0xB8, 34), "mov eax, pause"
    assert syscall.to_bytes(2, "little") == b"\x0f\x05"
    assert jump == 0xEB
    assert len(code) + distance == 0


def test_the_loop_on_arm64_sleeps_in_ppoll_and_goes_back_to_its_begin() -> None:
    *moves, call, branch = struct.unpack("<7I", render_program("aarch64")[-28:])
    # movz Xd, #imm16: 0xd2800000 | imm16 << 5 | d
    assert {word & 31: word >> 5 & 0xFFFF for word in moves} == {0: 0, 1: 0, 2: 0, 3: 0, 8: 73}
    assert {word & ~0x1FFFFF for word in moves} == {0xD2800000}
    assert call == 0xD4000001
    opcode, words = branch >> 26, branch & 0x3FFFFFF
    assert opcode == 0b000101
    assert words - (1 << 26) == -6, "six instructions back, signed 26 bits"


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="no program for this machine")
def test_it_sleeps_until_it_is_killed() -> None:
    fd = memfiles.make_program("pod-init", render_program(platform.machine()))
    try:
        pid = os.posix_spawn(f"/proc/self/fd/{fd}", ["pod-init"], {})
    finally:
        os.close(fd)
    pidfd = os.pidfd_open(pid)
    try:
        # SIGCONT wakes pause and ppoll without a handler's help: the loop goes to sleep again.
        for number in (signal.SIGSTOP, signal.SIGCONT):
            signal.pidfd_send_signal(pidfd, number)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    assert os.WIFSIGNALED(status), "it ended by itself"
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_nobody_can_write_to_a_program_in_memory() -> None:
    fd = memfiles.make_program("sealed", b"content")
    try:
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            assert file.read() == b"content"
    finally:
        os.close(fd)


def test_a_machine_without_a_program_is_an_error() -> None:
    with pytest.raises(KeyError):
        render_program("riscv64")
