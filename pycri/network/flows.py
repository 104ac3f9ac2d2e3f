# SPDX-License-Identifier: Apache-2.0
"""Connection tracking: forget the flows of UDP that came by a host port (nf_conntrack_netlink).

The kernel goes on to treat the packets of a flow as it treated the first. A UDP client that keeps
its port would else send to the address of a pod that is gone, or to the host itself, if it began
before the pod was there. TCP ends by itself: its peer is reset, or gives up.

The table is looked through by the kernel; only flows to the port in question come back.
"""

import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

import msgspec

from pycri.model.ranges import Address
from pycri.network.attributes import attribute, nested, parse, u8, u32
from pycri.network.sockets import DUMP, NETLINK_NETFILTER, NetlinkSocket, Request

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _FILTER = 1, 2, 12, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FILTER_ORIG_FLAGS, _BY_PROTO_NUM, _BY_DST_PORT = 1, 1 << 3, 1 << 5
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_IP_SRC = {4: 1, 6: 3}
_IP_DST = {4: 2, 6: 4}


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """destination: as its sender sees it; answerer: who really answers."""

    destination: Address
    answerer: Address


def forget_udp(version: int, port: int, unwanted: Callable[[Flow], bool]) -> None:
    """Delete the flows of UDP to `port` that are unwanted. version: 4 or 6. Raises: OSError."""
    netlink = NetlinkSocket.open(NETLINK_NETFILTER)
    try:
        for answer in netlink.ask(_dump_request(version, port)):
            values = parse(answer[4:])
            if unwanted(_parsed_flow(version, values)):
                _delete(netlink, version, values)
    finally:
        netlink.close()


def _dump_request(version: int, port: int) -> Request:
    wanted = nested(
        _TUPLE_PROTO,
        u8(_PROTO_NUM, socket.IPPROTO_UDP),
        attribute(_PROTO_DST_PORT, struct.pack("!H", port)),
    )
    flags = u32(_FILTER_ORIG_FLAGS, _BY_PROTO_NUM | _BY_DST_PORT)
    body = _header(version) + nested(_TUPLE_ORIG, wanted) + nested(_FILTER, flags)
    return Request(_GET, body, DUMP)


def _parsed_flow(version: int, values: dict[int, bytes]) -> Flow:
    original = parse(parse(values[_TUPLE_ORIG])[_TUPLE_IP])
    reply = parse(parse(values[_TUPLE_REPLY])[_TUPLE_IP])
    return Flow(
        destination=ip_address(original[_IP_DST[version]]),
        answerer=ip_address(reply[_IP_SRC[version]]),
    )


def _delete(netlink: NetlinkSocket, version: int, values: dict[int, bytes]) -> None:
    # The tuple is sent back as it came, with the id: another flow of the same ends stays.
    body = _header(version) + nested(_TUPLE_ORIG, values[_TUPLE_ORIG])
    try:
        netlink.change([Request(_DELETE, body + attribute(_ID, values[_ID]))])
    except FileNotFoundError:
        return  # it has ended meanwhile


def _header(version: int) -> bytes:
    return struct.pack("!BBH", _FAMILIES[version], 0, 0)  # struct nfgenmsg
