# SPDX-License-Identifier: Apache-2.0
"""The program that each pod's host end runs on what the pod sends (BPF_PROG_TYPE_SCHED_CLS). Pure.

    frame  ── IPv4, or TCP, UDP, SCTP of IPv6, no VLAN? ── yes: is (port, MAC, type, address) of the
      │ no                                                    sender in the map `senders`?
      ▼                                                        │ no    │ yes: is the receiver's MAC
    on, to the bridge  ◀─────────────────────────────── no ────┴───────┤      in the map `ways`?
                                                                       ▼ yes
                                                        out of the port of that MAC

So it takes only what the rules of the bridge would let through, from one pod to another
(`rules.py`); all else, and what it is to be dropped for, is left to them. ICMPv6 holds messages
that the rules look into. Source: <linux/bpf.h>, struct __sk_buff.
"""

import socket
import struct
from ipaddress import IPv4Address
from typing import Final

import msgspec

from pycri.kernel.bpf import instruction
from pycri.model.ranges import Address

SENDER_BYTES: Final = 28
WAY_BYTES: Final = 8
INDEX_BYTES: Final = 4

_IPV4, _IPV6 = (socket.htons(kind) for kind in (0x0800, 0x86DD))
_HEADERS_4, _HEADERS_6 = 14 + 20, 14 + 40
_ICMPV6 = 58

_VLAN_PRESENT, _IFINDEX, _DATA, _DATA_END = 20, 40, 76, 80  # struct __sk_buff
_TO_MAC, _FROM_MAC, _KIND, _NEXT_HEADER, _SOURCE_4, _SOURCE_6 = 0, 6, 12, 20, 26, 22  # the frame

# Opcodes of <linux/bpf.h> as class | operation | source. Sizes: word, half, byte.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _STORE_WORD = 0x61, 0x69, 0x71, 0x63
_LOAD_MAP = 0x18  # takes two instructions; the source says that a descriptor is meant
_ADD, _MOVE, _MOVE_REGISTER = 0x07, 0xB7, 0xBF
_JUMP, _IF_EQUAL, _IF_GREATER_REGISTER, _IF_OTHER = 0x05, 0x15, 0x2D, 0x55
_CALL, _EXIT = 0x85, 0x95
_MAP_LOOKUP_ELEM, _REDIRECT = 1, 23
_NEXT_FILTER = -1  # TC_ACT_UNSPEC

_RESULT, _FIRST, _SECOND, _CONTEXT, _FRAME, _END, _STACK = 0, 1, 2, 6, 7, 8, 10
_KEY = -SENDER_BYTES  # on the stack
_ON = "on"


class _Jump(msgspec.Struct, frozen=True):
    """A jump to a label. source: a register, if one is compared with."""

    code: int
    to: str
    target: int = 0
    immediate: int = 0
    source: int = 0


def sender_key(index: int, mac: bytes, address: Address) -> bytes:
    """Return the key of `senders` for packets from `address`. index: of the host end."""
    kind = _IPV4 if isinstance(address, IPv4Address) else _IPV6
    return struct.pack("=I6sH16s", index, mac, kind, address.packed)


def way_key(mac: bytes) -> bytes:
    """Return the key of `ways`, whose elements are indices of host ends."""
    return mac + bytes(WAY_BYTES - len(mac))


def assemble(senders_fd: int, ways_fd: int) -> bytes:
    """Return the program for two maps."""
    return _resolve(
        [
            *_begin(),
            *_take_source_4(),
            *_take_source_6(),
            "look up",
            *_look_up(senders_fd),
            instruction(_LOAD_WORD, _FIRST, _FRAME, _TO_MAC),
            instruction(_STORE_WORD, _STACK, _FIRST, _KEY),
            instruction(_LOAD_HALF, _FIRST, _FRAME, _TO_MAC + 4),
            instruction(_STORE_WORD, _STACK, _FIRST, _KEY + 4),
            *_look_up(ways_fd),
            instruction(_LOAD_WORD, _FIRST, _RESULT),
            instruction(_MOVE, _SECOND),
            instruction(_CALL, immediate=_REDIRECT),
            instruction(_EXIT),
            _ON,
            instruction(_MOVE, _RESULT, immediate=_NEXT_FILTER),
            instruction(_EXIT),
        ]
    )


