# SPDX-License-Identifier: Apache-2.0
"""Keys of the short way's maps, as the program looks them up."""

from ipaddress import ip_address

from pycri.network import shortcut_program
from pycri.network.shortcut_program import SENDER_BYTES, WAY_BYTES, assemble, sender_key, way_key

MAC = bytes.fromhex("0a580a580002")


def test_a_sender_is_port_mac_type_and_address() -> None:
    four, six = (sender_key(7, MAC, ip_address(a)) for a in ("10.88.0.2", "fd00::2"))
    assert len(four) == len(six) == SENDER_BYTES
    assert four[4:16] == MAC + b"\x08\x00" + bytes([10, 88, 0, 2])
    assert four[16:] == bytes(12)
    assert six[4:] == MAC + b"\x86\xdd" + ip_address("fd00::2").packed


def test_a_way_is_found_by_the_mac_alone() -> None:
    assert way_key(MAC) == MAC + b"\0\0"
    assert len(way_key(MAC)) == WAY_BYTES


def test_every_jump_leads_to_an_instruction_behind_it() -> None:
    program = assemble(3, 4)
    count = len(program) // 8
    jumps = 0
    for at in range(count):
        code = program[8 * at]
        if code & 7 == 5 and code not in (shortcut_program._CALL, shortcut_program._EXIT):
            offset = int.from_bytes(program[8 * at + 2 : 8 * at + 4], "little", signed=True)
            assert 0 <= offset < count - at - 1
            jumps += 1
    assert jumps == 12
