# SPDX-License-Identifier: Apache-2.0
"""Programs that look at what an interface receives (tc-bpf(8)), by rtnetlink.

The filter stands in the hook `ingress` of the queue "clsact", behind all others that may stand
there. It keeps its program, and that its maps; all are gone with the interface.
"""

import socket
import struct
from typing import Final

from pycri.network.attributes import nested, parse, parse_text, text, u32
from pycri.network.netlink import Netlink
from pycri.network.sockets import CREATE, DUMP, REPLACE, Request

_NAME: Final = "pycri"
_RTM_NEWQDISC, _RTM_GETQDISC, _RTM_NEWTFILTER = 36, 38, 44
_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
_CLSACT, _CLSACT_HANDLE, _INGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_TCA_KIND, _TCA_OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1
_LAST_PRIORITY = 0xFFFF
_ETH_P_ALL = 3
_FILTER_HANDLE = 1


def classify(netlink: Netlink, index: int, program_fd: int) -> None:
    """Run the program on what the interface receives, in the place of one of before.

    Borrows `program_fd`. Raises: OSError.
    """
    queue = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + text(_TCA_KIND, "clsact")
    info = _LAST_PRIORITY << 16 | socket.htons(_ETH_P_ALL)
    options = nested(
        _TCA_OPTIONS,
        u32(_BPF_FD, program_fd),
        text(_BPF_NAME, _NAME),
        u32(_BPF_FLAGS, _DIRECT_ACTION),
    )
    entry = _TCMSG.pack(0, index, _FILTER_HANDLE, _INGRESS, info) + text(_TCA_KIND, "bpf") + options
    netlink.change(
        [
            Request(_RTM_NEWQDISC, queue, CREATE | REPLACE),
            Request(_RTM_NEWTFILTER, entry, CREATE | REPLACE),
        ]
    )


def list_classified(netlink: Netlink) -> set[int]:
    """Return the indices of the interfaces that have the queue "clsact"."""
    found = set()
    for answer in netlink.ask(Request(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0), DUMP)):
        _, index, _, _, _ = _TCMSG.unpack_from(answer)
        if parse_text(parse(answer[_TCMSG.size :])[_TCA_KIND]) == "clsact":
            found.add(index)
    return found