def _begin() -> list[bytes | _Jump | str]:
    """Write a sender's key to the stack, all but its address; jump to where that is added."""
    zeros = [instruction(_STORE_WORD, _STACK, _FIRST, _KEY + 12 + 4 * word) for word in range(4)]
    return [
        instruction(_MOVE_REGISTER, _CONTEXT, _FIRST),
        instruction(_LOAD_WORD, _FIRST, _CONTEXT, _VLAN_PRESENT),
        _Jump(_IF_OTHER, _ON, _FIRST),
        instruction(_LOAD_WORD, _FRAME, _CONTEXT, _DATA),
        instruction(_LOAD_WORD, _END, _CONTEXT, _DATA_END),
        *_go_on_if_shorter(_HEADERS_4),
        instruction(_LOAD_WORD, _FIRST, _CONTEXT, _IFINDEX),
        instruction(_STORE_WORD, _STACK, _FIRST, _KEY),
        instruction(_LOAD_WORD, _FIRST, _FRAME, _FROM_MAC),
        instruction(_STORE_WORD, _STACK, _FIRST, _KEY + 4),
        # The MAC's end and the type of the frame, which lie side by side in the key, too.
        instruction(_LOAD_WORD, _FIRST, _FRAME, _FROM_MAC + 4),
        instruction(_STORE_WORD, _STACK, _FIRST, _KEY + 8),
        instruction(_MOVE, _FIRST),
        *zeros,
        instruction(_LOAD_HALF, _FIRST, _FRAME, _KIND),
        _Jump(_IF_EQUAL, "version 6", _FIRST, _IPV6),
        _Jump(_IF_OTHER, _ON, _FIRST, _IPV4),
    ]


def _take_source_4() -> list[bytes | _Jump | str]:
    return [
        instruction(_LOAD_WORD, _FIRST, _FRAME, _SOURCE_4),
        instruction(_STORE_WORD, _STACK, _FIRST, _KEY + 12),
        _Jump(_JUMP, "look up"),
    ]


def _take_source_6() -> list[bytes | _Jump | str]:
    found: list[bytes | _Jump | str] = [
        "version 6",
        *_go_on_if_shorter(_HEADERS_6),
        instruction(_LOAD_BYTE, _FIRST, _FRAME, _NEXT_HEADER),
    ]
    # Only what is surely not ICMPv6: that may stand behind other headers.
    found += [
        _Jump(_IF_EQUAL, "plain", _FIRST, protocol)
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP)
    ]
    found += [_Jump(_JUMP, _ON), "plain"]
    for word in range(4):
        found.append(instruction(_LOAD_WORD, _FIRST, _FRAME, _SOURCE_6 + 4 * word))
        found.append(instruction(_STORE_WORD, _STACK, _FIRST, _KEY + 12 + 4 * word))
    return found


def _go_on_if_shorter(length: int) -> list[bytes | _Jump]:
    return [
        instruction(_MOVE_REGISTER, _FIRST, _FRAME),
        instruction(_ADD, _FIRST, immediate=length),
        _Jump(_IF_GREATER_REGISTER, _ON, _FIRST, source=_END),
    ]


def _look_up(map_fd: int) -> list[bytes | _Jump]:
    """Find the key on the stack; `_RESULT` is then where its value is."""
    return [
        instruction(_LOAD_MAP, _FIRST, 1, immediate=map_fd),
        instruction(0),
        instruction(_MOVE_REGISTER, _SECOND, _STACK),
        instruction(_ADD, _SECOND, immediate=_KEY),
        instruction(_CALL, immediate=_MAP_LOOKUP_ELEM),
        _Jump(_IF_EQUAL, _ON, _RESULT),
    ]


def _resolve(lines: list[bytes | _Jump | str]) -> bytes:
    """Replace labels, which are text, by the distances to them."""
    labels: dict[str, int] = {}
    code: list[bytes | _Jump] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
        else:
            code.append(line)
    return b"".join(
        line
        if isinstance(line, bytes)
        else instruction(
            line.code, line.target, line.source, labels[line.to] - at - 1, line.immediate
        )
        for at, line in enumerate(code)
    )
