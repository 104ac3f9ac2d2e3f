# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits: a token bucket (tc-tbf(8)) on each end of a pod's veth, by rtnetlink.

Into the pod: on the host end, which sends what the pod receives. Out of it: on the pod's eth0,
where the queue holds the sender back instead of dropping what is on its way. It is gone with the
link. A container with CAP_NET_ADMIN over the pod's namespace can lift the latter.
"""

import struct
from typing import Final

from pycri.network.attributes import attribute, nested, text, u32
from pycri.network.netlink import Netlink
from pycri.network.sockets import CREATE, EXCLUSIVE, Request

LATENCY_S: Final = 0.05
"""How long a packet may wait in the queue before later ones are dropped."""
MIN_BURST_BYTES: Final = 128 << 10
"""Two of the largest packets that the kernel makes in one go."""
BURST_S: Final = 0.02

_RTM_NEWQDISC = 36
_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
_RATESPEC = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
_ROOT, _HANDLE = 0xFFFFFFFF, 0x10000
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_LINKLAYER_ETHERNET = 1
_RATE32_MAX = (1 << 32) - 1


def limit(netlink: Netlink, interface: str, bits: int) -> None:
    """Let an interface without a limit send at most `bits` a second. Raises: OSError."""
    rate = bits // 8
    burst = max(MIN_BURST_BYTES, int(rate * BURST_S))
    queue = min(burst + int(rate * LATENCY_S), _RATE32_MAX)
    spec = _RATESPEC.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, _RATE32_MAX))
    parameters = spec + bytes(_RATESPEC.size) + struct.pack("=III", queue, 0, 0)
    options = [attribute(_TBF_PARMS, parameters), u32(_TBF_BURST, min(burst, _RATE32_MAX))]
    if rate > _RATE32_MAX:
        options.append(attribute(_TBF_RATE64, struct.pack("=Q", rate)))
    body = _TCMSG.pack(0, netlink.find_index(interface), _HANDLE, _ROOT, 0)
    body += text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, *options)
    netlink.change([Request(_RTM_NEWQDISC, body, CREATE | EXCLUSIVE)])
